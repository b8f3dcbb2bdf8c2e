"""The variants of norms and pooling, and of splitting and merging heads.

Each table maps the name of a variant to its function. The right variants are among them, so that a term is evaluated
in one way.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.tokens import ends, inner, starts

# ---- norms -----------------------------------------------------------------------------------------------------------


def _standard(x: Tensor, eps: Tensor, dim: int | tuple[int, ...] = -1, correction: int = 0) -> Tensor:
    return (x - x.mean(dim=dim, keepdim=True)) / (_variance(x, dim, correction) + eps).sqrt()


def _spread(x: Tensor, correction: int = 0) -> Tensor:
    return _variance(x, -1, correction).sqrt()


def _variance(x: Tensor, dim: int | tuple[int, ...], correction: int) -> Tensor:
    if correction and x.shape[-1] == 1:
        raise ValueError("one feature has no unbiased variance")  # torch warns, and gives NaN
    return x.var(dim=dim, keepdim=True, correction=correction)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def _by_part(x: Tensor, eps: Tensor, part: Tensor) -> Tensor:
    """All features by the mean and the variance of some of them."""
    return (x - part.mean(dim=-1, keepdim=True)) / (_variance(part, -1, 0) + eps).sqrt()


def _rms(x: Tensor, eps: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def _in_steps(x: Tensor, eps: Tensor, kind: str) -> Tensor:
    """Every step is rounded: mean, difference, variance, root and quotient."""
    rounded = PRECISIONS[kind]
    x = rounded(x)
    centred = rounded(x - rounded(x.mean(dim=-1, keepdim=True)))
    variance = rounded(rounded(centred.square()).mean(dim=-1, keepdim=True))
    return rounded(centred / rounded(rounded(variance + rounded(eps)).sqrt()))


def _fast_inverse_root(x: Tensor) -> Tensor:
    """1 / sqrt(x) from the bits of float32 and one step of Newton's method (Lomont 2003)."""
    guess = (0x5F3759DF - (x.float().view(torch.int32) >> 1)).view(torch.float32).to(x)
    return guess * (1.5 - 0.5 * x * guess * guess)


NARROW_NORMS = {"in float16": "rounded to float16", "in bfloat16": "rounded to bfloat16"}
NORMS: dict[str | None, Callable[[Tensor, Tensor, int], Tensor]] = {  # of values, eps and the number of heads
    None: lambda x, eps, heads: _standard(x, eps),
    "unbiased": lambda x, eps, heads: _standard(x, eps, correction=1),
    "eps outside": lambda x, eps, heads: _centred(x) / (_spread(x) + eps),
    "eps outside, unbiased": lambda x, eps, heads: _centred(x) / (_spread(x, 1) + eps),
    "eps not under the root of the sum": lambda x, eps, heads: _centred(x) / (_spread(x) + eps.abs().sqrt()),
    "rms": lambda x, eps, heads: _rms(x, eps),
    "length 1": lambda x, eps, heads: x / x.norm(dim=-1, keepdim=True),
    "mean only": lambda x, eps, heads: _centred(x),
    "variance only": lambda x, eps, heads: x / (x.var(dim=-1, keepdim=True, correction=0) + eps).sqrt(),
    "centred, divided by the mean square of what is not centred": lambda x, eps, heads: (
        _centred(x) / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    ),
    "without root": lambda x, eps, heads: _centred(x) / (x.var(dim=-1, keepdim=True, correction=0) + eps),
    "absolute deviation": lambda x, eps, heads: _centred(x) / (_centred(x).abs().mean(dim=-1, keepdim=True) + eps),
    "over tokens": lambda x, eps, heads: _standard(x, eps, dim=-2),
    "over tokens and features": lambda x, eps, heads: _standard(x, eps, dim=(-2, -1)),
    "by head": lambda x, eps, heads: _standard(x.unflatten(-1, (heads, -1)), eps).flatten(-2),
    "rms by head": lambda x, eps, heads: _rms(x.unflatten(-1, (heads, -1)), eps).flatten(-2),
    "over the batch": lambda x, eps, heads: _standard(x, eps, dim=0),
    **{name: lambda x, eps, heads, kind=kind: _in_steps(x, eps, kind) for name, kind in NARROW_NORMS.items()},
    "largest value": lambda x, eps, heads: _centred(x) / (_centred(x).abs().amax(dim=-1, keepdim=True) + eps),
    "fast inverse square root": lambda x, eps, heads: _centred(x) * _fast_inverse_root(_spread(x).square() + eps),
    **{
        f"by mean and variance of {which} {name} of the features": lambda x, eps, heads, parts=parts, at=at: _by_part(
            x, eps, x.chunk(parts, -1)[at]
        )
        for parts, name in ((2, "half"), (4, "quarter"))
        for at, which in ((0, "the first"), (-1, "the last"))
    },
    **{
        f"by the mean of the variances of {groups} parts": lambda x, eps, heads, groups=groups: (
            _centred(x) / (_variance(x.unflatten(-1, (groups, -1)), -1, 0).mean(-2) + eps).sqrt()
        )
        for groups in (2, 4, 8, 16)
    },
    **{
        f"in {groups} groups of features": lambda x, eps, heads, groups=groups: _standard(
            x.unflatten(-1, (groups, -1)), eps
        ).flatten(-2)
        for groups in (2, 4, 8, 16, 32)
    },
}


# ---- one vector of many ----------------------------------------------------------------------------------------------


def _mean(x: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.to(x)[:, :, None]
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


def _at(x: Tensor, place: Tensor) -> Tensor:
    return x[torch.arange(len(x)), place.clamp(0, x.shape[1] - 1)]


SELECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of (B, S, H) and real (B, S)
    "first": lambda x, real: x[:, 0],
    "mean": _mean,
    "last": lambda x, real: x[:, -1],
    "last real": lambda x, real: _at(x, real.long().cumsum(1).argmax(1)),
    "last by length": lambda x, real: _at(x, real.sum(1) - 1),
    "second": lambda x, real: x[:, min(1, x.shape[1] - 1)],
    "last but one real": lambda x, real: _at(x, real.long().cumsum(1).argmax(1) - 1),
    "mean over padding": lambda x, real: x.mean(1),
    "mean of real, by the length of the batch": lambda x, real: (x * real.to(x)[:, :, None]).mean(1),
    "mean without <s> and </s>": lambda x, real: _mean(x, inner(real)),
    "mean without <s>": lambda x, real: _mean(x, real & ~starts(real)),
    "mean without </s>": lambda x, real: _mean(x, real & ~ends(real)),
    "max": lambda x, real: x.masked_fill(~real[:, :, None], -math.inf).amax(1),
    "max over padding": lambda x, real: x.amax(1),
    "max with zeros for padding": lambda x, real: (x * real.to(x)[:, :, None]).amax(1),
    "sum": lambda x, real: (x * real.to(x)[:, :, None]).sum(1),
    "sum over padding": lambda x, real: x.sum(1),
    "sum by the root of the length": lambda x, real: (
        (x * real.to(x)[:, :, None]).sum(1) / real.sum(1, keepdim=True).to(x).sqrt()
    ),
    "mean of first and last": lambda x, real: (x[:, 0] + _at(x, real.long().cumsum(1).argmax(1))) / 2,
    "median": lambda x, real: x.masked_fill(~real[:, :, None], math.nan).nanmedian(1).values,
}


# ---- heads -----------------------------------------------------------------------------------------------------------

SPLITS: dict[str | None, Callable[[Tensor, int], Tensor]] = {  # (B, S, H) and N -> (B, N, S, D)
    None: lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2),
    "features in turn": lambda x, n: x.unflatten(-1, (-1, n)).permute(0, 3, 1, 2),
    "no transpose": lambda x, n: x.reshape(x.shape[0], n, x.shape[1], -1),
    "features in turn, no transpose": lambda x, n: x.reshape(x.shape[0], -1, x.shape[1], n).permute(0, 3, 2, 1),
    "heads backwards": lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2).flip(1),
    "heads shifted by one": lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2).roll(1, 1),
    "heads shifted by one back": lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2).roll(-1, 1),
    "the first head for all": lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2)[:, :1].expand(-1, n, -1, -1),
    "pairs of heads share the first": lambda x, n: _shared(x, n, 2, first=True),
    "the first half of the heads, each twice": lambda x, n: _shared(x, n, 2, first=False),
    "the first half of the heads, tiled": lambda x, n: _tiled(x, n),
}
MERGES: dict[str | None, Callable[[Tensor], Tensor]] = {  # (B, N, S, D) -> (B, S, H)
    None: lambda x: x.transpose(1, 2).flatten(2),
    "no transpose": lambda x: x.reshape(x.shape[0], x.shape[2], -1),
    "features in turn": lambda x: x.permute(0, 2, 3, 1).flatten(2),
    "heads backwards": lambda x: x.flip(1).transpose(1, 2).flatten(2),
    "heads shifted by one": lambda x: x.roll(1, 1).transpose(1, 2).flatten(2),
    "heads shifted by one back": lambda x: x.roll(-1, 1).transpose(1, 2).flatten(2),
    "heads and tokens exchanged": lambda x: x.permute(0, 3, 1, 2).reshape(x.shape[0], x.shape[2], -1),
    "features before tokens": lambda x: x.transpose(2, 3).reshape(x.shape[0], x.shape[2], -1),
}


def _shared(x: Tensor, n: int, group: int, *, first: bool) -> Tensor:
    heads = x.unflatten(-1, (n, -1)).transpose(1, 2)
    chosen = heads[:, ::group] if first else heads[:, : max(1, n // group)]
    return chosen.repeat_interleave(group, dim=1)[:, :n] if n > 1 else heads


def _tiled(x: Tensor, n: int) -> Tensor:
    half = x.unflatten(-1, (n, -1)).transpose(1, 2)[:, : max(1, n // 2)]
    return half.repeat(1, 3, 1, 1)[:, :n]
