"""Changes of what flows through the model: other orders of its axes, other precisions, parts moved or left out.

`VALUES` are for tokens (B, S, ...), vectors (B, H) and maps (B, N, S, S). The name of each is how a report says it.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from xlmr_core.parity.grammar.orders import by_head, orders
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.tokens import by_length, counted, ends, in_rows, inner, pairs_exchanged, two_exchanged

# ---- rotary positions ------------------------------------------------------------------------------------------------


def _rotated(x: Tensor, n: int, *, halves: bool, part: int, base: float) -> Tensor:
    """Rotary position embeddings (Su et al. 2021), which XLM-R does not have, of one `part`-th of each head."""
    heads = x.unflatten(-1, (n, -1))  # (B, S, N, D)
    size = heads.shape[-1] // part // 2 * 2
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * base ** (
        -torch.arange(0, size, 2, device=x.device) / size
    )
    sin, cos = (f.to(x)[None, :, None] for f in (angles.sin(), angles.cos()))
    own = heads[..., :size]
    a, b = own.chunk(2, -1) if halves else (own[..., ::2], own[..., 1::2])
    turned = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)
    return torch.cat([joined, heads[..., size:]], -1).flatten(-2)


# ---- changes of what flows through the model -------------------------------------------------------------------------
# Of a tensor, the number of heads, the mask (B, S) and how many rows of the batch belong together.

Change = Callable[[Tensor, int, Tensor, int], Tensor]
TOKENS, VECTORS, MAPS = "(B, S, H)", "(B, H)", "(B, N, S, S)"


def _plain(rule: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, n, real, rows: rule(x)


def _for_tokens(rule: Callable[[Tensor], Tensor]) -> Change:
    """A rule for the axis of tokens."""
    return lambda x, n, real, rows: rule(x)


def _for_rows(rule: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, n, real, rows: in_rows(x, rows, rule)


def _first_real(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def _mean_of_real(x: Tensor, real: Tensor) -> Tensor:
    weights = real.to(x)[:, :, None]
    return ((x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)).expand_as(x)


def _without(x: Tensor, start: int, end: int) -> Tensor:
    """Features from `start` to `end` are 0."""
    places = torch.arange(x.shape[-1], device=x.device)
    return x * ((places < start) | (places >= end))


def _half_twice(x: Tensor, which: int) -> Tensor:
    half = x.chunk(2, -1)[which]
    return torch.cat([half, half], -1)


def _only(x: Tensor, where: Tensor) -> Tensor:
    """The values of the tokens in `where`, (B, S); 0 for others."""
    return x * where.to(x)[:, :, None]


def _in_each_text(x: Tensor, real: Tensor) -> Tensor:
    """The real tokens of each text backwards."""
    places = torch.arange(x.shape[1], device=x.device).expand(real.shape)
    order = torch.where(real, real.sum(1, keepdim=True) - counted(real), places)
    return x.gather(1, order[:, :, None].expand_as(x))


# Factors that depend on the number n of tokens of a text.
COUNTED: dict[str, Callable[[Tensor], Tensor]] = {
    "n; the text has n tokens": lambda n: n,
    "1 / n; the text has n tokens": lambda n: 1 / n,
    "sqrt(n); the text has n tokens": torch.sqrt,
    "1 / sqrt(n); the text has n tokens": torch.rsqrt,
    "log(n); the text has n tokens": torch.log,
    **{
        f"log(n) / log({trained}); the text has n tokens": (lambda n, trained=trained: n.log() / math.log(trained))
        for trained in (128, 256, 512, 514, 1024, 2048, 4096, 8192)
    },
}


def _by_count(rule: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, n, real, rows: x * rule(real.sum(1).clamp(min=1).to(x))[:, None, None, None]


STEPPED = "rounded to steps of"
ANYWHERE: dict[str, Change] = {
    **{name: _plain(rule) for name, rule in PRECISIONS.items() if "column" not in name and "groups" not in name},
    "missing (zeros)": _plain(torch.zeros_like),
    "taken from the next row of the batch": _for_rows(lambda x: x.roll(-1, 0)),
    "taken from the row of the batch before": _for_rows(lambda x: x.roll(1, 0)),
    "taken from the first row of the batch": _for_rows(lambda x: x[:1].expand_as(x)),
    "rows of the batch backwards": _for_rows(lambda x: x.flip(0)),
    "rows of the batch, the first two exchanged": _for_rows(lambda x: two_exchanged(x, 0, 1)),
    "rows of the batch, the last two exchanged": _for_rows(lambda x: two_exchanged(x, -1, -2)),
    "rows of the batch, each two exchanged": _for_rows(pairs_exchanged),
    "rows of the batch sorted by length, the longest first": lambda x, n, real, rows: by_length(
        x, real, rows, longest_first=True
    ),
    "rows of the batch sorted by length, the shortest first": lambda x, n, real, rows: by_length(
        x, real, rows, longest_first=False
    ),
    "averaged over the batch": _for_rows(lambda x: x.mean(0, keepdim=True).expand_as(x)),
}
LOST: dict[str, Change] = {
    "its first feature 0": _plain(lambda x: _without(x, 0, 1)),
    "its last feature 0": _plain(lambda x: _without(x, x.shape[-1] - 1, x.shape[-1])),
    "the first half of the features 0": _plain(lambda x: _without(x, 0, x.shape[-1] // 2)),
    "the second half of the features 0": _plain(lambda x: _without(x, x.shape[-1] // 2, x.shape[-1])),
    "the last quarter of the features 0": _plain(lambda x: _without(x, x.shape[-1] * 3 // 4, x.shape[-1])),
    "the first quarter of the features 0": _plain(lambda x: _without(x, 0, x.shape[-1] // 4)),
    "all but the first quarter of the features 0": _plain(lambda x: _without(x, x.shape[-1] // 4, x.shape[-1])),
    "all but the last quarter of the features 0": _plain(lambda x: _without(x, 0, x.shape[-1] * 3 // 4)),
    "every second feature 0": _plain(lambda x: x * (torch.arange(x.shape[-1], device=x.device) % 2 == 0)),
}
FEATURES: dict[str, Change] = {
    **{name: (lambda x, n, real, rows, rule=rule: rule(x, n)) for name, rule in orders(-1, "features").items()},
    "scaled to length 1": _plain(lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)),
    "scaled to length sqrt(size)": _plain(
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) * math.sqrt(x.shape[-1])
    ),
    "scaled to length 1 in each head": lambda x, n, real, rows: by_head(
        x, n, -1, lambda y: y / y.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    ),
    "without its mean": _plain(lambda x: x - x.mean(-1, keepdim=True)),
    "scaled by its largest value": _plain(lambda x: x / x.abs().amax(-1, keepdim=True).clamp(min=1e-12)),
    **LOST,
    "the first half of the features, twice": _plain(lambda x: _half_twice(x, 0)),
    "the second half of the features, twice": _plain(lambda x: _half_twice(x, 1)),
    "through softmax": _plain(lambda x: x.softmax(-1)),
    "through log softmax": _plain(lambda x: x.log_softmax(-1)),
}
ROTARY: dict[str, Change] = {
    f"rotary positions applied ({name}){of}": lambda x, n, real, rows, halves=name == "halves", part=part, base=base: (
        _rotated(x, n, halves=halves, part=part, base=base)
    )
    for name in ("halves", "pairs")
    for of, part, base in (
        ("", 1, 1e4),
        (" to the first half of each head", 2, 1e4),
        (" to the first quarter of each head", 4, 1e4),
        (", of base 160000", 1, 1.6e5),
        (", of base 500000", 1, 5e5),
        (", of base 1000000", 1, 1e6),
    )
}
VALUES: dict[str, dict[str, Change]] = {
    TOKENS: {
        **ANYWHERE,
        **FEATURES,
        "taken from the token before": _for_tokens(lambda x: x.roll(1, 1)),
        "taken from the token after": _for_tokens(lambda x: x.roll(-1, 1)),
        "taken from the token before, the first from none": _for_tokens(
            lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        ),
        "taken from the token after, the last from none": _for_tokens(
            lambda x: torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        ),
        "tokens of each text backwards": lambda x, n, real, rows: _in_each_text(x, real),
        "0 but at the first token": _for_tokens(lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)),
        "0 at the last token of each text": lambda x, n, real, rows: _only(x, ~ends(real)),
        "0 but at the last token of each text": lambda x, n, real, rows: _only(x, ends(real)),
        "0 at <s> and </s>": lambda x, n, real, rows: _only(x, ~real | inner(real)),
        "0 but at <s> and </s>": lambda x, n, real, rows: _only(x, real & ~inner(real)),
        "tokens backwards": _for_tokens(lambda x: x.flip(1)),
        "taken from the first token": _for_tokens(_first_real),
        "averaged over the tokens": lambda x, n, real, rows: _mean_of_real(x, real),
        "averaged over tokens and padding": _for_tokens(lambda x: x.mean(1, keepdim=True).expand_as(x)),
        "without the mean of the tokens": lambda x, n, real, rows: x - _mean_of_real(x, real),
        "0 at padding": lambda x, n, real, rows: x * real.to(x)[:, :, None],
        "0 at the first token": _for_tokens(lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)),
        "summed over earlier tokens": _for_tokens(lambda x: x.cumsum(1)),
        "batch and tokens read in the wrong order": _for_rows(
            lambda x: x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)
        ),
        "batch and tokens laid out in the wrong order": _for_rows(lambda x: x.transpose(0, 1).reshape(x.shape)),
        "features before tokens in memory": _for_tokens(lambda x: x.transpose(1, 2).reshape(x.shape)),
        **ROTARY,
    },
    VECTORS: {**ANYWHERE, **FEATURES},
    MAPS: {
        **ANYWHERE,
        "queries and keys exchanged": _plain(lambda x: x.transpose(-1, -2)),
        "queries and keys exchanged, padding left out": lambda x, n, real, rows: (
            x * real.to(x)[:, None, :, None]
        ).transpose(-1, -2),
        "heads backwards": _plain(lambda x: x.flip(1)),
        "heads moved by one": _plain(lambda x: x.roll(1, 1)),
        "heads moved by one back": _plain(lambda x: x.roll(-1, 1)),
        "averaged over the heads": _plain(lambda x: x.mean(1, keepdim=True).expand_as(x)),
        "summed over the heads before": _plain(lambda x: x.cumsum(1)),
        "taken from the first head": _plain(lambda x: x[:, :1].expand_as(x)),
        "averaged over keys and queries (symmetric)": _plain(lambda x: (x + x.transpose(-1, -2)) / 2),
        "keys moved by one": _plain(lambda x: x.roll(1, -1)),
        "keys moved by one back": _plain(lambda x: x.roll(-1, -1)),
        "0 on the diagonal": _plain(lambda x: x - torch.diag_embed(x.diagonal(dim1=-2, dim2=-1))),
        "0 for padded queries": lambda x, n, real, rows: x * real.to(x)[:, None, :, None],
        "0 for padded keys": lambda x, n, real, rows: x * real.to(x)[:, None, None, :],
        "0 for the first key": _plain(lambda x: torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:]], -1)),
        "0 for the last key of each text": lambda x, n, real, rows: x * ~ends(real)[:, None, None, :],
        "divided by the sum over keys": _plain(lambda x: x / x.sum(-1, keepdim=True)),
        "0 below 0.1": _plain(lambda x: x * (x >= 0.1)),
        "0 below 0.01": _plain(lambda x: x * (x >= 0.01)),
        "0 below 0.001": _plain(lambda x: x * (x >= 0.001)),
        **{f"multiplied by {name}": _by_count(rule) for name, rule in COUNTED.items()},
        **{
            f"{STEPPED} 1/{steps}": _plain(lambda x, steps=steps: (x * steps).round() / steps)
            for steps in (127, 128, 255, 256, 32767, 65535)
        },
        "less its largest of each query": _plain(lambda x: x - x.amax(-1, keepdim=True)),
    },
}
