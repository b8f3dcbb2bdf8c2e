"""The value of a term, in plain torch: one function for each operation."""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.parity.grammar import across, flash, functions, matrices, transforms
from xlmr_core.parity.grammar.activations import OPEN, activation
from xlmr_core.parity.grammar.indices import indices, sinusoids
from xlmr_core.parity.grammar.masks import LOWERED, hidden_keys
from xlmr_core.parity.grammar.regions import Region
from xlmr_core.parity.grammar.shown import Hidden
from xlmr_core.parity.grammar.softmaxes import softmax
from xlmr_core.parity.grammar.tables import stretched
from xlmr_core.parity.grammar.terms import Term, resolved
from xlmr_core.parity.grammar.tokens import Kind, in_rows
from xlmr_core.parity.tap_values import logsumexp

UNFIT = (RuntimeError, IndexError, ValueError, KeyError)  # what a term raises whose shapes do not fit


class Scene:
    """What terms are evaluated on: the batch, the weights, and the taps that are there already.

    Attributes:
        weights: The tensors of the checkpoint.
        heads: Their number.
        pad: The id of padding.
        rows: How many rows of the batch belong together: several runs may lie one after the other.
        top_ids: (B, S, K), where logits are known by their top k only.
        choices: How many rows of the batch are the choices of a question.
    """

    ids: Tensor
    real: Tensor
    choices = 1

    def __init__(
        self, weights: Mapping[str, Tensor], heads: int, pad: int, rows: int, top_ids: Tensor | None = None
    ) -> None:
        self.weights, self.heads, self.pad, self.rows, self.top_ids = weights, heads, pad, rows, top_ids

    def tap(self, name: str) -> Tensor:
        """The tensor at a tap."""
        raise NotImplementedError

    def evaluate(self, term: Term) -> Tensor:
        """The value of a term.

        Raises:
            RuntimeError: the shapes do not fit.
        """
        if term.op == "tap":
            return self.tap(term.value)
        if term.op == "weight":
            return self.weights[term.value]
        if term.op == "number":
            return torch.tensor(term.value, dtype=torch.float64)
        if term.op == "rows" and term.args[0].op == "tensor":  # only the rows that are read, of a large table
            table, index = term.args
            return self.evaluate(Term("tensor", (Term("rows", (table.args[0], index)),), table.value))
        return OPERATIONS[term.op](self, term.value, *(self.evaluate(arg) for arg in term.args))


def _number(x: Tensor, like: Tensor) -> Tensor:
    """Constants are kept in float64, and computed with in the precision of the rest."""
    return x.to(like)


def _rows(scene: Scene, _value: Any, table: Tensor, index: Tensor) -> Tensor:
    return table[index.clamp(0, len(table) - 1)]


def _ids(scene: Scene, kind: Kind) -> Tensor:
    return in_rows(scene.ids, scene.rows, lambda ids: indices("ids", kind, ids, scene.pad))


def _positions(scene: Scene, kind: Kind, ids: Tensor) -> Tensor:
    return in_rows(ids, scene.rows, lambda ids: indices("positions", kind, ids, scene.pad))


def _mul(scene: Scene, _value: Any, x: Tensor, y: Tensor) -> Tensor:
    return x * (_number(y, x) if y.dim() == 0 else y)


def _add(scene: Scene, _value: Any, x: Tensor, y: Tensor) -> Tensor:
    return x + (_number(y, x) if y.dim() == 0 else y)


def _hide(scene: Scene, kind: Kind, scores: Tensor) -> Tensor:
    hidden = hidden_keys(kind, scene.ids, _attended(scene.real), scene.rows, scene.heads)
    if hidden is None:
        return scores
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min)


def _attended(real: Tensor) -> Tensor:
    """A row without any real token attends to all of itself."""
    return real | ~real.any(dim=1, keepdim=True)


def _hidden_as_read(scene: Scene, hidden: Hidden, scores: Tensor) -> Tensor:
    return scores.masked_fill(hidden.of_scores(scores, scene.real, scene.rows), torch.finfo(scores.dtype).min)


def _lower(scene: Scene, kind: str, scores: Tensor, size: Tensor) -> Tensor:
    """A number is added to some scores, in place of hiding them."""
    return scores + LOWERED[kind](scores, scene.real).to(scores) * _number(size, scores)


def _sinusoids(scene: Scene, kind: str, rows: Tensor, places: Tensor) -> Tensor:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return sinusoids(kind, places, rows.shape[-1], dtype).to(rows)


def _only(scene: Scene, region: Region, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(region.of(old, scene.real, scene.rows, scene.heads), new, old)


def _quantised_like(scene: Scene, _value: Any, x: Tensor, table: Tensor) -> Tensor:
    step = table.abs().max() / 127
    return (x / step).round().clamp(-127, 127) * step


def _first_heads(scene: Scene, head: int, x: Tensor) -> Tensor:
    """One head is 0."""
    if x.dim() == 4:
        kept = torch.arange(x.shape[1], device=x.device) != head
        return x * kept.to(x)[None, :, None, None]
    parts = x.unflatten(-1, (scene.heads, -1)).clone()
    parts[..., head, :] = 0
    return parts.flatten(-2)


def _clamp(scene: Scene, _value: Any, x: Tensor, size: Tensor) -> Tensor:
    limit = abs(float(size))
    return x.clamp(-limit, limit)


def _capped(scene: Scene, _value: Any, x: Tensor, size: Tensor) -> Tensor:
    """Soft capping (Gemma Team 2024)."""
    return torch.tanh(x / _number(size, x)) * _number(size, x)


def _linear(scene: Scene, _value: Any, x: Tensor, matrix: Tensor) -> Tensor:
    return F.linear(x, matrix.to(x))


def _top(scene: Scene, _value: Any, logits: Tensor) -> Tensor:
    assert scene.top_ids is not None
    times = len(logits) // len(scene.top_ids)
    return logits.gather(-1, scene.top_ids.repeat(times, 1, 1))


def _values(kind: str, x: Tensor, scene: Scene) -> Tensor:
    letters = {2: transforms.VECTORS, 3: transforms.TOKENS, 4: transforms.MAPS}[x.dim()]
    return transforms.VALUES[letters][kind](x, scene.heads, scene.real, scene.rows)


def _weight_changed(scene: Scene, kind: str, tensor: Tensor) -> Tensor:
    table = matrices.VECTORS if tensor.dim() == 1 else matrices.WEIGHTS
    return table[kind](tensor, scene.heads)


def _cut(scene: Scene, value: tuple[int, str], *parts: Tensor) -> Tensor:
    return matrices.cut(parts, scene.heads, *value)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "ids": _ids,
    "types": lambda scene, kind: torch.full_like(scene.ids, kind or 0),
    "positions": _positions,
    "read": lambda scene, read, index: read.of(index, scene.rows),
    "mask": lambda scene, kind: scene.real,
    "rows": _rows,
    "linear": _linear,
    "add": _add,
    "mul": _mul,
    "product": lambda scene, kind, x, y: x * y,
    "maximum": lambda scene, kind, x, y: torch.maximum(x, y),
    "standard": lambda scene, kind, x, eps: functions.NORMS[kind](x, _number(eps, x), scene.heads),
    "activation": lambda scene, kind, x: activation(kind, x),
    "pieces": lambda scene, pieces, x: pieces.of(x),
    "bent": lambda scene, kind, x, number: OPEN[kind][0](x, _number(number, x)),
    "split": lambda scene, kind, x: functions.SPLITS[kind](x, scene.heads),
    "merge": lambda scene, kind, x: functions.MERGES[kind](x),
    "dot": lambda scene, kind, q, k: torch.matmul(q, k.transpose(-1, -2)),
    "dot reshaped": lambda scene, kind, q, k: torch.matmul(q, k.reshape(*k.shape[:2], k.shape[3], k.shape[2])),
    "mix": lambda scene, kind, probs, v: torch.matmul(probs, v),
    "flash": lambda scene, kind, scores, v: flash.computed(kind, scores, v),
    "hide": _hide,
    "lower": _lower,
    "hidden as read": _hidden_as_read,
    "added as read": lambda scene, added, scores: added.of(scores, scene.real, scene.rows),
    "only": _only,
    "sinusoids": _sinusoids,
    "softmax": lambda scene, kind, x: softmax(kind, x, scene.real),
    "with others": lambda scene, kind, x: across.with_others(kind, x, scene.real, scene.rows),
    "hide unread": lambda scene, kind, scores: across.hide_unread(kind, scores, scene.real, scene.rows),
    "own keys": lambda scene, kind, probs: across.own_keys(probs, scene.real),
    "select": lambda scene, kind, x: functions.SELECT[kind](x, scene.real),
    "pooled": lambda scene, pool, x: pool(x, scene.real),
    "choices": lambda scene, kind, x: x.unflatten(0, (-1, scene.choices)),
    "top": _top,
    "logsumexp": lambda scene, kind, logits: logsumexp(logits),
    "values": lambda scene, kind, x: _values(kind, x, scene),
    "tensor": _weight_changed,
    "scaled like": lambda scene, by, matrix, other: matrices.with_scales_of(matrix, other, by),
    "numbers": lambda scene, vector, weight: vector.tensor(weight),
    "low rank": lambda scene, rank, matrix: matrices.without_smaller(matrix, rank),
    "quantised like": _quantised_like,
    "without head": _first_heads,
    "gathered": lambda scene, kind, x: kind.of(x, scene.real, scene.rows, scene.heads),
    "stretched": lambda scene, kind, table: stretched(table, *kind),
    "factors": lambda scene, factors, x: x * factors.of(x, scene.rows, scene.heads),
    "shrunk": lambda scene, kind, x, size: x.masked_fill(x.abs() < _number(size, x), 0),
    "clamp": _clamp,
    "capped": _capped,
    "cut": _cut,
}


class Recorded(Scene):
    """Terms on the taps of a run, some of which are computed anew from changed terms.

    Attributes:
        terms: The right terms.
        values: The tensors at the taps.
    """

    def __init__(self, terms: Mapping[str, Term], values: Mapping[str, Tensor], **scene: Any) -> None:
        super().__init__(**scene)
        self.terms, self.values = terms, values
        self._parts: dict[Term, Tensor | None] = {}  # parts of right terms: many changes leave them as they are
        self._fresh: dict[str, Tensor] = {}
        self._new: Mapping[str, Term] = {}
        self._moved: frozenset[str] = frozenset()

    def keep_parts_of(self, term: Term) -> None:
        """From now on the parts of this right term are computed once only."""
        for _, part in term.walk():
            if part.args:
                self._parts.setdefault(part, None)

    def forget(self) -> None:
        """Frees what `keep_parts_of` kept."""
        self._parts.clear()

    def changed(self, at: str, new: Mapping[str, Term], moved: frozenset[str]) -> Tensor:
        """The tensor at a tap where the taps of `new` have these terms.

        Args:
            at: The tap.
            new: Changed terms.
            moved: The taps up to `at` that are not those of the run any more.
        """
        self._fresh, self._new, self._moved = {}, new, moved
        if moved - {at}:
            self._parts = dict.fromkeys(self._parts)
        return self.tap(at)

    def tap(self, name: str) -> Tensor:
        name = resolved(name)
        if name in self._fresh:
            return self._fresh[name]
        if name not in self._moved and name in self.values:
            return self.values[name]
        self._fresh[name] = self.evaluate(self._new.get(name, self.terms[name]))
        return self._fresh[name]

    def evaluate(self, term: Term) -> Tensor:
        if term not in self._parts:
            return super().evaluate(term)
        found = self._parts[term]
        if found is None:
            found = self._parts[term] = super().evaluate(term)
        return found
