"""Other orders of the entries along one axis: backwards, moved, exchanged, heads in turn."""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _exchanged_halves(x: Tensor, dim: int) -> Tensor:
    return x.roll(x.shape[dim] // 2, dim) if x.shape[dim] % 2 == 0 else x


def _turned(x: Tensor, heads: int, dim: int) -> Tensor:
    """(N, D) features laid out as (D, N)."""
    return x.unflatten(dim, (heads, -1)).transpose(dim, dim - 1).flatten(dim - 1, dim)


def _turned_back(x: Tensor, heads: int, dim: int) -> Tensor:
    return x.unflatten(dim, (-1, heads)).transpose(dim, dim - 1).flatten(dim - 1, dim)


def by_head(x: Tensor, heads: int, dim: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule for (..., N, D) on features."""
    moved = x.movedim(dim, -1)
    return rule(moved.unflatten(-1, (heads, -1))).flatten(-2).movedim(-1, dim)


Rule = Callable[[Tensor, int], Tensor]  # of a tensor and the number of heads


def orders(dim: int, of: str) -> dict[str, Rule]:
    """Changes of the order along the axis of features."""
    return {
        f"{of} backwards": lambda x, n: x.flip(dim),
        f"halves of the {of} exchanged": lambda x, n: _exchanged_halves(x, dim),
        f"{of} moved by one": lambda x, n: x.roll(1, dim),
        f"{of} moved by one back": lambda x, n: x.roll(-1, dim),
        f"{of} moved by two": lambda x, n: x.roll(2, dim),
        f"{of} moved by two back": lambda x, n: x.roll(-2, dim),
        f"{of} of the heads in turn": lambda x, n: _turned(x, n, dim),
        f"{of} of the heads gathered": lambda x, n: _turned_back(x, n, dim),
        f"heads of the {of} backwards": lambda x, n: by_head(x, n, dim, lambda y: y.flip(-2)),
        f"heads of the {of} moved by one": lambda x, n: by_head(x, n, dim, lambda y: y.roll(1, -2)),
        f"heads of the {of} moved by one back": lambda x, n: by_head(x, n, dim, lambda y: y.roll(-1, -2)),
        f"the first two heads of the {of} exchanged": lambda x, n: by_head(x, n, dim, _first_two),
        f"{of} backwards in each head": lambda x, n: by_head(x, n, dim, lambda y: y.flip(-1)),
        f"halves of the {of} of each head exchanged": lambda x, n: by_head(
            x, n, dim, lambda y: _exchanged_halves(y, -1)
        ),
        f"even and odd {of} exchanged": lambda x, n: _pairs(x, dim),
        f"even {of} before odd ones": lambda x, n: torch.cat(_evens_and_odds(x, dim), dim),
        f"even {of} before odd ones in each head": lambda x, n: by_head(
            x, n, dim, lambda y: torch.cat(_evens_and_odds(y, -1), -1)
        ),
    }


def _first_two(x: Tensor) -> Tensor:  # (..., N, D)
    return x[..., [1, 0, *range(2, x.shape[-2])], :]


def _evens_and_odds(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(x.shape[dim], device=x.device)
    return x.index_select(dim, places[::2]), x.index_select(dim, places[1::2])


def _pairs(x: Tensor, dim: int) -> Tensor:
    if x.shape[dim] % 2:
        return x
    return x.unflatten(dim, (-1, 2)).flip(dim).flatten(dim - 1, dim)
