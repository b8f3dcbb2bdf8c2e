"""Dumps that another program wrote: its names, its axes, its number formats, brought to ours.

A name map is a TOML or JSON file. On the left the tap, on the right what the other program calls it; `{i}` is the
number of a layer. Axes are named by letters, in their order there, where they differ from ours:

    [names]
    "embeddings.output" = "embed"
    "layers.{i}.attention.q" = { name = "blk.{i}.q", axes = "N S D" }   # no batch, heads first
    "layers.{i}.attention.probs" = { name = "blk.{i}.p", axes = "B Q N K" }  # query, heads, key
    "layers.{i}.attention.k" = { name = "blk.{i}.k", axes = "T N D" }   # packed: the tokens of all texts, no padding
    "layers.{i}.attention.v" = { name = "blk.{i}.qkv", axes = "B S (P H)", part = 2 }   # queries, keys, values
    "layers.{i}.output" = { name = "states", axes = "L B S H", first = 1 }   # all layers, after the embeddings
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.axes import LAYERS, PART, arranged
from xlmr_core.parity.diagnose import SENTENCE
from xlmr_core.parity.dump_files import names_in, tensors_in
from xlmr_core.parity.formats import (
    INPUTS,
    MOST_LAYERS,
    MOST_NAMES,
    STRICT,
    Name,
    TraceError,
    checked_inputs,
    near_names,
    parsed,
    read_limited,
    reason_of,
    shortened,
    tap_shape,
)
from xlmr_core.parity.gradients import GRADIENT, LOSSES
from xlmr_core.parity.recording import TOP_K
from xlmr_core.parity.tap_values import LAYER_TAPS, TOP_IDS, shape_of, tap_shapes, unpacked
from xlmr_core.parity.trace import Trace

MOST_PARTS = 8  # tensors that one may hold side by side; queries, keys and values are three

Index = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]


@with_config(STRICT)
class Entry(TypedDict):
    """What another program calls a tap, and the letters of its axes where they differ from ours (see axes.py)."""

    name: Name
    axes: NotRequired[Name]
    part: NotRequired[Index]
    first: NotRequired[Index]


def _as_entry(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError("expected a name, or a table with a name")
    return {"name": value} if isinstance(value, str) else value


Names = Annotated[dict[Name, Annotated[Entry, BeforeValidator(_as_entry)]], Field(max_length=MOST_NAMES)]


@with_config(STRICT)
class File(TypedDict):
    """A file with a map of names."""

    names: Names


KIND = "a map of names"
FILE = TypeAdapter(File)
NAMES = TypeAdapter(Names)


def read_dump(path: Path, trace: Trace, names: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The tensors of an .npz or .safetensors file that mean something for a trace, under our names and with our axes.

    Only these are read: what the map names, taps of the trace's model, gradients and losses of the trace, `input_ids`,
    `attention_mask` and `sentence.mean`. Anything else in the file is passed over.

    Args:
        path: The file.
        trace: What the dump is to be compared with.
        names: A map of names, as `read_names` gives it.

    Returns:
        The tensors by our names.

    Raises:
        TraceError: The file is damaged or holds nothing of this; a tensor is far larger than the trace's (see
            MOST_TIMES) or does not hold numbers; ids or a mask are not such; the map does not fit the file.
    """
    wanted = _sizes(trace)
    for rows in _expanded(names or {}, trace.config):
        for tap, theirs, entry in rows:
            wanted[theirs] = max(wanted.get(theirs, 0), wanted.get(tap, 0) * _tensors_in(entry, trace.config))
    found = dict(tensors_in(path, wanted))
    listed = names_in(path)
    ours = renamed(found, names or {}, trace.config, listed, tuple(trace.real.shape))
    if not ours:
        has = ", ".join(map(shortened, listed[:5])) or "nothing"
        raise TraceError(
            f"{path} has no tensor of the trace, but {has}. A map of names (--names) says what is what; "
            "`xlmr parity match TRACE DUMP -o names.toml` looks for one"
        )
    return ours | checked_inputs(path, {name: ours[name] for name in INPUTS if name in ours}, trace.config)


def _tensors_in(entry: Mapping[str, Any], config: XLMRobertaConfig) -> int:
    """How many tensors of a tap's size a foreign one may hold: parts and layers."""
    letters = re.findall(r"\w", entry.get("axes", ""))
    return (MOST_PARTS if PART in letters else 1) * (config.num_hidden_layers + 1 if LAYERS in letters else 1)


def _sizes(trace: Trace) -> dict[str, int]:
    """How many numbers a dump of the same input has under each name that means something."""
    ids, config = trace.inputs["input_ids"].shape, trace.config
    top = TOP_K if trace.top_ids is None else trace.top_ids.shape[-1]
    layers = [f"layers.{i}.{tap}" for i in range(config.num_hidden_layers) for tap in LAYER_TAPS]
    shapes = {name: tap_shape(name, config, tuple(ids), top) for name in (*tap_shapes(), *layers)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if shape is not None}
    sizes |= {SENTENCE: ids[0] * config.hidden_size, **dict.fromkeys(INPUTS, ids.numel())}
    return sizes | {tap: tensor.numel() for tap, tensor in trace.tensors.items()}


def read_names(path: Path) -> dict[str, Any]:
    """The table `names` of a TOML or JSON file.

    Args:
        path: The file; one that ends in .json is JSON, any other TOML.

    Returns:
        Our names, and for each what the other program calls it, or a table of `name` and `axes`.

    Raises:
        TraceError: The file is not such a map. The message names the file and the entry.
    """
    content = read_limited(path)
    if path.suffix == ".json":
        return dict(parsed(path, KIND, FILE, content)["names"])
    try:
        return dict(FILE.validate_python(parse_toml(content))["names"])
    except ValidationError as error:
        raise TraceError(f"{path} is not {KIND}: {reason_of(error)}") from error
    except ValueError as error:
        raise TraceError(f"{path} is not {KIND}: {shortened(str(error))}") from error


def renamed(
    dump: Mapping[str, Tensor],
    names: Mapping[str, Any],
    config: XLMRobertaConfig,
    listed: Sequence[str] = (),
    tokens: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Tensors under our names and with our axes, where a map says so; others keep theirs.

    A tensor that the dump lacks in some layers is left out, for the comparison to report.

    Args:
        dump: Tensors by their names.
        names: The map, as `read_names` gives it.
        config: Of the model.
        listed: The names in the file of the dump, for the message, where not all of it was read.
        tokens: (B, S), which an axis that merges the two is split by.

    Returns:
        The tensors by our names.

    Raises:
        TraceError: The map names a tensor that is not in the dump in any layer, a tap that does not exist, or axes that
            do not fit the tensor.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for rows in _expanded(names, config):
        present = [row for row in rows if row[1] in dump]
        if rows and not present:
            tap, theirs, _ = rows[0]
            has = list(listed or dump)
            raise TraceError(
                f"the map says that {tap} is called {shortened(theirs)}, but the dump has no such tensor. "
                f"It has {', '.join(map(shortened, near_names(theirs, has) or has[:5]))}"
            )
        for tap, theirs, entry in present:
            used.add(theirs)
            tensor = dump[theirs]
            found[tap] = arranged(tap, tensor, entry, config, tokens) if "axes" in entry else tensor
    return found | {name: tensor for name, tensor in dump.items() if name not in used and name not in found}


def _expanded(names: Mapping[str, Any], config: XLMRobertaConfig) -> Iterator[list[tuple[str, str, Entry]]]:
    """For each entry of the map, in every layer: our name, theirs, the entry. Raises TraceError for an unknown tap."""
    try:
        entries = NAMES.validate_python(dict(names))
    except ValidationError as error:
        raise TraceError(f"the map of names is wrong: {reason_of(error)}") from error
    for tap, entry in entries.items():
        theirs = entry["name"]
        for key in ("part", "first"):
            if key in entry and "axes" not in entry:
                raise TraceError(f"the map of names gives {tap} {key}, which means nothing without axes")
        first = tap.replace("{i}", "0")
        known = first.startswith(GRADIENT) or first in (*INPUTS, LOSSES, SENTENCE)
        if not known and tap_shape(first, config, (1, 1), 1) is None:
            near = near_names(tap, [*tap_shapes(), *(f"layers.{{i}}.{tap}" for tap in LAYER_TAPS)])
            raise TraceError(
                f"the map names {shortened(tap)}, which is no tap" + (f"; near: {', '.join(near)}" if near else "")
            )
        layers = range(config.num_hidden_layers) if "{i}" in tap else (0,)
        yield [(tap.replace("{i}", str(i)), theirs.replace("{i}", str(i)), entry) for i in layers]


def narrower_dtype(dump: Mapping[str, Tensor]) -> torch.dtype | None:
    """What a port computed in that stored wider numbers than it had: numpy, for one, has no bfloat16.

    Args:
        dump: Tensors by name.

    Returns:
        bfloat16 or float16, if every number of the dump is one of that type though some tensors are wider; else None.
        A number below -65504 does not count: it is a mask's.
    """
    tensors = [tensor for tensor in dump.values() if tensor.is_floating_point()]
    for dtype in (torch.bfloat16, torch.float16):  # most numbers of bfloat16 are numbers of float16, too
        wider = any(torch.finfo(tensor.dtype).eps < torch.finfo(dtype).eps for tensor in tensors)
        if wider and all(_is_exact_in(dtype, tensor) for tensor in tensors):
            return dtype
    return None


def _is_exact_in(dtype: torch.dtype, tensor: Tensor) -> bool:
    mask = tensor < torch.finfo(torch.float16).min
    return bool(((tensor.to(dtype).to(tensor.dtype) == tensor) | mask | tensor.isnan()).all())


def fitted(
    dump: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: XLMRobertaConfig, real: Tensor
) -> dict[str, Tensor]:
    """Tensors in the shape that is expected, where only one reading of theirs is possible.

    A missing batch axis of one row is put in, the tokens of a packed batch, (T, ...), go to their places, and heads
    that stand apart, (B, N, S, D) or (B, S, N, D), are put side by side. Any other shape is left as it is, for the
    comparison to tell. real: (B, S), True for real tokens.
    """
    return {
        tap: _fitted(tap, tensor, _expected_shape(tap, expected, config), config, real) for tap, tensor in dump.items()
    }


def _expected_shape(tap: str, expected: Mapping[str, Tensor], config: XLMRobertaConfig) -> tuple[int, ...] | None:
    if tap == "lm_head.logits" and tap not in expected and TOP_IDS in expected:
        return (*expected[TOP_IDS].shape[:2], config.vocab_size)
    return tuple(expected[tap].shape) if tap in expected else None


def _fitted(tap: str, tensor: Tensor, shape: tuple[int, ...] | None, config: XLMRobertaConfig, real: Tensor) -> Tensor:
    if shape is None or tensor.shape == shape or tensor.dim() == 0:
        return tensor
    readings = [tensor] if tensor.dim() != len(shape) - 1 else []
    if shape[0] == 1:
        readings.append(tensor[None])
    elif shape[:2] == tuple(real.shape) and len(tensor) == int(real.sum()):
        readings.append(unpacked(tap, tensor, real))
    if shape_of(tap) == "(B, S, H)":
        heads_apart = (shape[0], shape[1], config.num_attention_heads, config.head_dim)
        for reading in tuple(readings):
            if reading.shape == heads_apart:
                readings.append(reading.flatten(2))
            if reading.dim() == 4 and reading.transpose(1, 2).shape == heads_apart:
                readings.append(reading.transpose(1, 2).flatten(2))
    fitting = [reading for reading in readings if reading.shape == shape]
    return fitting[0] if len(fitting) == 1 else tensor
