"""Which token of a batch is which: the first and the last of each text, distances, and rows that belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def distances(size: int, real: Tensor) -> Tensor:
    """How far each key is behind its query, (1, 1, S, S)."""
    places = torch.arange(size, device=real.device)
    return (places[:, None] - places[None, :])[None, None]


def counted(real: Tensor) -> Tensor:
    """(B, S): the number of each real token in its text, from 1; that of the token before for padding."""
    return real.long().cumsum(dim=1)


def starts(real: Tensor) -> Tensor:
    """(B, S): the first real token of each row."""
    return real & (counted(real) == 1)


def ends(real: Tensor) -> Tensor:
    """(B, S): the last real token of each row."""
    return real & (counted(real) == real.sum(1, keepdim=True))


def inner(real: Tensor) -> Tensor:
    """(B, S): the real tokens without <s> and </s>."""
    return real & ~starts(real) & ~ends(real)


def in_rows(x: Tensor, rows: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule for the axis of the batch, where several runs of the batch lie one after the other on that axis."""
    if x.shape[0] == rows or x.shape[0] % rows:
        return rule(x)
    runs = [rule(run) for run in x.split(rows)]
    return torch.cat(runs)


def by_length(x: Tensor, real: Tensor, rows: int, *, longest_first: bool) -> Tensor:
    """The rows of the batch sorted by the length of their texts."""
    order = real[:rows].sum(1).argsort(descending=longest_first, stable=True)
    return in_rows(x, rows, lambda run: run[order] if len(run) == len(order) else run)


def pairs_exchanged(x: Tensor) -> Tensor:
    """The first row and the second change places, the third and the fourth, and so on."""
    order = torch.arange(len(x), device=x.device)
    even = len(x) // 2 * 2
    order[:even] = order[:even].unflatten(0, (-1, 2)).flip(1).flatten()
    return x[order]


def two_exchanged(x: Tensor, a: int, b: int) -> Tensor:
    """Two rows change places; a batch of one row stays as it is."""
    order = torch.arange(len(x), device=x.device)
    if len(x) > 1:
        order[[a, b]] = order[[b, a]]
    return x[order]


# ---- variants with whole numbers in them -----------------------------------------------------------------------------

Kind = Any  # the name of a variant, or (its name with {} for each number, the numbers...); None for the right one


def in_words(kind: Kind) -> str:
    """The name of a variant."""
    return kind[0].format(*kind[1:]) if isinstance(kind, tuple) else str(kind)


def whole_numbers(size: int, least: int = 1) -> list[int]:
    """Numbers up to a size: all small ones, and powers of two."""
    powers = [2**n for n in range(17)]
    return [n for n in range(least, size) if n <= 48 or n in powers]
