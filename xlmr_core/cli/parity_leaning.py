"""The part of `xlmr parity check` that looks below the noise floors."""

from __future__ import annotations

from collections.abc import Mapping

import click
import torch
from torch import Tensor

from xlmr_core.cli.progress import progress
from xlmr_core.parity.check import leanings_of
from xlmr_core.parity.compare import Comparison, Leaning
from xlmr_core.parity.recording import Checkpoint
from xlmr_core.parity.trace import Trace


def below_the_noise(
    trace: Trace,
    actual: Mapping[str, Tensor],
    comparison: Comparison,
    dtype: torch.dtype,
    model: str | None,
    *,
    must: bool,
) -> tuple[Leaning, ...]:
    """The faults whose effect is in a dump that agrees everywhere, where the checkpoint is on this machine.

    Args:
        trace: What was expected.
        actual: Tap -> tensor of the port.
        comparison: Of the two.
        dtype: What the port computes in.
        model: The checkpoint. By default the one that the trace names, if it need not be downloaded.
        must: Whether it is an error that there is no checkpoint. Otherwise a message on standard error says so.

    Returns:
        The faults and quantisations that were found.

    Raises:
        ValueError: The checkpoint is not the one of the trace, or with `must` or `model`, there is none.
    """
    if not any(row.verdict == "ok" for row in comparison.rows):
        return ()  # every bit is ours
    try:
        checkpoint = Checkpoint.load(model or trace.provenance.checkpoint, local_files_only=model is None)
    except ValueError:
        if must or model:
            raise
        click.echo(
            "faults below the noise were not looked for: name the checkpoint of the trace with --model", err=True
        )
        return ()
    with progress("looking below the noise", unit="fault") as tick:
        return leanings_of(trace, checkpoint, actual, comparison, dtype, tick)
