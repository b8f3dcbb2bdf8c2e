"""Changes of a tensor of the checkpoint: a matrix (out, in) or a vector.

The name of each is how a report says it.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from xlmr_core.parity.grammar.orders import Rule, orders
from xlmr_core.parity.grammar.precision import EIGHTHS, EVEN, PRECISIONS, QUANTISED, by_codes, in_steps

# ---- pruning ---------------------------------------------------------------------------------------------------------


def _without_smallest(w: Tensor, percent: int, *, by_row: bool, by_quantile: bool) -> Tensor:
    """Matrix or rows without so many of their smallest entries.

    Ports count them (n * percent // 100), or compare with a quantile, which may be one entry more.
    """
    sizes = w.abs() if by_row else w.abs().flatten()
    place = percent * (sizes.shape[-1] - 1) / 100 if by_quantile else percent * sizes.shape[-1] // 100 - 1
    if place < 0:
        return w
    limit = sizes.kthvalue(int(place) + 1, dim=-1, keepdim=True).values
    return w.masked_fill(w.abs() <= limit, 0)


def _two_of_four(w: Tensor) -> Tensor:
    """Of each four entries of a row only the two largest are left (Mishra et al. 2021)."""
    fours = w.unflatten(-1, (-1, 4))
    order = fours.abs().argsort(dim=-1, stable=True)
    if w.dtype != torch.float64:  # of equal entries the other one: which is kept is rounding
        order = 3 - fours.flip(-1).abs().argsort(dim=-1, stable=True)
    return fours.scatter(-1, order[..., :2], 0).flatten(-2)


PRUNED: dict[str, Rule] = {
    **{
        f"the smallest {percent} %{of} are 0{how}": lambda w, n, percent=percent, row=bool(of), quantile=bool(how): (
            _without_smallest(w, percent, by_row=row, by_quantile=quantile)
        )
        for percent in (1, 2, 5, 10, 15, 20, 25, 30, 33, 40, 50, 60, 70, 75, 80, 90)
        for of in ("", " of each row")
        for how in ("", ", by their quantile")
    },
    **{
        f"entries below {limit} are 0": lambda w, n, limit=limit: w.masked_fill(w.abs() < limit, 0)
        for limit in (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    },
    "two of each four entries are 0": lambda w, n: _two_of_four(w),
}


def without_smaller(matrix: Tensor, rank: int) -> Tensor:
    """The matrix of this rank that is nearest (Eckart and Young 1936)."""
    wide = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()  # torch has no other
    left, sizes, right = torch.linalg.svd(wide, full_matrices=False)
    return ((left[:, :rank] * sizes[:rank]) @ right[:rank]).to(matrix)


# ---- blocks and quantised weights that are read wrongly --------------------------------------------------------------


def _joined(w: Tensor, order: tuple[int, ...], dim: int) -> Tensor:
    """The shards of a matrix in another order."""
    if w.shape[dim] % len(order):
        raise ValueError(f"{w.shape[dim]} do not split into {len(order)} parts")
    parts = w.chunk(len(order), dim)
    return torch.cat([parts[part] for part in order], dim)


def _blocks_transposed(w: Tensor, size: int) -> Tensor:
    blocks = w.unflatten(0, (-1, size)).unflatten(2, (-1, size))  # (rows, size, columns, size)
    return blocks.transpose(1, 3).flatten(2).flatten(0, 1)


def _steps(x: Tensor, dim: int | tuple[int, int], top: int = 127) -> Tensor:
    """The steps of a quantiser: one for each slice along `dim`, whose largest entry has the number `top`."""
    return (x.abs().amax(dim, keepdim=True).float() / top).clamp(min=1e-30)


def _with_other_scales(w: Tensor, size: int, by: int) -> Tensor:
    """Int8 in groups of a row, each times the scale of another group."""
    groups = w.unflatten(-1, (-1, size))
    steps = _steps(groups, -1)
    return (in_steps(groups, steps) * steps.roll(by, -2)).flatten(-2).to(w)


def _by_another_zero(w: Tensor, by: int) -> Tensor:
    """Uint8 by row, from its smallest entry to its largest, with a zero point that is not the one it was made with."""
    x = w.float()  # as a checkpoint is: on it each entry falls to the same side
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-30)
    return (((in_steps(w - low, step)) + by) * step + low).to(w)


def _cut_to_int8(w: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """Int8 by rows, or by tensor, cut off and not rounded."""
    step = _steps(w, dim)
    return ((w.float() / step).trunc() * step).to(w)


def _by_scales_of_the_other_axis(w: Tensor, dim: int) -> Tensor:
    """Int8 with a scale for each row (or column), and scaled by those of the columns (or rows)."""
    if w.shape[0] != w.shape[1]:
        raise ValueError(f"the scales of {w.shape[dim - 1]} do not fit {w.shape[dim]}")
    step = _steps(w, dim)
    return (in_steps(w, step) * step.T).to(w)


def with_scales_of(w: Tensor, other: Tensor, by: str) -> Tensor:
    """Int8 by "row" or "tensor", times the scales of another matrix with as many rows."""
    dim = -1 if by == "row" else (-2, -1)
    return (in_steps(w, _steps(w, dim)) * _steps(other, dim)).to(w)


def _halves_of_bytes_exchanged(w: Tensor, size: int) -> Tensor:
    """Int4 in groups of a row, two columns in a byte, read in the wrong order."""
    exchanged = w.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return QUANTISED[f"quantised to int4 in groups of {size}"](exchanged).to(w)


def _overflowing(w: Tensor) -> Tensor:
    """Int8 by rows of 128 steps and without a limit: +128 is read as -128."""
    step = _steps(w, -1, 128)
    codes = in_steps(w, step)
    return (torch.where(codes == 128, -128.0, codes) * step).to(w)


REQUANTISED: dict[str, Rule] = {
    "quantised to int8 by row, of 128 steps, and +128 read as -128": lambda w, n: _overflowing(w),
    "cut off to int8 by row, not rounded": lambda w, n: _cut_to_int8(w, -1),
    "cut off to int8 by tensor, not rounded": lambda w, n: _cut_to_int8(w, (-2, -1)),
    "quantised to int8 by row, and its columns multiplied by the scales of the rows": lambda w, n: (
        _by_scales_of_the_other_axis(w, -1)
    ),
    "quantised to int8 by column, and its rows multiplied by the scales of the columns": lambda w, n: (
        _by_scales_of_the_other_axis(w, -2)
    ),
    **{
        f"quantised to int8 in groups of {size}, with the scales of the groups {which}": (
            lambda w, n, size=size, by=by: _with_other_scales(w, size, by)
        )
        for size in (8, 16, 32, 64, 128)
        for which, by in (("before", 1), ("after", -1))
    },
    **{
        f"quantised to int4 in groups of {size}, with each two columns exchanged": lambda w, n, size=size: (
            _halves_of_bytes_exchanged(w, size)
        )
        for size in (32, 64, 128)
    },
    **{
        f"quantised to NF4 in groups of {size}, whose codes are read as even steps {words}": (
            lambda w, n, size=size, table=table: by_codes(size, table)(w)
        )
        for size in (32, 64)
        for words, table in (("from -1 to 1", EVEN), ("of 1/8", EIGHTHS))
    },
    **{
        f"quantised to uint8 by row, with zero points one too {which}": lambda w, n, by=by: _by_another_zero(w, by)
        for which, by in (("high", -1), ("low", 1))
    },
}
SHARDED: dict[str, Rule] = {
    f"joined from {len(order)} parts of its {of} in the order {', '.join(map(str, order))}": (
        lambda w, n, order=order, dim=dim: _joined(w, order, dim)
    )
    for dim, of in ((-1, "columns"), (0, "rows"))
    for parts in (3, 4)
    for order in permutations(range(parts))
    if order != tuple(range(parts))
}
MISREAD: dict[str, Rule] = {
    **SHARDED,
    **{
        f"transposed in each block of {size} x {size}": lambda w, n, size=size: _blocks_transposed(w, size)
        for size in (2, 4, 8, 16, 32, 64, 128)
    },
    **REQUANTISED,
}

# ---- all changes -----------------------------------------------------------------------------------------------------

RESHAPED = "reshaped where it should be transposed"  # of a file that has it as (in, out)
VECTORS: dict[str, Rule] = {
    **{name: (lambda w, n, rule=rule: rule(w)) for name, rule in PRECISIONS.items()},
    **orders(-1, "entries"),
}
MATRICES: dict[str, Rule] = {
    RESHAPED: lambda w, n: w.T.reshape(w.shape) if w.shape[0] != w.shape[1] else w,
    "transposed": lambda w, n: w.T if w.shape[0] == w.shape[1] else w.reshape(w.shape[1], w.shape[0]).T,
    **{name: (lambda w, n, rule=rule: rule(w)) for name, rule in PRECISIONS.items()},
    **orders(-1, "columns"),
    **orders(0, "rows"),
    "transposed in each head": lambda w, n: w.unflatten(0, (n, -1)).unflatten(-1, (n, -1)).permute(2, 1, 0, 3).reshape(
        w.shape
    ) if w.shape[0] == w.shape[1] else w,
}  # fmt: skip

WEIGHTS = {**VECTORS, **MATRICES, **PRUNED, **MISREAD}


# ---- fused projections -----------------------------------------------------------------------------------------------


def cut(parts: tuple[Tensor, ...], heads: int, index: int, kind: str) -> Tensor:
    """One of several matrices that were fused, cut out of the fused one in the wrong order.

    Args:
        parts: The right matrices (H, H) or vectors (H,).
        heads: Their number N.
        index: Which of the parts is cut out.
        kind: "by head": the fused one is (parts, N, D, ...) and read as (N, parts, D, ...); "in turn": as (H, parts).
    """
    fused = torch.stack(parts)  # (P, H, ...)
    count, rest = len(parts), fused.shape[2:]
    flat = fused.flatten(0, 1)
    if kind == "by head":
        read = flat.reshape(heads, count, -1, *rest)
        return read[:, index].flatten(0, 1)
    if kind == "in turn":
        return flat.reshape(-1, count, *rest)[:, index]
    if kind in LAID_OUT:  # the file has (N, parts, D), which is read as (parts, N, D)
        laid = fused.unflatten(1, (LAID_OUT[kind] or heads, -1)).transpose(0, 1).flatten(0, 2)
        return laid.unflatten(0, (count, -1))[index]
    laid = fused.transpose(0, 1).flatten(0, 1)  # the file has (H, parts)
    return laid.unflatten(0, (count, -1))[index]


LAID_OUT = {"laid out by head": 0, **{f"laid out by {ranks} ranks": ranks for ranks in (2, 4, 8)}}
CUTS = ("by head", "in turn", *LAID_OUT, "laid out in turn")
