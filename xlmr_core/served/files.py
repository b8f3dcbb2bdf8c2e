"""Texts, vectors and scores in the files that people have them in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlmr_core.errors import shortened
from xlmr_core.parity.dump_files import SUFFIXES, shapes_in, tensors_in
from xlmr_core.served.pipeline import Input
from xlmr_core.text_files import read_lines

PAIR = ("query", "passage")  # the fields of a line that holds a pair
MOST_NUMBERS = 2**28  # of an array: 2 GiB in float64


def read_inputs(path: Path) -> list[Input]:
    """The texts of a file: a line each, or in .jsonl a string, a list of two, {"text"} or {"query", "passage"}.

    Raises:
        ValueError: A line is something else, or not UTF-8; the message names it.
    """
    lines = read_lines(path)
    if path.suffix != ".jsonl":
        return [(line,) for line in lines]
    return [_input(_json(path, number, line), f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _input(found: Any, place: str) -> Input:
    if isinstance(found, dict):
        found = [found[name] for name in PAIR] if set(PAIR) <= found.keys() else found.get("text")
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'{place} is not a text, a list of two texts, {{"text"}} or {{"query", "passage"}}')
    return tuple(texts)


def read_values(path: Path, name: str | None = None) -> Tensor:
    """The vectors or scores of a file: .npy, .npz, .safetensors, or .jsonl with a list or a number in each line.

    Args:
        path: The file.
        name: Of the array in it, or of the field of each line; by default the only array, or "embedding" or "score".

    Raises:
        ValueError: The file cannot be read so, or it holds several arrays and no name was given.
    """
    if path.suffix == ".jsonl":
        return _from_lines(path, name)
    if path.suffix == ".npy":
        return _as_floats(path, _from_npy(path))
    if path.suffix in SUFFIXES:
        shapes = shapes_in(path)
        chosen = _only(path, list(shapes), name)
        _check_shape(path, shapes[chosen])
        [(_, values)] = tensors_in(path, {chosen: math.prod(shapes[chosen])})
        return _as_floats(path, values)
    raise ValueError(f"{path} is not .npy, .npz, .safetensors or .jsonl, which vectors are read from")


def _only(path: Path, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ValueError(f"{path} holds {', '.join(names) or 'no array'}: name one of them (--array)")
    return name


def _from_npy(path: Path) -> Tensor:
    from numpy.lib import format as npy

    with path.open("rb") as file:
        try:
            array = npy.read_array(file, allow_pickle=False)
        except Exception as error:  # numpy has errors of its own, and a corrupt file finds them all
            raise ValueError(f"{path} is not an .npy file, or it is damaged ({shortened(str(error))})") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} holds {array.dtype}; an array of real numbers is expected")
    return torch.from_numpy(array.astype(np.float64))


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) not in (1, 2):
        raise ValueError(f"{path} holds an array of shape {shape}; (texts, features) or (texts) is read")
    if math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"{path} holds an array of shape {shape}: at most {MOST_NUMBERS:,} numbers are read")


def _as_floats(path: Path, values: Tensor) -> Tensor:
    _check_shape(path, tuple(values.shape))
    return values.double()


def _from_lines(path: Path, name: str | None) -> Tensor:
    rows: list[list[float]] = []
    for number, line in enumerate(read_lines(path), start=1):
        found = _json(path, number, line)
        if isinstance(found, dict):
            found = found.get(name or ("embedding" if "embedding" in found else "score"))
        rows.append(as_numbers(found if isinstance(found, list) else [found], f"{path}, line {number}"))
    return as_rows(rows, str(path))


def _json(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error})") from error


def as_numbers(found: Any, place: str) -> list[float]:
    """A list of numbers from JSON. Raises ValueError for anything else, and for NaN and infinity."""
    if not isinstance(found, list) or not found:
        raise ValueError(f"{place} does not hold a list of numbers, but {_short(found)}")
    for number in found:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{place} holds {_short(number)} where a number is expected")
    try:
        numbers = [float(number) for number in found]
    except OverflowError:  # an integer of more than 308 digits
        numbers = [math.inf]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{place} holds NaN, infinity, or a number too large for float64")
    return numbers


def as_rows(rows: list[list[float]], place: str) -> Tensor:
    """Lists of one length as (N, D). Raises ValueError where the lengths differ."""
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        raise ValueError(
            f"{place} holds vectors of {', '.join(map(str, widths)) or 'no'} numbers: one size is expected"
        )
    return torch.tensor(rows, dtype=torch.float64)


def _short(found: Any) -> str:
    shown = repr(found)
    return shown if len(shown) <= 60 else shown[:57] + "..."
