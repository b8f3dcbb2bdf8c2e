"""What a trace is compared with, opened: a dump, another trace, or a model file, which is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xlmr_core.parity.check import dump_from_file, has_our_names, match_if_foreign
from xlmr_core.parity.dump_files import SUFFIXES
from xlmr_core.parity.foreign import fitted, read_names, renamed
from xlmr_core.parity.formats import INPUTS, TraceError
from xlmr_core.parity.matching import Matching, match_file, match_tensors
from xlmr_core.parity.name_map import as_names
from xlmr_core.parity.onnx_port import run_onnx
from xlmr_core.parity.openvino_port import run_openvino
from xlmr_core.parity.trace import Trace

MODELS = {".onnx": run_onnx, ".xml": run_openvino}
Names = Path | Mapping[str, Any] | None


def is_port(path: Path) -> bool:
    """Whether a file is read as a dump or run as a model, by its name."""
    return path.suffix in (*SUFFIXES, *MODELS)


def run_port(trace: Trace, path: Path) -> dict[str, Tensor]:
    """Runs an ONNX or OpenVINO model on the inputs of a trace and gives the tensors inside it, by its names for them.

    Args:
        trace: Whose input_ids and attention_mask the model is run on.
        path: The .onnx or .xml file.

    Returns:
        Every floating-point tensor that depends on the inputs, in the order of the graph.

    Raises:
        TraceError: The file cannot be read or run, or what runs it is not installed.
    """
    tensors = MODELS[path.suffix](path, trace.inputs, trace.config.pad_token_id)
    if not tensors:
        raise TraceError(f"{path} computes no floating-point tensor from its inputs: there is nothing to compare")
    return tensors


def match_port(trace: Trace, path: Path) -> Matching:
    """Looks for the taps of a trace in a dump, or in a model that is run.

    Raises:
        TraceError: The file cannot be read or run.
    """
    return match_tensors(trace, run_port(trace, path)) if path.suffix in MODELS else match_file(trace, path)


def in_our_terms(
    trace: Trace, tensors: Mapping[str, Tensor], names: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], Matching | None]:
    """Tensors under our names and in our shapes.

    Args:
        trace: What they are to be compared with.
        tensors: By the port's names, in the order in which it computed them.
        names: A map of names. Without one, and without a name of ours among the tensors, they are recognised.

    Returns:
        The tensors, and how they were recognised; None where a map or their names say what they are.

    Raises:
        TraceError: The map does not fit.
    """
    matching = None if names or has_our_names(trace, tensors) else match_tensors(trace, tensors)
    ours = renamed(tensors, as_names(matching) if matching else names or {}, trace.config, tokens=trace.real.shape)
    if matching is not None:
        ours = {match.tap: ours[match.tap] for match in matching.matches}
    return fitted(ours, trace.tensors, trace.config, trace.real), matching


def open_port(
    trace: Trace, path: Path, names: Names = None, *, keep_inputs: bool = False
) -> tuple[dict[str, Tensor], Matching | None]:
    """The tensors of a dump, of another trace or of a model, under our names and in our shapes.

    Args:
        trace: What they are to be compared with.
        path: The .npz, .safetensors, .onnx or .xml file.
        names: A map of names, or its file. Without one, tensors are recognised if none has a name of ours.
        keep_inputs: Whether ids and masks of a dump may differ from the trace's: see `dump_from_file`.

    Returns:
        The tensors, and how they were recognised; None where a map or their names say what they are.

    Raises:
        TraceError: The file cannot be read or run, the map does not fit it, or nothing in it is recognised.
    """
    if path.suffix not in MODELS:
        matching = None if names else match_if_foreign(trace, path)
        table = as_names(matching) if matching else names
        return dump_from_file(trace, path, table, keep_inputs=keep_inputs), matching
    table = read_names(names) if isinstance(names, Path) else names
    tensors = {name: tensor for name, tensor in run_port(trace, path).items() if name not in INPUTS}
    ours, matching = in_our_terms(trace, tensors, table)
    if not ours:
        raise TraceError(f"no tensor of {path} was recognised as a tap of the trace: is it the same checkpoint?")
    return ours, matching
