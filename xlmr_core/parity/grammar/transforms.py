"""Changes of one tensor: other orders of its axes, other precisions, parts exchanged, moved or left out.

`VALUES` are for what flows through the model, tokens (B, S, ...) or maps (B, N, S, S); `WEIGHTS` are for matrices
(out, in) and vectors of the checkpoint. The name of each is how a report says it.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from xlmr_core.parity.grammar.functions import in_rows

# ---- precision -------------------------------------------------------------------------------------------------------


def _through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounding to a narrower format. From float64 by way of float32, as a checkpoint is."""
    return lambda x: x.float().to(dtype).to(x.dtype)


def _grid(x: Tensor, largest: Tensor, steps: int, limits: tuple[int, int]) -> Tensor:
    step = (largest / steps).clamp(min=1e-30)
    return (x / step).round().clamp(*limits) * step


def _symmetric(bits: int, dim: int | None, *, full: bool = False) -> Callable[[Tensor], Tensor]:
    """Whole numbers of so many bits, the largest of each row (or of all) at the end of the range."""
    top = 2 ** (bits - 1) - 1

    def rounded(x: Tensor) -> Tensor:
        largest = x.abs().max() if dim is None else x.abs().amax(dim=dim, keepdim=True)
        return _grid(x, largest, top + full, (-top - 1, top))

    return rounded


def _asymmetric(bits: int, dim: int | None) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        low = x.min() if dim is None else x.amin(dim=dim, keepdim=True)
        high = x.max() if dim is None else x.amax(dim=dim, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-30)
        zero = (-low / step).round()
        return ((x / step + zero).round().clamp(0, 2**bits - 1) - zero) * step

    return rounded


def _in_groups(size: int, bits: int) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        if x.shape[-1] % size:
            raise ValueError(f"rows of {x.shape[-1]} do not split into groups of {size}")
        return _symmetric(bits, -1)(x.unflatten(-1, (-1, size))).flatten(-2)

    return rounded


PRECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded to float16": _through(torch.float16),
    "rounded to bfloat16": _through(torch.bfloat16),
    "rounded to float8 e4m3": _through(torch.float8_e4m3fn),
    "rounded to float8 e5m2": _through(torch.float8_e5m2),
    "quantised to int8 by tensor": _symmetric(8, None),
    "quantised to int8 by row": _symmetric(8, -1),
    "quantised to int8 by column": _symmetric(8, -2),
    "quantised to int8 by tensor, asymmetric": _asymmetric(8, None),
    "quantised to int8 by row, asymmetric": _asymmetric(8, -1),
    "quantised to int8 by tensor, of 128 steps": _symmetric(8, None, full=True),
    "quantised to int4 by tensor": _symmetric(4, None),
    "quantised to int4 by row": _symmetric(4, -1),
    "quantised to int4 in groups of 32": _in_groups(32, 4),
    "quantised to int4 in groups of 64": _in_groups(64, 4),
    "quantised to int4 in groups of 128": _in_groups(128, 4),
    "quantised to int8 in groups of 32": _in_groups(32, 8),
}

# ---- orders ----------------------------------------------------------------------------------------------------------


def _exchanged_halves(x: Tensor, dim: int) -> Tensor:
    return x.roll(x.shape[dim] // 2, dim) if x.shape[dim] % 2 == 0 else x


def _turned(x: Tensor, heads: int, dim: int) -> Tensor:
    """(N, D) features laid out as (D, N)."""
    return x.unflatten(dim, (heads, -1)).transpose(dim, dim - 1).flatten(dim - 1, dim)


def _turned_back(x: Tensor, heads: int, dim: int) -> Tensor:
    return x.unflatten(dim, (-1, heads)).transpose(dim, dim - 1).flatten(dim - 1, dim)


def _by_head(x: Tensor, heads: int, dim: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule for (..., N, D) on features."""
    moved = x.movedim(dim, -1)
    return rule(moved.unflatten(-1, (heads, -1))).flatten(-2).movedim(-1, dim)


def _orders(dim: int, of: str) -> dict[str, Callable[[Tensor, int], Tensor]]:
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
        f"heads of the {of} backwards": lambda x, n: _by_head(x, n, dim, lambda y: y.flip(-2)),
        f"heads of the {of} moved by one": lambda x, n: _by_head(x, n, dim, lambda y: y.roll(1, -2)),
        f"heads of the {of} moved by one back": lambda x, n: _by_head(x, n, dim, lambda y: y.roll(-1, -2)),
        f"the first two heads of the {of} exchanged": lambda x, n: _by_head(x, n, dim, _first_two),
        f"{of} backwards in each head": lambda x, n: _by_head(x, n, dim, lambda y: y.flip(-1)),
        f"halves of the {of} of each head exchanged": lambda x, n: _by_head(
            x, n, dim, lambda y: _exchanged_halves(y, -1)
        ),
        f"even and odd {of} exchanged": lambda x, n: _pairs(x, dim),
        f"even {of} before odd ones": lambda x, n: torch.cat(_evens_and_odds(x, dim), dim),
        f"even {of} before odd ones in each head": lambda x, n: _by_head(
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


# ---- rotary positions ------------------------------------------------------------------------------------------------


def _rotated(x: Tensor, n: int, *, halves: bool) -> Tensor:
    """Rotary position embeddings (Su et al. 2021) of base 10000, which XLM-R does not have."""
    heads = x.unflatten(-1, (n, -1))  # (B, S, N, D)
    size = heads.shape[-1] // 2 * 2
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * 10000.0 ** (
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


ANYWHERE: dict[str, Change] = {
    **{name: _plain(rule) for name, rule in PRECISIONS.items() if "column" not in name and "groups" not in name},
    "missing (zeros)": _plain(torch.zeros_like),
    "taken from the next row of the batch": _for_rows(lambda x: x.roll(-1, 0)),
    "taken from the row of the batch before": _for_rows(lambda x: x.roll(1, 0)),
    "taken from the first row of the batch": _for_rows(lambda x: x[:1].expand_as(x)),
    "rows of the batch backwards": _for_rows(lambda x: x.flip(0)),
    "averaged over the batch": _for_rows(lambda x: x.mean(0, keepdim=True).expand_as(x)),
}
FEATURES: dict[str, Change] = {
    **{name: (lambda x, n, real, rows, rule=rule: rule(x, n)) for name, rule in _orders(-1, "features").items()},
    "scaled to length 1": _plain(lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)),
    "scaled to length sqrt(size)": _plain(
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) * math.sqrt(x.shape[-1])
    ),
    "scaled to length 1 in each head": lambda x, n, real, rows: _by_head(
        x, n, -1, lambda y: y / y.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    ),
    "without its mean": _plain(lambda x: x - x.mean(-1, keepdim=True)),
    "through softmax": _plain(lambda x: x.softmax(-1)),
    "through log softmax": _plain(lambda x: x.log_softmax(-1)),
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
        "rotary positions applied (halves)": lambda x, n, real, rows: _rotated(x, n, halves=True),
        "rotary positions applied (pairs)": lambda x, n, real, rows: _rotated(x, n, halves=False),
    },
    VECTORS: {**ANYWHERE, **FEATURES},
    MAPS: {
        **ANYWHERE,
        "queries and keys exchanged": _plain(lambda x: x.transpose(-1, -2)),
        "heads backwards": _plain(lambda x: x.flip(1)),
        "heads moved by one": _plain(lambda x: x.roll(1, 1)),
        "heads moved by one back": _plain(lambda x: x.roll(-1, 1)),
        "averaged over the heads": _plain(lambda x: x.mean(1, keepdim=True).expand_as(x)),
        "taken from the first head": _plain(lambda x: x[:, :1].expand_as(x)),
        "averaged over keys and queries (symmetric)": _plain(lambda x: (x + x.transpose(-1, -2)) / 2),
        "keys moved by one": _plain(lambda x: x.roll(1, -1)),
        "keys moved by one back": _plain(lambda x: x.roll(-1, -1)),
        "0 on the diagonal": _plain(lambda x: x - torch.diag_embed(x.diagonal(dim1=-2, dim2=-1))),
        "0 for padded queries": lambda x, n, real, rows: x * real.to(x)[:, None, :, None],
        "0 for padded keys": lambda x, n, real, rows: x * real.to(x)[:, None, None, :],
        "less its largest of each query": _plain(lambda x: x - x.amax(-1, keepdim=True)),
    },
}

# ---- changes of weights ----------------------------------------------------------------------------------------------

WEIGHTS: dict[str, Callable[[Tensor, int], Tensor]] = {  # of a matrix (out, in) or a vector, and the number of heads
    **{name: (lambda w, n, rule=rule: rule(w)) for name, rule in PRECISIONS.items()},
    **_orders(-1, "entries"),
}
MATRICES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "transposed": lambda w, n: w.T if w.shape[0] == w.shape[1] else w.reshape(w.shape[1], w.shape[0]).T,
    **{name: (lambda w, n, rule=rule: rule(w)) for name, rule in PRECISIONS.items()},
    **_orders(-1, "columns"),
    **_orders(0, "rows"),
    "transposed in each head": lambda w, n: w.unflatten(0, (n, -1)).unflatten(-1, (n, -1)).permute(2, 1, 0, 3).reshape(
        w.shape
    ) if w.shape[0] == w.shape[1] else w,
}  # fmt: skip


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
    if kind == "laid out by head":  # the file has (N, parts, D), which is read as (parts, N, D)
        laid = fused.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 2)
        return laid.unflatten(0, (count, -1))[index]
    laid = fused.transpose(0, 1).flatten(0, 1)  # the file has (H, parts)
    return laid.unflatten(0, (count, -1))[index]


CUTS = ("by head", "in turn", "laid out by head", "laid out in turn")
