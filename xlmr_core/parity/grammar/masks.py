"""The variants of the mask of attention: which keys a query does not see.

Each function takes which tokens are real (B, S) and the number of rows of the batch that belong together, and gives
what must not be seen, (B or 1, 1, S or 1, S); of `BY_HEAD` it is (B, N, 1, S). Those of `BY_NUMBER` take a whole number
in place of the rows, and those of `BY_ID` the ids and one id.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xlmr_core.parity.grammar.tokens import (
    Kind,
    by_length,
    counted,
    distances,
    ends,
    in_rows,
    starts,
    two_exchanged,
)


def _keys(real: Tensor) -> Tensor:
    return ~real[:, None, None, :]


def _apart(real: Tensor) -> Tensor:
    return distances(real.shape[1], real)


def _places(real: Tensor) -> Tensor:
    return torch.arange(real.shape[1], device=real.device)


def _in_rows(rule: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda real, rows: _keys(in_rows(real, rows, rule))


HIDDEN_KEYS: dict[str, Callable[[Tensor, int], Tensor | None]] = {
    "keys": lambda real, rows: _keys(real),
    "nothing": lambda real, rows: None,
    "real tokens": lambda real, rows: real[:, None, None, :],
    "queries": lambda real, rows: ~real[:, None, :, None],
    "keys, and all of padded queries": lambda real, rows: ~(real[:, None, None, :] & real[:, None, :, None]),
    "later tokens and padding": lambda real, rows: _keys(real) | (_apart(real) < 0),
    "later tokens": lambda real, rows: _apart(real) < 0,
    "this and later tokens, and padding": lambda real, rows: (
        (_keys(real) | (_apart(real) <= 0)) & (_apart(real) != 0)
    ),
    "earlier tokens and padding": lambda real, rows: _keys(real) | (_apart(real) > 0),
    "the token itself and padding": lambda real, rows: _keys(real) | (_apart(real) == 0),
    "<s> and padding": lambda real, rows: _keys(real & ~starts(real)),
    "</s> and padding": lambda real, rows: _keys(real & ~ends(real)),
    "<s>, </s> and padding": lambda real, rows: _keys(real & ~ends(real) & ~starts(real)),
    "the padding of the next row": _in_rows(lambda x: x.roll(-1, 0)),
    "the padding of the row before": _in_rows(lambda x: x.roll(1, 0)),
    "the padding of the first row": _in_rows(lambda x: x[:1].expand_as(x)),
    "the padding of the last row": _in_rows(lambda x: x[-1:].expand_as(x)),
    "the padding of rows in reverse order": _in_rows(lambda x: x.flip(0)),
    "the padding of rows whose first two are exchanged": _in_rows(lambda x: two_exchanged(x, 0, 1)),
    "the padding of rows sorted by length, the longest first": lambda real, rows: _keys(
        by_length(real, real, rows, longest_first=True)
    ),
    "the padding of rows sorted by length, the shortest first": lambda real, rows: _keys(
        by_length(real, real, rows, longest_first=False)
    ),
    "padding, with batch and tokens read in the wrong order": _in_rows(
        lambda x: x.T.reshape(x.shape)
    ),
    "what is padding in any row": _in_rows(lambda x: x.all(0, keepdim=True).expand_as(x)),
    "what is padding in every row": _in_rows(lambda x: x.any(0, keepdim=True).expand_as(x)),
    "padding, shifted by one to the left": lambda real, rows: _keys(real.roll(-1, 1)),
    "padding, shifted by one to the right": lambda real, rows: _keys(real.roll(1, 1)),
    "padding but its first token": lambda real, rows: _keys(real | ends(real).roll(1, 1)),
    "padding on the other side": lambda real, rows: _keys(real.flip(1)),
}  # fmt: skip

BY_NUMBER: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tokens more than {} places away, and padding": lambda real, n: _keys(real) | (_apart(real).abs() > n),
    "tokens more than {} places before, and padding": lambda real, n: _keys(real) | (_apart(real) > n),
    "tokens more than {} places after, and padding": lambda real, n: _keys(real) | (_apart(real) < -n),
    "later tokens, those more than {} places before, and padding": lambda real, n: (
        _keys(real) | (_apart(real) > n) | (_apart(real) < 0)
    ),
    "tokens of other blocks of {}, and padding": lambda real, n: (
        _keys(real) | (_places(real)[:, None] // n != _places(real)[None, :] // n)
    ),
    "all keys but the first {}, and padding": lambda real, n: _keys(real & (_places(real) < n)),
    "the first {} keys, and padding": lambda real, n: _keys(real & (counted(real) > n)),
    "the last {} tokens of each text, and padding": lambda real, n: _keys(
        real & (counted(real) <= real.sum(1, keepdim=True) - n)
    ),
    "every key whose number is a multiple of {}, and padding": lambda real, n: _keys(
        real & ((_places(real) % n != 0) if n > 1 else (_places(real) == 0))
    ),
    "every {}th key, and padding": lambda real, n: _keys(real & (_places(real) % n != n - 1)),
    "all keys but every {}th, and padding": lambda real, n: _keys(real & (_places(real) % n == 0)),
    "the keys of each text that fill no whole tile of {}, and padding": lambda real, n: _keys(
        real & (counted(real) <= real.sum(1, keepdim=True) // n * n)
    ),
}

BY_ID: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "tokens of id {}, not padding": lambda ids, real, token: _keys(ids != token),
    "tokens of id {} and padding": lambda ids, real, token: _keys(real & (ids != token)),
}


BY_HEAD = "the padding of other texts: masks repeated for the heads stand head by head, not text by text"


def hidden_keys(kind: Kind, ids: Tensor, real: Tensor, rows: int, heads: int) -> Tensor | None:
    """What a variant of the mask hides; None for nothing."""
    if kind == BY_HEAD:
        return ~in_rows(real, rows, lambda run: run.repeat(heads, 1).view(len(run), heads, -1))[:, :, None, :]
    if not isinstance(kind, tuple):
        return HIDDEN_KEYS[kind](real, rows)
    name, number = kind
    return BY_ID[name](ids, real, number) if name in BY_ID else BY_NUMBER[name](real, number)


# ---- scores that are lowered, not hidden -----------------------------------------------------------------------------


def _slopes(scores: Tensor) -> Tensor:
    """(1, N, 1, 1): those of ALiBi (Press et al. 2022)."""
    heads = scores.shape[1]
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=scores.device) / heads)[None, :, None, None]


# Of scores (B, N, S, S) and which tokens are real: how often a number is added to each score.
LOWERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "padding": lambda scores, real: ~real[:, None, None, :],
    "real keys": lambda scores, real: real[:, None, None, :],
    "distance": lambda scores, real: _apart(real).abs(),
    "distance by head": lambda scores, real: _apart(real).abs() * _slopes(scores),
    "signed distance": lambda scores, real: _apart(real),
    "signed distance by head": lambda scores, real: _apart(real) * _slopes(scores),
    "diagonal": lambda scores, real: _apart(real) == 0,
    "later": lambda scores, real: _apart(real) < 0,
    "first key": lambda scores, real: (_places(real) == 0)[None, None, None],
    "key": lambda scores, real: _places(real)[None, None, None],
}
