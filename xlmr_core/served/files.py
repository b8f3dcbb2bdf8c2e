"""Texts, vectors and scores in the files that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlmr_core.served.pipeline import Input

PAIR = ("query", "passage")  # the fields of a line that holds a pair


def read_inputs(path: Path) -> list[Input]:
    """The texts of a file: a line each, or in .jsonl a string, a list of two, {"text"} or {"query", "passage"}.

    Raises:
        ValueError: A line is something else; the message names it.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
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
        return _as_floats(path, torch.from_numpy(np.load(path, allow_pickle=False)))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return _as_floats(path, torch.from_numpy(file[_only(path, list(file.files), name)]))
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return _as_floats(path, file.get_tensor(_only(path, list(file.keys()), name)))
    raise ValueError(f"{path} is not .npy, .npz, .safetensors or .jsonl, which vectors are read from")


def _only(path: Path, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ValueError(f"{path} holds {', '.join(names) or 'no array'}: name one of them (--array)")
    return name


def _as_floats(path: Path, values: Tensor) -> Tensor:
    if values.dim() not in (1, 2) or values.is_complex():
        raise ValueError(f"{path} holds an array of shape {tuple(values.shape)}; (texts, features) or (texts) is read")
    return values.double()


def _from_lines(path: Path, name: str | None) -> Tensor:
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
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
    rows = torch.tensor(found, dtype=torch.float64)
    if not rows.isfinite().all():
        raise ValueError(f"{place} holds NaN or infinity")
    return rows.tolist()


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
