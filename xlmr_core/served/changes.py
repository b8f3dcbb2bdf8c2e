"""Small changes of the encoder that no list has, found from vectors only."""

from __future__ import annotations

import torch
from torch import Tensor

from xlmr_core.checkpoint.writing import Tick
from xlmr_core.parity.diagnose import search
from xlmr_core.parity.faults import Fault
from xlmr_core.parity.simulate import SENTENCE, Simulator
from xlmr_core.served.pipeline import Pipeline, Steps


def encoder_changes(
    pipeline: Pipeline, steps: Steps, ids: Tensor, mask: Tensor, vectors: Tensor, seconds: float, tick: Tick
) -> tuple[Fault, ...]:
    """The changes of single operations that give the vectors of a batch, to the noise of float32.

    Args:
        pipeline: For vectors, not for scores.
        steps: From the model's hidden states to vectors, and before it.
        ids: (B, S).
        mask: (B, S).
        vectors: (B, D).
        seconds: Of the search.
        tick: Is called with 1 from time to time.

    Returns:
        Those that give the same numbers here, the simplest first.
    """

    def pool(hidden: Tensor, mask: Tensor) -> Tensor:  # (B, S, H), (B, S) -> (B, D)
        if hidden.dim() != 3:
            raise ValueError(f"expected token vectors (B, S, H), got a tensor of shape {tuple(hidden.shape)}")
        return pipeline.finished(hidden, mask, mask, steps)  # right steps do not read the ids

    dump = {SENTENCE: vectors.float()}
    simulator = Simulator(pipeline.model, ids, mask, dump, torch.float32, tick=tick, pool=pool)
    found = search(simulator, dump, pipeline.model, most=1, catalogue=False, seconds=seconds)
    faults = [fault for finding in found.findings for fault in finding.faults] if found.explained else []
    return tuple(fault for fault in faults if isinstance(fault, Fault))
