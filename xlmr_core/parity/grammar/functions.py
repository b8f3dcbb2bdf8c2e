"""The variants of each operation: activations, norms, masks, softmax, pooling, positions, and changes of a tensor.

Each table maps the name of a variant to its function. The right variants are among them, so that a term is evaluated
in one way. `words` gives a variant in words for reports.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu 0.01": F.leaky_relu,
    "leaky relu 0.1": lambda x: F.leaky_relu(x, 0.1),
    "leaky relu 0.2": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "a cut at -1 and 1 (hardtanh)": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "relu squared": lambda x: F.relu(x).square(),
    "square": torch.square,
    "absolute value": torch.abs,
    "gelu without the division by sqrt(2)": lambda x: 0.5 * x * (1 + torch.erf(x)),
    "gelu without the factor 1/2": lambda x: x * (1 + torch.erf(x * 0.5**0.5)),
    "normal distribution function (gelu without its factor x)": lambda x: 0.5 * (1 + torch.erf(x * 0.5**0.5)),
    "tanh gelu without the cubic term": lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * x)),
    "tanh gelu without sqrt(2/pi)": lambda x: 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3)),
    "tanh gelu with 0.044715 inside the root only": lambda x: (
        0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**2)))
    ),
    "tanh gelu with 2/pi for its root": lambda x: 0.5 * x * (1 + torch.tanh(2 / math.pi * (x + 0.044715 * x**3))),
    "quick gelu of 1.7": lambda x: x * torch.sigmoid(1.7 * x),
    "sigmoid gelu of 1.5957": lambda x: x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * x),
    "gelu cut off at 10": lambda x: F.gelu(x).clamp(-10, 10),
    "sine": torch.sin,
    "exponential": torch.exp,
    "arctangent": torch.atan,
}


# ---- norms -----------------------------------------------------------------------------------------------------------


def _standard(x: Tensor, eps: Tensor, dim: int | tuple[int, ...] = -1, correction: int = 0) -> Tensor:
    variance = x.var(dim=dim, keepdim=True, correction=correction)
    return (x - x.mean(dim=dim, keepdim=True)) / (variance + eps).sqrt()


def _spread(x: Tensor, correction: int = 0) -> Tensor:
    return x.var(dim=-1, keepdim=True, correction=correction).sqrt()


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


NORMS: dict[str | None, Callable[[Tensor, Tensor, int], Tensor]] = {  # of values, eps and the number of heads
    None: lambda x, eps, heads: _standard(x, eps),
    "unbiased": lambda x, eps, heads: _standard(x, eps, correction=1),
    "eps outside": lambda x, eps, heads: _centred(x) / (_spread(x) + eps),
    "eps outside, unbiased": lambda x, eps, heads: _centred(x) / (_spread(x, 1) + eps),
    "eps not under the root of the sum": lambda x, eps, heads: _centred(x) / (_spread(x) + eps.abs().sqrt()),
    "rms": lambda x, eps, heads: x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt(),
    "length 1": lambda x, eps, heads: x / x.norm(dim=-1, keepdim=True),
    "mean only": lambda x, eps, heads: _centred(x),
    "variance only": lambda x, eps, heads: x / (x.var(dim=-1, keepdim=True, correction=0) + eps).sqrt(),
    "without root": lambda x, eps, heads: _centred(x) / (x.var(dim=-1, keepdim=True, correction=0) + eps),
    "absolute deviation": lambda x, eps, heads: _centred(x) / (_centred(x).abs().mean(dim=-1, keepdim=True) + eps),
    "over tokens": lambda x, eps, heads: _standard(x, eps, dim=-2),
    "over tokens and features": lambda x, eps, heads: _standard(x, eps, dim=(-2, -1)),
    "by head": lambda x, eps, heads: _standard(x.unflatten(-1, (heads, -1)), eps).flatten(-2),
}


# ---- masks of scores -------------------------------------------------------------------------------------------------
# Of real (B, S), the number of rows that belong together, and the size: what must not be seen, (B or 1, 1, S or 1, S).


def distances(size: int, real: Tensor) -> Tensor:
    """How far each key is behind its query."""
    places = torch.arange(size, device=real.device)
    return (places[:, None] - places[None, :])[None, None]


def _keys(real: Tensor, rows: int) -> Tensor:
    return ~real[:, None, None, :]


def _ends(real: Tensor) -> Tensor:
    """(B, S): the last real token of each row."""
    counted = real.long().cumsum(dim=1)
    return real & (counted == counted.amax(dim=1, keepdim=True))


def in_rows(x: Tensor, rows: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule for the axis of the batch, where several runs of the batch lie one after the other on that axis."""
    if x.shape[0] == rows or x.shape[0] % rows:
        return rule(x)
    runs = [rule(run) for run in x.split(rows)]
    return torch.cat(runs)


HIDDEN_KEYS: dict[str, Callable[[Tensor, int], Tensor | None]] = {
    "keys": _keys,
    "nothing": lambda real, rows: None,
    "real tokens": lambda real, rows: real[:, None, None, :],
    "queries": lambda real, rows: ~real[:, None, :, None],
    "keys, and all of padded queries": lambda real, rows: ~(real[:, None, None, :] & real[:, None, :, None]),
    "later tokens and padding": lambda real, rows: _keys(real, rows) | (distances(real.shape[1], real) < 0),
    "later tokens": lambda real, rows: distances(real.shape[1], real) < 0,
    "this and later tokens, and padding": lambda real, rows: (
        (_keys(real, rows) | (distances(real.shape[1], real) <= 0)) & (distances(real.shape[1], real) != 0)
    ),
    "earlier tokens and padding": lambda real, rows: _keys(real, rows) | (distances(real.shape[1], real) > 0),
    "the token itself and padding": lambda real, rows: _keys(real, rows) | (distances(real.shape[1], real) == 0),
    "<s> and padding": lambda real, rows: _keys(real, rows) | (torch.arange(real.shape[1]) == 0),
    "</s> and padding": lambda real, rows: _keys(real & ~_ends(real), rows),
    "<s>, </s> and padding": lambda real, rows: _keys(real & ~_ends(real), rows) | (torch.arange(real.shape[1]) == 0),
    "the padding of the next row": lambda real, rows: _keys(in_rows(real, rows, lambda x: x.roll(-1, 0)), rows),
    "the padding of the row before": lambda real, rows: _keys(in_rows(real, rows, lambda x: x.roll(1, 0)), rows),
    "the padding of the first row": lambda real, rows: _keys(in_rows(real, rows, lambda x: x[:1].expand_as(x)), rows),
    "the padding of the last row": lambda real, rows: _keys(in_rows(real, rows, lambda x: x[-1:].expand_as(x)), rows),
    "what is padding in any row": lambda real, rows: _keys(
        in_rows(real, rows, lambda x: x.all(0, keepdim=True).expand_as(x)), rows
    ),
    "what is padding in every row": lambda real, rows: _keys(
        in_rows(real, rows, lambda x: x.any(0, keepdim=True).expand_as(x)), rows
    ),
    "padding, shifted by one to the left": lambda real, rows: _keys(real.roll(-1, 1), rows),
    "padding, shifted by one to the right": lambda real, rows: _keys(real.roll(1, 1), rows),
    "padding but its first token": lambda real, rows: _keys(real | _ends(real).roll(1, 1), rows),
    "padding on the other side": lambda real, rows: _keys(real.flip(1), rows),
}
WINDOWS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)
for _window in WINDOWS:
    HIDDEN_KEYS[f"tokens more than {_window} places away, and padding"] = lambda real, rows, w=_window: (
        _keys(real, rows) | (distances(real.shape[1], real).abs() > w)
    )


# ---- softmax ---------------------------------------------------------------------------------------------------------

SOFTMAX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of scores (B, N, S, S) and real (B, S)
    "keys": lambda x, real: x.softmax(-1),
    "queries": lambda x, real: x.softmax(-2),
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
}


# ---- one vector of many ----------------------------------------------------------------------------------------------


def _mean(x: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.to(x)[:, :, None]
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


def _at(x: Tensor, place: Tensor) -> Tensor:
    return x[torch.arange(len(x)), place.clamp(0, x.shape[1] - 1)]


def _inner(real: Tensor) -> Tensor:
    """Without <s> and </s>."""
    counted = real.long().cumsum(1)
    return real & (counted > 1) & ~_ends(real)


def _starts(real: Tensor) -> Tensor:
    return real & (real.long().cumsum(1) == 1)


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
    "mean without <s> and </s>": lambda x, real: _mean(x, _inner(real)),
    "mean without <s>": lambda x, real: _mean(x, real & ~_starts(real)),
    "mean without </s>": lambda x, real: _mean(x, real & ~_ends(real)),
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


# ---- ids and positions -----------------------------------------------------------------------------------------------


def _counted(ids: Tensor, start: int) -> Tensor:
    return torch.arange(start, start + ids.shape[-1], device=ids.device).expand_as(ids)


def _usual(ids: Tensor, pad: int, by: int = 0) -> Tensor:
    real = (ids != pad).long()
    return real.cumsum(-1) * real + pad + by * real


def _lowered(ids: Tensor, pad: int, by: int) -> Tensor:
    usual = _usual(ids, pad)
    return torch.where(usual > pad, usual - by, usual)


def _through(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flatten().cumsum(0).view_as(real) * real + pad


def _backwards(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flip(-1).cumsum(-1).flip(-1) * real + pad


POSITIONS: dict[str | None, Callable[[Tensor, int], Tensor]] = {  # of ids and pad, both on their own rows
    None: _usual,
    "from 0, padding counted": lambda ids, pad: _counted(ids, 0),
    "from 1, padding counted": lambda ids, pad: _counted(ids, 1),
    "from pad + 1, padding counted": lambda ids, pad: _counted(ids, pad + 1),
    "from 1": lambda ids, pad: (ids != pad).long().cumsum(-1) * (ids != pad).long(),
    "from 0": lambda ids, pad: ((ids != pad).long().cumsum(-1) - 1).clamp(min=0),
    "from pad + 2": lambda ids, pad: _usual(ids, pad, 1),
    "from pad + 3": lambda ids, pad: _usual(ids, pad, 2),
    "from pad + 2, padding counted": lambda ids, pad: _counted(ids, pad + 2),
    "two too low (rows cut as [:n], not [2:])": lambda ids, pad: _lowered(ids, pad, 2),
    "one too low": lambda ids, pad: _lowered(ids, pad, 1),
    "numbered through the batch": _through,
    "numbered through the batch, padding counted": lambda ids, pad: (
        torch.arange(ids.numel(), device=ids.device).view_as(ids) + pad + 1
    ),
    "backwards": _backwards,
    "backwards, padding counted": lambda ids, pad: _counted(ids, pad + 1).flip(-1),
    "all 0": lambda ids, pad: torch.zeros_like(ids),
    "all pad": lambda ids, pad: torch.full_like(ids, pad),
    "all pad + 1": lambda ids, pad: torch.full_like(ids, pad + 1),
    "padding not left out of the product": lambda ids, pad: (ids != pad).long().cumsum(-1) + pad,
    "the token's id": lambda ids, pad: ids,
    "twice the step": lambda ids, pad: 2 * ((ids != pad).long().cumsum(-1) - 1).clamp(min=0) + pad + 1,
    "those of a row filled up to the longest": lambda ids, pad: _counted(ids, pad + 1).flip(0),
}

IDS: dict[str | None, Callable[[Tensor, int], Tensor]] = {  # of ids and pad
    None: lambda ids, pad: ids,
    "one too low above 3": lambda ids, pad: torch.where(ids > 3, ids - 1, ids),
    "one too high above 2": lambda ids, pad: torch.where(ids > 2, ids + 1, ids),
    "one too low": lambda ids, pad: (ids - 1).clamp(min=0),
    "one too high": lambda ids, pad: ids + 1,
    "two too low above 3": lambda ids, pad: torch.where(ids > 4, ids - 2, ids),
    "<s> and </s> exchanged": lambda ids, pad: torch.where(ids == 0, 2, torch.where(ids == 2, 0, ids)),
    "<s> and <pad> exchanged": lambda ids, pad: torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids)),
    "of the token before": lambda ids, pad: ids.roll(1, -1),
    "of the token after": lambda ids, pad: ids.roll(-1, -1),
    "backwards": lambda ids, pad: ids.flip(-1),
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
