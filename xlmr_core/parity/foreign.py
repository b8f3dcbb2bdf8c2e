"""Dumps that another program wrote: its names, its axes, its number formats, brought to ours.

A name map is a TOML or JSON file. On the left the tap, on the right what the other program calls it; `{i}` is the
number of a layer. Axes are named by letters, in their order there, where they differ from ours:

    [names]
    "embeddings.output" = "embed"
    "layers.{i}.attention.q" = { name = "blk.{i}.q", axes = "N S D" }   # no batch, heads first
    "layers.{i}.attention.probs" = { name = "blk.{i}.p", axes = "B Q N K" }  # query, heads, key
    "layers.{i}.attention.k" = { name = "blk.{i}.k", axes = "T N D" }   # packed: the tokens of all texts, no padding
"""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.compare import LAYER_TAPS, TOP_IDS, shape_of, tap_shapes, unpacked
from xlmr_core.parity.diagnose import SENTENCE
from xlmr_core.parity.formats import (
    INPUTS,
    MOST_NAMES,
    STRICT,
    Name,
    TraceError,
    checked_inputs,
    near_names,
    open_safetensors,
    parsed,
    read_limited,
    reason_of,
    shortened,
    tap_shape,
)
from xlmr_core.parity.gradients import GRADIENT, LOSSES
from xlmr_core.parity.trace import TOP_K, Trace

# Our axes by their finest letters: H is all D of all N side by side; Q and K are both S, query and key.
AXES = {"(B, S, H)": "B S N D", "(B, N, S, S)": "B N Q K", "(B, H)": "B N D", "(*, H)": "B S N D"}
# A tensor of a dump may have this many times the numbers of the trace's (it may be padded), and some more.
MOST_TIMES, ALWAYS = 8, 65_536
READABLE = ("F64", "F32", "BF16", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@with_config(STRICT)
class Entry(TypedDict):
    """What another program calls a tap, and the letters of its axes where they differ from ours."""

    name: Name
    axes: NotRequired[Name]


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
        wanted |= {theirs: wanted.get(tap, 0) for tap, theirs, _ in rows}
    if path.suffix == ".safetensors":
        found, listed = _read_safetensors(path, wanted)
    elif path.suffix == ".npz":
        found, listed = _read_npz(path, wanted)
    else:
        raise TraceError(f"{path} is neither .npz nor .safetensors: these are the dumps that can be read")
    ours = renamed(found, names or {}, trace.config, listed)
    if not ours:
        has = ", ".join(map(shortened, listed[:5])) or "nothing"
        raise TraceError(
            f"{path} has no tensor of the trace, but {has}. A map of names (--names) says what is what; "
            "`xlmr parity names TRACE DUMP -o names.toml` writes one to fill in"
        )
    return ours | checked_inputs(path, {name: ours[name] for name in INPUTS if name in ours}, trace.config)


def _sizes(trace: Trace) -> dict[str, int]:
    """How many numbers a dump of the same input has under each name that means something."""
    ids, config = trace.inputs["input_ids"].shape, trace.config
    top = TOP_K if trace.top_ids is None else trace.top_ids.shape[-1]
    layers = [f"layers.{i}.{tap}" for i in range(config.num_hidden_layers) for tap in LAYER_TAPS]
    shapes = {name: tap_shape(name, config, tuple(ids), top) for name in (*tap_shapes(), *layers)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if shape is not None}
    sizes |= {SENTENCE: ids[0] * config.hidden_size, **dict.fromkeys(INPUTS, ids.numel())}
    return sizes | {tap: tensor.numel() for tap, tensor in trace.tensors.items()}


def _check_header(path: Path, name: str, shape: tuple[int, ...], dtype: str, expected: int) -> None:
    """Raises TraceError for a tensor that does not hold numbers, or too many; expected: how many the trace has."""
    if dtype not in READABLE:
        raise TraceError(f"{path}: {shortened(name)} holds {dtype}; expected one of {', '.join(READABLE)}")
    most = MOST_TIMES * expected + ALWAYS
    if math.prod(shape) > most:
        raise TraceError(
            f"{path}: {shortened(name)} has shape {shortened(shape)}; expected at most {most:,} numbers, which is "
            f"{MOST_TIMES} times what the trace has there, and {ALWAYS:,}"
        )


def _read_safetensors(path: Path, wanted: Mapping[str, int]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in `wanted`, which has how many numbers are expected, and the names of all."""
    found: dict[str, Tensor] = {}
    with open_safetensors(path) as file:
        listed: list[str] = list(file.keys())
        for name in filter(wanted.__contains__, listed):
            header = file.get_slice(name)
            _check_header(path, name, tuple(header.get_shape()), header.get_dtype(), wanted[name])
            found[name] = file.get_tensor(name)
    return found, listed


def _read_npz(path: Path, wanted: Mapping[str, int]) -> tuple[dict[str, Tensor], list[str]]:
    """The same of an .npz. Of an array that is not wanted, not even the header is read."""
    import numpy as np  # here: only an .npz needs it

    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    found: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise TraceError(f"{path} has two arrays of one name")
            for name in filter(wanted.__contains__, members):
                # Only deflate gives no more bytes than are asked for. numpy uses nothing else.
                if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise TraceError(f"{path}: {shortened(name)} is compressed in a way that numpy does not use")
                with archive.open(members[name]) as file:
                    shape, is_fortran, dtype = _npy_header(file)
                    _check_header(path, name, shape, _dtype_name(dtype), wanted[name])
                    content = file.read(math.prod(shape) * dtype.itemsize)
                    if file.read(1):
                        raise TraceError(f"{path}: {shortened(name)} has more bytes than its header says")
                found[name] = _as_tensor(np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C"))
            return found, list(members)
    except TraceError:
        raise
    except Exception as error:  # zip, zlib and numpy have errors of their own, and a corrupt file finds them all
        cause = shortened(str(error))
        raise TraceError(f"{path} is not an .npz file of plain arrays, or it is damaged ({cause})") from error


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype of an array. Raises ValueError for what `np.save` does not write."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of its header")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    return shape, is_fortran, dtype


def _dtype_name(dtype: Any) -> str:
    """The dtype as safetensors calls it, for those that both have; else as numpy calls it."""
    if dtype.kind == "b":
        return "BOOL"
    kind = {"f": "F", "i": "I", "u": "U"}.get(dtype.kind, "")
    return f"{kind}{8 * dtype.itemsize}" if kind else str(dtype)


def _as_tensor(array: Any) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="))  # torch has no foreign byte order; this copies, too
    return torch.from_numpy(native)


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
    dump: Mapping[str, Tensor], names: Mapping[str, Any], config: XLMRobertaConfig, listed: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Tensors under our names and with our axes, where a map says so; others keep theirs.

    A tensor that the dump lacks in some layers is left out, for the comparison to report.

    Args:
        dump: Tensors by their names.
        names: The map, as `read_names` gives it.
        config: Of the model.
        listed: The names in the file of the dump, for the message, where not all of it was read.

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
        for tap, theirs, axes in present:
            used.add(theirs)
            found[tap] = dump[theirs] if axes is None else _with_our_axes(tap, dump[theirs], axes, config)
    return found | {name: tensor for name, tensor in dump.items() if name not in used and name not in found}


def _expanded(names: Mapping[str, Any], config: XLMRobertaConfig) -> Iterator[list[tuple[str, str, str | None]]]:
    """For each entry of the map, in every layer: our name, theirs, the axes. Raises TraceError for an unknown tap."""
    try:
        entries = NAMES.validate_python(dict(names))
    except ValidationError as error:
        raise TraceError(f"the map of names is wrong: {reason_of(error)}") from error
    for tap, entry in entries.items():
        theirs, axes = entry["name"], entry.get("axes")
        first = tap.replace("{i}", "0")
        known = first.startswith(GRADIENT) or first in (*INPUTS, LOSSES, SENTENCE)
        if not known and tap_shape(first, config, (1, 1), 1) is None:
            near = near_names(tap, [*tap_shapes(), *(f"layers.{{i}}.{tap}" for tap in LAYER_TAPS)])
            raise TraceError(
                f"the map names {shortened(tap)}, which is no tap" + (f"; near: {', '.join(near)}" if near else "")
            )
        layers = range(config.num_hidden_layers) if "{i}" in tap else (0,)
        yield [(tap.replace("{i}", str(i)), theirs.replace("{i}", str(i)), axes) for i in layers]


def _with_our_axes(tap: str, tensor: Tensor, axes: str, config: XLMRobertaConfig) -> Tensor:
    letters = axes.split()
    ours = _our_letters(tap)
    if "T" in letters and ours[:2] == ["B", "S"]:
        ours = ["T", *ours[2:]]  # packed: `fitted` puts it in its places
    stored = tuple(tensor.shape)
    fine = [part for letter in letters for part in ("N D" if letter == "H" and "N" in ours else letter).split()]
    if "B" not in fine and "T" not in fine:
        tensor, fine = tensor[None], ["B", *fine]
        letters = ["B", *letters]
    if tensor.dim() != len(letters) or sorted(fine) != sorted(ours):
        raise TraceError(f"{tap}: axes {axes!r} do not fit a tensor of shape {stored}; ours are {' '.join(ours)}")
    sizes = {"N": config.num_attention_heads, "D": config.head_dim, "F": config.intermediate_size}
    for letter, size in zip(letters, tensor.shape, strict=True):
        if size != sizes.get(letter, size):
            raise TraceError(
                f"{tap}: axes {axes!r} do not fit a tensor of shape {stored}: {letter} has {size} entries, "
                f"the config says {sizes[letter]}"
            )
    split = tensor
    for axis in reversed(range(len(letters))):
        if letters[axis] == "H" and "N" in ours:
            if tensor.shape[axis] != config.hidden_size:
                raise TraceError(
                    f"{tap}: axis H has {tensor.shape[axis]} entries, the config says {config.hidden_size}"
                )
            split = split.unflatten(axis, (config.num_attention_heads, config.head_dim))
    ordered = split.permute([fine.index(letter) for letter in ours])
    return ordered.flatten(-2) if ours[-2:] == ["N", "D"] else ordered


def _our_letters(tap: str) -> list[str]:
    shape = shape_of(tap)
    if shape is None:
        raise TraceError(f"{tap} is no tap: `model.taps()` lists them")
    return AXES.get(shape, shape.strip("()").replace(",", "").replace("*", "B S")).split()


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
