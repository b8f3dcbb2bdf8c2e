"""A trace against something else, whatever it is: another trace, a foreign dump, a checkpoint, transformers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from xlmr_core.checkpoint import inspect_checkpoint
from xlmr_core.hub_options import HubOptions
from xlmr_core.parity.adapters import dump_of, transformers_model, transformers_parameters
from xlmr_core.parity.compare import Comparison, Floors, Leaning, compare
from xlmr_core.parity.dump_files import SUFFIXES, shapes_in
from xlmr_core.parity.floors import FloorTable, measure
from xlmr_core.parity.foreign import fitted, read_dump, read_names
from xlmr_core.parity.gradients import LOSSES, gradients, training_losses
from xlmr_core.parity.leaning import leanings
from xlmr_core.parity.local import Inputs
from xlmr_core.parity.matching import Matching, match_file
from xlmr_core.parity.recording import Checkpoint, check_same_weights, hash_of_inputs, one_thread
from xlmr_core.parity.simulate import SENTENCE
from xlmr_core.parity.tap_values import LOGITS, LOGSUMEXP, TOP, TOP_IDS, with_reduced_logits
from xlmr_core.parity.trace import INPUTS, Trace, TraceError, is_trace
from xlmr_core.progress import Tick, no_tick
from xlmr_core.taps import matches


def load_trace(path: Path, other: Path | str | None) -> Trace:
    """The trace in a file, which is compared with another.

    Args:
        path: The trace.
        other: What it is compared with.

    Returns:
        The trace.

    Raises:
        TraceError: The file is not a trace. If the other one is, the message says that the two are swapped.
    """
    try:
        return Trace.load(path)
    except TraceError as error:
        if other is None or not is_trace(Path(other)):
            raise
        raise TraceError(
            f"the arguments are swapped: {other} is the trace, {path} is not. The trace comes first"
        ) from error


def dump_from_file(
    trace: Trace, path: Path, names: Path | Mapping[str, Any] | None = None, *, keep_inputs: bool = False
) -> dict[str, Tensor]:
    """The tensors of a dump or of another trace, under our names and in our shapes.

    Args:
        trace: What they are compared with.
        path: The dump, or the other trace.
        names: A map of names, for a dump (see foreign.py), or its file.
        keep_inputs: Whether ids, masks and weights may differ from the trace's, as `diagnose` explains. Ids and mask
            are then among the tensors.

    Returns:
        The tensors by our names.

    Raises:
        TraceError: The file cannot be read, the map does not fit it, or, without `keep_inputs`, it was made from other
            weights or inputs than the trace.
    """
    if path.suffix == ".safetensors" and is_trace(path):
        other = Trace.load(path)
        return {**other.inputs, **other.tensors} if keep_inputs else _from_trace(trace, other)
    dump = read_dump(path, trace, read_names(names) if isinstance(names, Path) else names)
    rows = len(trace.real)
    inputs = {name: dump.pop(name) for name in INPUTS if name in dump}
    for name, tensor in inputs.items():
        if not keep_inputs and tensor.flatten().tolist() != trace.inputs[name].flatten().tolist():
            raise TraceError(f"{path} was made from other {name} than the trace: {trace.inputs[name].tolist()}")
        if tensor.numel() % rows:
            raise TraceError(f"{path}: {name} has shape {tuple(tensor.shape)}; expected {rows} rows of one length")
    kept = {name: tensor.reshape(rows, -1) for name, tensor in inputs.items() if keep_inputs}
    return fitted(dump, trace.tensors, trace.config, trace.real) | kept


def match_if_foreign(trace: Trace, path: Path) -> Matching | None:
    """Looks for the taps of a trace in a dump that has none of our names.

    Args:
        trace: What the dump is to be compared with.
        path: The dump.

    Returns:
        What was recognised. None for another trace, for a dump with names of ours, and if nothing was recognised.

    Raises:
        TraceError: The file cannot be read.
    """
    if path.suffix not in SUFFIXES or (path.suffix == ".safetensors" and is_trace(path)):
        return None
    if has_our_names(trace, shapes_in(path)):
        return None
    matching = match_file(trace, path)
    return matching if matching.matches else None


def has_our_names(trace: Trace, names: Iterable[str]) -> bool:
    """Whether some names of a dump are names of taps, so that it is not to be matched."""
    return not {*names}.isdisjoint({*trace.taps, *trace.tensors, SENTENCE})


def _from_trace(trace: Trace, other: Trace) -> dict[str, Tensor]:
    ours, theirs = trace.provenance, other.provenance
    if ours.weights_sha256 != theirs.weights_sha256:
        raise TraceError(
            f"the traces are of different checkpoints: {ours.checkpoint} ({ours.weights_sha256[:12]}) and "
            f"{theirs.checkpoint} ({theirs.weights_sha256[:12]})"
        )
    if hash_of_inputs(trace.inputs) != hash_of_inputs(other.inputs):
        raise TraceError("the traces are of different inputs: their input_ids or attention_mask differ")
    return dict(other.tensors)


def dump_from_transformers(
    trace: Trace, source: str, *, dtype: torch.dtype, **hub: Unpack[HubOptions]
) -> dict[str, Tensor]:
    """The taps of `trace` as transformers computes them, in eager mode, from the checkpoint in `source`."""
    check_same_weights(trace, Checkpoint.load(source, **hub))
    folder = inspect_checkpoint(source, **hub).weights_file.parent
    model = transformers_model(str(folder), trace.provenance.model, trace.config.norm_first, "eager", dtype)
    return run_transformers(trace, model)


def run_transformers(trace: Trace, model: Any) -> dict[str, Tensor]:
    """The same for a model of transformers that is loaded."""
    with one_thread():
        found = {tap: tensor for tap, tensor in dump_of(model, trace.inputs).items() if tap in trace.taps}
        if trace.has_gradients:
            found |= gradients(model, trace.inputs, names=transformers_parameters(model, trace.config))
        if trace.provenance.steps:
            found[LOSSES] = training_losses(model, trace.inputs, trace.provenance.steps)
    return found


def check_trace(
    trace: Trace,
    actual: Mapping[str, Tensor],
    *,
    floors: Floors | None,
    taps: Sequence[str] = (),
    partial: bool = False,
    absent: Collection[str] = (),
) -> Comparison:
    """Compares a dump with the trace.

    Args:
        trace: What is expected.
        actual: Tap -> tensor of the port.
        floors: What differences are judged by; None: only equal values pass.
        taps: Patterns, as for `model.capture`, of the taps to compare. By default all of the trace.
        partial: Whether the dump may lack taps. Only what it has is compared then.
        absent: Taps that the dump may lack, as a matching found.

    Returns:
        The comparison, in reading order.

    Raises:
        ValueError: A pattern matches no tap of the trace, or a partial dump has none of them.
    """
    for pattern in taps:
        if not any(_chosen(tap, [pattern], trace) for tap in trace.tensors):
            raise ValueError(
                f"no tap of the trace matches {pattern!r}; it has {', '.join(list(trace.tensors)[:5])}, ..."
            )
    expected = {tap: tensor for tap, tensor in trace.tensors.items() if _whole(tap) not in absent}
    if taps:
        expected = {tap: tensor for tap, tensor in expected.items() if _chosen(tap, taps, trace)}
        # Whole logits are what the trace's largest are looked up in.
        actual = {tap: t for tap, t in actual.items() if tap in expected or (tap == LOGITS and TOP in expected)}
    comparison = compare(expected, actual, real=trace.real, floors=floors)
    if not partial:
        return comparison
    present = tuple(row for row in comparison.rows if row.verdict != "missing")
    if all(row.verdict == "extra" for row in present):
        raise ValueError(
            f"the dump has no tap of the trace, but {', '.join(list(actual)[:5]) or 'nothing'}: "
            "a map of names (--names) says which is which"
        )
    return Comparison(present)


def leanings_of(
    trace: Trace,
    checkpoint: Checkpoint,
    actual: Mapping[str, Tensor],
    comparison: Comparison,
    dtype: torch.dtype,
    tick: Tick = no_tick,
) -> tuple[Leaning, ...]:
    """What the noise floors hide: the faults whose effect is in a dump though every tap agrees (leaning.py).

    Args:
        trace: What was expected.
        checkpoint: The checkpoint that the trace was recorded from.
        actual: Tap -> tensor of the port.
        comparison: Of the two. Only taps that agree are looked at.
        dtype: What the port computes in.
        tick: Is called with 1 for each fault that is tried.

    Returns:
        The faults and quantisations that were found.

    Raises:
        TraceError: The trace was recorded from other weights.
    """
    check_same_weights(trace, checkpoint)
    dump = with_reduced_logits(actual, trace.top_ids, trace.tensors.get(TOP))
    agree = {row.tap for row in comparison.rows if row.verdict in ("equal", "ok")}
    inputs = Inputs(trace.inputs["input_ids"], trace.inputs["attention_mask"], trace.top_ids)
    with one_thread():
        return leanings(checkpoint.model, inputs, {tap: dump[tap] for tap in agree}, dtype, tick=tick)


def _chosen(tap: str, patterns: Sequence[str], trace: Trace) -> bool:
    """Whether a pattern fits the tap, or the logits that it was made of."""
    layers = trace.config.num_hidden_layers
    return any(matches(name, pattern, layers) for pattern in patterns for name in (tap, _whole(tap)))


def _whole(tap: str) -> str:
    return LOGITS if tap in (TOP_IDS, TOP, LOGSUMEXP) else tap


# ---- floors of a trace -----------------------------------------------------------------------------------------------


def floors_path(trace: Path) -> Path:
    """Where the floors of a trace lie: beside it."""
    return trace.with_suffix(".floors.json")


def measure_trace(trace: Trace, checkpoint: Checkpoint, **options: Any) -> FloorTable:
    """Measures the noise floors of the taps of a trace, on its own input.

    Args:
        trace: The trace.
        checkpoint: The checkpoint that it was recorded from.
        options: dtypes, devices, compiled and tick, as for `floors.measure`.

    Returns:
        The largest error of each run at each tap.

    Raises:
        TraceError: The trace was recorded from other weights.
    """
    check_same_weights(trace, checkpoint)
    with one_thread():
        table = measure(
            checkpoint.model,
            trace.inputs,
            taps=trace.taps,
            top_ids=trace.top_ids,
            grad=trace.has_gradients,
            steps=trace.provenance.steps,
            **options,
        )
    return FloorTable(table.measurements, _identity(trace))


def read_floors(trace: Trace, path: Path) -> Floors:
    """The floors in `path`. Raises TraceError if they were measured for other weights or inputs, or are not there."""
    if not path.is_file():
        raise TraceError(
            f"there is no {path}: `xlmr parity floor MODEL TRACE` measures the noise floors, and writes them. "
            "--exact demands equal values and needs no floors"
        )
    table = FloorTable.load(path)
    if dict(table.about) != _identity(trace):
        raise TraceError(f"{path} was measured for another checkpoint or other inputs: measure it again")
    return table.floors


def _identity(trace: Trace) -> dict[str, str]:
    return {"weights_sha256": trace.provenance.weights_sha256, "inputs_sha256": hash_of_inputs(trace.inputs)}
