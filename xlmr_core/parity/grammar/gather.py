"""A tensor whose slices along an axis come from other places of it: an arrangement that is read off a dump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.index_rules import in_words, rule_of
from xlmr_core.parity.grammar.tokens import in_rows

NOUNS = {
    "row": "rows of the batch",
    "packed token": "tokens, counted over all texts without padding,",
    "query": "queries",
    "text and head": "heads of all texts, counted text by text,",
    "token and head": "heads of all tokens of a text, counted token by token,",
    "cell": "values of each text, counted token by token,",
    "entry": "entries",
    "output": "rows",
    "input": "columns",
    "weight": "entries of the matrix, counted row by row,",
}
MOST_SHOWN = 4  # texts and tokens that the words name


@dataclass(frozen=True)
class Gather:
    """For each place along an axis the index of what stands there.

    Attributes:
        axis: One of `AXES`, which are those of (B, S, H), (B, H), (B, N, S, S), and of weights.
        indices: -1 for zero.
        width: Of the axis "place", the number of tokens of a row of the batch.
    """

    axis: str
    indices: tuple[int, ...]
    width: int = 0

    @property
    def is_trivial(self) -> bool:
        return all(index == place for place, index in enumerate(self.indices))

    @property
    def has_rule(self) -> bool:
        return rule_of(self.indices) is not None

    def __str__(self) -> str:
        if self.axis == "place":
            return self._places_in_words()
        return in_words(self.indices, NOUNS.get(self.axis, f"{self.axis}s"))

    def _places_in_words(self) -> str:
        """Tokens that follow each other in a text and come from such are named together."""
        runs: list[tuple[int, int, int]] = []  # the first place, its index, how many
        for place, index in enumerate(self.indices):
            if place == index:
                continue
            start, source, count = runs[-1] if runs else (-1, -1, 0)
            follows = place == start + count and place % self.width
            if follows and ((index == source + count and index % self.width) or index == source == -1):
                runs[-1] = (start, source, count + 1)
            else:
                runs.append((place, index, 1))
        words = [f"{self._run(source, count)} at {self._run(place, count)}" for place, source, count in runs]
        more = sum(count for _, _, count in runs[MOST_SHOWN:])
        return "; ".join(words[:MOST_SHOWN]) + (f"; and {more} more" if more else "")

    def _run(self, index: int, count: int) -> str:
        if index < 0:
            return "zeros"
        row, token = divmod(index, self.width)
        return f"token {token} of text {row}" if count == 1 else f"tokens {token} to {token + count - 1} of text {row}"

    def of(self, x: Tensor, real: Tensor, rows: int, heads: int) -> Tensor:
        """The arrangement of a tensor.

        Args:
            x: Of the axes that `axis` needs.
            real: (B, S), which tokens are real.
            rows: How many rows of the batch belong together.
            heads: Their number.

        Raises:
            ValueError: The tensor has no such axis.
        """
        if self.axis == "packed token":
            return self._packed(x, real, rows)
        if self.axis in ("row", "place", "text and head"):
            return in_rows(x, rows, lambda run: self._along(run, heads))
        return self._along(x, heads)

    def _along(self, x: Tensor, heads: int) -> Tensor:
        opened, dim = AXES[self.axis](x, heads)
        order = self._order(opened.shape[dim], x.device)
        if order is None:
            return x
        new = opened.index_select(dim, order.clamp(min=0))
        zero = (order < 0).reshape([-1 if axis == dim else 1 for axis in range(new.dim())])
        return CLOSED.get(self.axis, _as_it_is)(new.masked_fill(zero, 0), x)

    def _order(self, size: int, device: torch.device) -> Tensor | None:
        """The indices for an axis of this size; of a shorter or longer batch or text, what lies in both."""
        indices = self.indices
        if len(indices) != size:
            if self.axis not in ("row", "token", "query", "key"):
                return None
            indices = [place if place >= len(indices) else indices[place] for place in range(size)]
            indices = [place if index >= size else index for place, index in enumerate(indices)]
        return torch.tensor(indices, device=device)

    def _packed(self, x: Tensor, real: Tensor, rows: int) -> Tensor:
        runs: list[Tensor] = []
        for run, its in zip(x.split(rows), real.split(rows), strict=True):
            order = self._order(int(its.sum()), x.device)
            new = run.clone()
            if order is not None:
                new[its] = run[its][order.clamp(min=0)].masked_fill((order < 0)[:, None], 0)
            runs.append(new)
        return torch.cat(runs)


# ---- axes ------------------------------------------------------------------------------------------------------------

Opened = tuple[Tensor, int]  # a tensor in a shape that has the axis, and the number of the axis


def _heads(x: Tensor, heads: int) -> Opened:
    return (x, 1) if x.dim() == 4 else (x.unflatten(-1, (heads, -1)), x.dim() - 1)


def _texts_and_heads(x: Tensor, heads: int) -> Opened:
    if x.dim() == 4:
        return x.flatten(0, 1), 0
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1), 0


def _of_texts_and_heads(new: Tensor, x: Tensor) -> Tensor:
    parts = new.unflatten(0, (len(x), -1))
    return parts if x.dim() == 4 else parts.transpose(1, 2).flatten(2)


def _tokens_and_heads(x: Tensor, heads: int) -> Opened:
    if x.dim() != 3:
        raise ValueError(f"a tensor of {x.dim()} axes has no tokens with heads of features")
    return x.unflatten(-1, (heads, -1)).flatten(1, 2), 1


def _dim(dims: tuple[int, ...], dim: int) -> Callable[[Tensor, int], Opened]:
    def opened(x: Tensor, heads: int) -> Opened:
        if x.dim() not in dims:
            raise ValueError(f"a tensor of {x.dim()} axes has no such axis")
        return x, dim % x.dim()

    return opened


def _as_it_is(new: Tensor, x: Tensor) -> Tensor:
    return new.reshape(x.shape)


AXES: dict[str, Callable[[Tensor, int], Opened]] = {
    "feature": _dim((2, 3), -1),
    "head": _heads,
    "row": _dim((2, 3, 4), 0),
    "token": _dim((3,), 1),
    "query": _dim((4,), 2),
    "key": _dim((4,), 3),
    "place": lambda x, heads: (x.flatten(0, 1), 0),
    "text and head": _texts_and_heads,
    "token and head": _tokens_and_heads,
    "cell": lambda x, heads: (x.flatten(1), 1),
    "entry": _dim((1,), 0),
    "output": _dim((2,), 0),
    "input": _dim((2,), 1),
    "weight": lambda x, heads: (x.flatten(), 0),
}
CLOSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"text and head": _of_texts_and_heads}
