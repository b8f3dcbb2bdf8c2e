"""The variants of the softmax of attention, from scores (B, N, S, S) and which tokens are real (B, S).

A kernel that goes through the keys tile by tile keeps the largest score and the sum so far, and has to rescale both
when a larger score comes (Milakov and Gimelshein 2018). `TILED` has what such kernels get wrong, as the weight that
each key has in the end.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.tokens import Kind
from xlmr_core.parity.tap_values import HIDDEN


def _by_reciprocal(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    exponentials = (x - x.amax(-1, keepdim=True)).exp()
    return exponentials * rounded(1 / exponentials.sum(-1, keepdim=True))


SOFTMAX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "keys": lambda x, real: x.softmax(-1),
    "queries": lambda x, real: x.softmax(-2),
    "queries, 0 for padded keys": lambda x, real: x.softmax(-2) * real[:, None, None, :],
    "queries of the text": lambda x, real: (
        x.masked_fill(~real[:, None, :, None], -math.inf).softmax(-2).nan_to_num(0.0) * real[:, None, None, :]
    ),
    "heads": lambda x, real: x.softmax(1),
    "the batch": lambda x, real: x.softmax(0),
    "keys, with one more score of 0": lambda x, real: F.pad(x, (0, 1)).softmax(-1)[..., :-1],
    "keys, logarithm": lambda x, real: x.log_softmax(-1),
    "nothing": lambda x, real: torch.where(real[:, None, None, :], x, torch.zeros_like(x)),
    "nothing, sigmoid": lambda x, real: torch.sigmoid(x),
    "nothing, relu": lambda x, real: x.relu() * real[:, None, None, :],
    "keys, by relu": lambda x, real: x.relu() / x.relu().sum(-1, keepdim=True).clamp(min=1e-12),
    "keys, in base 2": lambda x, real: (x * math.log(2)).softmax(-1),
    "keys, twice": lambda x, real: x.softmax(-1).softmax(-1),
    "keys, not divided by the sum": lambda x, real: (x - x.amax(-1, keepdim=True)).exp(),
    "keys and queries together": lambda x, real: x.flatten(-2).softmax(-1).view_as(x),
    **{
        f"keys, multiplied by the reciprocal of the sum, which is {kind}": lambda x, real, kind=kind: _by_reciprocal(
            x, PRECISIONS[kind]
        )
        for kind in ("rounded to float16", "rounded to bfloat16")
    },
    "keys, only the largest of each query": lambda x, real: (x == x.amax(-1, keepdim=True)).to(x),
}


def _largest(x: Tensor, n: int) -> Tensor:
    least = x.topk(min(n, x.shape[-1]), dim=-1).values[..., -1:]
    return x.masked_fill(x < least, -math.inf).softmax(-1)


def _by_power(x: Tensor, n: int) -> Tensor:
    """The n-th power of 1 + x / n, of which e to x is the limit."""
    powers = (1 + (x - x.amax(-1, keepdim=True)) / n).clamp(min=0) ** n
    return powers / powers.sum(-1, keepdim=True)


# ---- tile by tile ----------------------------------------------------------------------------------------------------


def _running(
    x: Tensor, n: int, *, values: bool = True, sums: bool = True, power: Callable[[Tensor], Tensor] = torch.exp
) -> Tensor:
    """The softmax by tiles of n keys. `values`, `sums`: whether those of earlier tiles are rescaled, by `power`."""
    top = x.new_full((*x.shape[:-1], 1), -math.inf)
    total, weights = torch.zeros_like(top), x[..., :0]
    for tile in x.split(n, dim=-1):
        new = torch.maximum(top, tile.amax(-1, keepdim=True))
        own, scale = (tile - new).exp(), power(top - new)
        total = total * (scale if sums else 1) + own.sum(-1, keepdim=True)
        weights = torch.cat([weights * (scale if values else 1), own], dim=-1)
        top = new
    return weights / total


def _by_tile(x: Tensor, n: int) -> list[Tensor]:
    """e to the scores of each tile less their largest; 0 for hidden keys."""
    return [
        (tile - tile.amax(-1, keepdim=True)).exp() * (tile > HIDDEN).to(tile) for tile in x.split(n, dim=-1)
    ]  # fmt: skip


def _own_largest(x: Tensor, n: int) -> Tensor:
    joined = torch.cat(_by_tile(x, n), dim=-1)
    return joined / joined.sum(-1, keepdim=True)


def _each_by_itself(x: Tensor, n: int) -> Tensor:
    return torch.cat([tile / tile.sum(-1, keepdim=True).clamp(min=1e-30) for tile in _by_tile(x, n)], dim=-1)


def _by_largest(x: Tensor, n: int) -> Tensor:
    """Each tile by itself, then weighted by e to its largest score, without its sum."""
    largest = torch.stack([tile.amax(-1, keepdim=True) for tile in x.split(n, dim=-1)]).softmax(0)
    tiles = _each_by_itself(x, n).split(n, dim=-1)
    return torch.cat([tile * its for tile, its in zip(tiles, largest, strict=True)], dim=-1)


def _averaged(x: Tensor, n: int) -> Tensor:
    """The mean of the tiles that have a real key."""
    each = _each_by_itself(x, n)
    return each / each.sum(-1, keepdim=True)


def _by_last_sum(x: Tensor, n: int) -> Tensor:
    exponentials = (x - x.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.split(n, dim=-1)[-1].sum(-1, keepdim=True).clamp(min=1e-30)


def _kept(x: Tensor, keep: Callable[[int], bool]) -> Tensor:
    """The softmax over some of the keys."""
    places = torch.tensor([keep(place) for place in range(x.shape[-1])], device=x.device)
    return x.masked_fill(~places, -math.inf).softmax(-1).nan_to_num(0.0)


def _overlapping(x: Tensor, n: int) -> Tensor:
    """The last tile begins too early, so that it is whole: some keys are counted twice."""
    size = x.shape[-1]
    times = torch.ones(size, dtype=x.dtype, device=x.device)
    if size % n and size > n:
        times[size - n : size // n * n] = 2
    exponentials = (x - x.amax(-1, keepdim=True)).exp() * times
    return exponentials / exponentials.sum(-1, keepdim=True)


def _moved(x: Tensor, n: int, *, to_first: bool) -> Tensor:
    """The values of a tile are those of the tile before it, or those of the first tile."""
    tiles = list(F.pad(x.softmax(-1), (0, -x.shape[-1] % n)).split(n, dim=-1))
    first = sum(tiles[1:], start=tiles[0])
    rest = [torch.zeros_like(tile) for tile in tiles[1:]]
    moved = [first, *rest] if to_first else [sum(tiles[1:2], start=tiles[0]), *tiles[2:], *rest[:1]]
    return torch.cat(moved, dim=-1)[..., : x.shape[-1]]


TILED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "keys, in tiles of {}: what is summed of earlier tiles is not rescaled": lambda x, n: _running(
        x, n, values=False, sums=False
    ),
    "keys, in tiles of {}: the values of earlier tiles are not rescaled": lambda x, n: _running(
        x, n, values=False, sums=True
    ),
    "keys, in tiles of {}: the sum of earlier tiles is not rescaled": lambda x, n: _running(
        x, n, values=True, sums=False
    ),
    "keys, in tiles of {}: earlier tiles are rescaled by a power of 2, not of e": lambda x, n: _running(
        x, n, power=torch.exp2
    ),
    "keys, in tiles of {}, each less its own largest score": _own_largest,
    "each tile of {} keys, and summed": _each_by_itself,
    "each tile of {} keys, and merged by their largest scores, without their sums": _by_largest,
    "each tile of {} keys, and averaged": lambda x, n: _each_by_itself(x, n) / len(x.split(n, dim=-1)),
    "each tile of {} keys, and averaged over the tiles with real keys": _averaged,
    "keys, in tiles of {}, divided by the sum of the last tile": _by_last_sum,
    "keys without the first tile of {}": lambda x, n: _kept(x, lambda place: place >= n),
    "the first tile of {} keys only": lambda x, n: _kept(x, lambda place: place < n),
    "the last tile of {} keys only": lambda x, n: _kept(x, lambda place: place // n == (x.shape[-1] - 1) // n),
    "keys without the last tile, which is whole, of {}": lambda x, n: _kept(
        x, lambda place: x.shape[-1] % n > 0 or place < x.shape[-1] - n
    ),
    "keys without those that fill no whole tile of {}": lambda x, n: _kept(
        x, lambda place: place < x.shape[-1] // n * n
    ),
    "keys, in tiles of {}, some in two of them: the last begins too early": _overlapping,
    "keys, and scores of 0 that fill the last tile of {}": lambda x, n: F.pad(x, (0, -x.shape[-1] % n)).softmax(-1)[
        ..., : x.shape[-1]
    ],
    "keys, in tiles of {}, with the values of the tile before": lambda x, n: _moved(x, n, to_first=False),
    "keys, in tiles of {}, with the values of the first tile": lambda x, n: _moved(x, n, to_first=True),
}
CUTTING = "keys without those that fill no whole tile of {}"
BY_NUMBER: dict[str, Callable[[Tensor, int], Tensor]] = {
    **TILED,
    "keys, only the {} largest of each query": _largest,
    "keys, with (1 + x / {0})^{0} for e^x": _by_power,
}
TILES = (2, 4, 8, 16, 32, 64, 128, 256)
POWERS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def softmax(kind: Kind, scores: Tensor, real: Tensor) -> Tensor:
    """The probs by a variant of the softmax."""
    if isinstance(kind, tuple):
        name, number = kind
        return BY_NUMBER[name](scores, number)
    return SOFTMAX[kind](scores, real)


def numbered(size: int) -> list[Kind]:
    """The variants with a number, for so many keys."""
    tiles = sorted({n for n in (*TILES, -(-size // 2), size // 2, -(-size // 4)) if 1 < n < size})
    counts = [n for n in (2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256) if n < size]
    running = [(name, n) for name in TILED for n in tiles if name != CUTTING or size % n]
    largest = [("keys, only the {} largest of each query", n) for n in counts]
    powers = [("keys, with (1 + x / {0})^{0} for e^x", n) for n in POWERS]
    return [*running, *largest, *powers]
