"""Dumps that another program wrote: its names, its axes, its number formats, brought to ours.

A name map is a TOML or JSON file. On the left the tap, on the right what the other program calls it; `{i}` is the
number of a layer. Axes are told by letters, in their order there, where they differ from ours:

    [names]
    "embeddings.output" = "embed"
    "layers.{i}.attention.q" = { name = "blk.{i}.q", axes = "N S D" }   # no batch, heads first
    "layers.{i}.attention.probs" = { name = "blk.{i}.p", axes = "B Q N K" }  # query, heads, key
    "layers.{i}.attention.k" = { name = "blk.{i}.k", axes = "T N D" }   # packed: the tokens of all texts, no padding
"""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.compare import LAYER_SITES, SHAPES, TOP_IDS, shape_of, unpacked
from xlmr_core.parity.gradients import GRADIENT, LOSSES
from xlmr_core.parity.trace import INPUTS, TraceError, read_safetensors

# Our axes by their finest letters: H is all D of all N side by side; Q and K are both S, query and key.
AXES = {"(B, S, H)": "B S N D", "(B, N, S, S)": "B N Q K", "(B, H)": "B N D", "(*, H)": "B S N D"}


def read_dump(path: Path) -> dict[str, Tensor]:
    """Every tensor of an .npz or .safetensors file. Raises TraceError, naming the file, for anything else."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix == ".npz":
        return _read_npz(path)
    raise TraceError(f"{path} is neither .npz nor .safetensors: these are the dumps that can be read")


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        import numpy as np
    except ImportError as error:
        raise TraceError(f"{path} needs numpy to be read: pip install numpy") from error
    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: _as_tensor(arrays[name]) for name in arrays.files}
    except Exception as error:  # zip, zlib and numpy have errors of their own, and a corrupt file finds them all
        raise TraceError(f"{path} is not an .npz file of plain arrays, or it is damaged ({error})") from error


def _as_tensor(array: Any) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="))  # torch has no foreign byte order; this copies, too
    return torch.from_numpy(native)


def read_names(path: Path) -> dict[str, Any]:
    """The table `names` of a TOML or JSON file. Raises TraceError, naming the file, if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else parse_toml(text)
        if "names" not in content:
            raise ValueError("it has no table [names]")
        names = content["names"]
        for tap, entry in names.items():
            if not isinstance(entry, str) and not (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
                raise ValueError(f"{tap} is neither a name nor a table with a name")
        return dict(names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{path} is not a map of names ({type(error).__name__}: {error})") from error


def renamed(dump: Mapping[str, Tensor], names: Mapping[str, Any], config: XLMRobertaConfig) -> dict[str, Tensor]:
    """The tensors that `names` speaks of, under our names and with our axes; others keep theirs.

    A tensor that the dump lacks in some layers is left out, for the comparison to tell. Raises TraceError for a name
    that is not in the dump at all, a tap that does not exist, or axes that do not fit the tensor.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for rows in _expanded(names, config.num_hidden_layers):
        present = [row for row in rows if row[1] in dump]
        if rows and not present:
            tap, theirs, _ = rows[0]
            raise TraceError(
                f"the map says that {tap} is called {theirs!r}, but the dump has no such tensor. "
                f"It has {', '.join(get_close_matches(theirs, dump, n=3) or list(dump)[:5])}, ..."
            )
        for tap, theirs, axes in present:
            used.add(theirs)
            found[tap] = dump[theirs] if axes is None else _with_our_axes(tap, dump[theirs], axes, config)
    return found | {name: tensor for name, tensor in dump.items() if name not in used and name not in found}


def _expanded(names: Mapping[str, Any], num_layers: int) -> Iterator[list[tuple[str, str, str | None]]]:
    """For each entry of the map, in every layer: our name, theirs, the axes. Raises TraceError for an unknown tap."""
    for tap, entry in names.items():
        theirs, axes = (entry, None) if isinstance(entry, str) else (entry["name"], entry.get("axes"))
        first = tap.replace("{i}", "0")
        if shape_of(first) is None and not first.startswith(GRADIENT) and first not in (*INPUTS, LOSSES):
            near = get_close_matches(tap, [*SHAPES, *(f"layers.{{i}}.{site}" for site in LAYER_SITES)], n=2)
            raise TraceError(
                f"the map speaks of {tap!r}, which is no tap" + (f"; near: {', '.join(near)}" if near else "")
            )
        layers = range(num_layers) if "{i}" in tap else (0,)
        yield [(tap.replace("{i}", str(i)), theirs.replace("{i}", str(i)), axes) for i in layers]


def _with_our_axes(tap: str, tensor: Tensor, axes: str, config: XLMRobertaConfig) -> Tensor:
    letters = axes.split()
    ours = _our_letters(tap)
    if "T" in letters and ours[:2] == ["B", "S"]:
        ours = ["T", *ours[2:]]  # packed: `fitted` puts it in its places
    fine = [part for letter in letters for part in ("N D" if letter == "H" and "N" in ours else letter).split()]
    if "B" not in fine and "T" not in fine:
        tensor, fine = tensor[None], ["B", *fine]
        letters = ["B", *letters]
    if tensor.dim() != len(letters) or sorted(fine) != sorted(ours):
        raise TraceError(
            f"{tap}: axes {axes!r} do not fit a tensor of shape {tuple(tensor.shape)}; ours are {' '.join(ours)}"
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
        site: _fitted(site, tensor, _expected_shape(site, expected, config), config, real)
        for site, tensor in dump.items()
    }


def _expected_shape(site: str, expected: Mapping[str, Tensor], config: XLMRobertaConfig) -> tuple[int, ...] | None:
    if site == "lm_head.logits" and site not in expected and TOP_IDS in expected:
        return (*expected[TOP_IDS].shape[:2], config.vocab_size)
    return tuple(expected[site].shape) if site in expected else None


def _fitted(site: str, tensor: Tensor, shape: tuple[int, ...] | None, config: XLMRobertaConfig, real: Tensor) -> Tensor:
    if shape is None or tensor.shape == shape:
        return tensor
    readings = [tensor] if tensor.dim() != len(shape) - 1 else []
    if shape[0] == 1:
        readings.append(tensor[None])
    elif shape[:2] == tuple(real.shape) and len(tensor) == int(real.sum()):
        readings.append(unpacked(site, tensor, real))
    if shape_of(site) == "(B, S, H)":
        heads_apart = (shape[0], shape[1], config.num_attention_heads, config.head_dim)
        for reading in tuple(readings):
            if reading.shape == heads_apart:
                readings.append(reading.flatten(2))
            if reading.dim() == 4 and reading.transpose(1, 2).shape == heads_apart:
                readings.append(reading.transpose(1, 2).flatten(2))
    fitting = [reading for reading in readings if reading.shape == shape]
    return fitting[0] if len(fitting) == 1 else tensor
