"""What a dump shows of attention: which keys each query does not see, and numbers that are added to its scores.

Both are read off scores, or off probs whose scores are right, and stated by the rule that they follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.shown import Added, Hidden, groups
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term, resolved
from xlmr_core.parity.local import WITHIN
from xlmr_core.parity.tap_values import HIDDEN

MASK, BIAS = 2.42, 2.43
CONFIRMED = 16  # values that a mask must leave, and equations that numbers must leave over
MOST_EQUATIONS = 1 << 24  # entries of a matrix to solve
FAINT = 1e-37  # probs below are 0
RULES = ("key", "distance", "key of each text")


@dataclass(frozen=True)
class Shown:
    """Scores, (B, N, S, S).

    Attributes:
        right: Those that should be, of all keys.
        found: Those of the dump, up to a number for each query if `free`.
        seen: Which keys each query of the dump sees.
        counts: The queries and keys that are real.
        error: How far rounding may move each of `found`.
        free: Whether only differences of two keys are known.
    """

    right: Tensor
    found: Tensor
    seen: Tensor
    counts: Tensor
    error: Tensor
    free: bool


def attention_read(target: Target, scene: Recorded) -> Iterator[Edit]:
    """A mask, or numbers added to scores, that give the dump's scores or probs.

    Args:
        target: The wrong tap.
        scene: The run, with the dump's own tensors where they are right.
    """
    shown = _shown(target, scene)
    if shown is None:
        return
    path = (0,) if shown.free else ()
    raw = _raw(target, scene)
    for hidden in _masks(shown, scene.real):
        yield Edit(path, Term("hidden as read", (raw,), hidden), MASK, f"the mask hides {hidden}")
    given = scene.terms[target.tap].args[0]
    for added in _biases(shown, scene.real):
        yield Edit((0,), Term("added as read", (given,), added), BIAS, str(added))


def _raw(target: Target, scene: Recorded) -> Term:
    """The scores of all keys."""
    term = scene.terms[target.tap]
    hidden = scene.terms[resolved(term.args[0].value)] if term.op == "softmax" else term
    return hidden.args[0]


def _shown(target: Target, scene: Recorded) -> Shown | None:
    term = scene.terms[target.tap]
    if not target.tap.endswith(("attention.scores", "attention.probs")) or target.whole.dim() != 4:
        return None
    right = scene.evaluate(_raw(target, scene))
    counts = (scene.real[:, None, :, None] & scene.real[:, None, None, :]).expand_as(right)
    queries = scene.real[:, None, :, None].expand_as(right)
    whole = target.whole
    if term.op == "softmax":
        seen = queries & (whole > FAINT)
        found = whole.clamp(min=FAINT).log()
        return Shown(right, found, seen, counts, target.allowed / whole.clamp(min=FAINT), free=True)
    lowest = right.masked_fill(~counts, 0).amin() + HIDDEN / 2
    seen = queries & (whole > lowest)
    return Shown(right, whole, seen, counts, torch.full_like(whole, target.allowed), free=False)


def _masks(shown: Shown, real: Tensor) -> Iterator[Hidden]:
    """The mask that the dump shows, if it is not the right one, and the keys that it leaves are right."""
    seen, counts = shown.seen, shown.counts
    queries = counts.any(dim=-1, keepdim=True)
    should = real[:, None, None, :].expand_as(seen)
    if bool((seen == should)[queries.expand_as(seen)].all()):
        return
    if shown.free:
        few = seen.sum(dim=-1, keepdim=True) < 2
        expected = shown.right.masked_fill(~seen, -torch.inf).log_softmax(-1)
    else:
        few, expected = torch.zeros_like(seen[..., :1]), shown.right
    far = ((expected - shown.found).abs() > WITHIN * shown.error) & seen & counts
    if bool(far.any()) or int((seen & counts & ~few).sum()) < CONFIRMED:
        return
    yield Hidden.of(seen, real)


def _biases(shown: Shown, real: Tensor) -> Iterator[Added]:
    """Numbers of a key, of a distance or of a key of a text that all differences of scores are made of."""
    known = shown.seen & shown.counts & (shown.error < 0.05)
    difference = shown.found - shown.right
    heads = difference.shape[1]
    for rule in RULES:
        kinds = groups(rule, real).expand_as(difference)
        for by_head in (False, True):
            parts = [slice(head, head + 1) for head in range(heads)] if by_head else [slice(None)]
            columns: list[list[float]] = []
            for part in parts:
                numbers = _fitted(*(x[:, part] for x in (difference, kinds, known, shown.error)), free=shown.free)
                if numbers is None:
                    break
                columns.append(numbers)
            if len(columns) == len(parts):
                yield Added(rule, tuple(map(tuple, columns)), real.shape[1])
                return


def _fitted(difference: Tensor, kinds: Tensor, known: Tensor, error: Tensor, *, free: bool) -> list[float] | None:
    """The number of each kind, if they give all differences, and there are twice as many equations as numbers."""
    size = int(kinds.max()) + 1
    values, of, spread = difference[known], kinds[known], error[known]
    queries = torch.arange(known.shape[0] * known.shape[1] * known.shape[2]).view(known.shape[:3])
    query = queries[..., None].expand_as(known)[known]
    used, of_used = of.unique(return_inverse=True)
    unknowns = len(used) + (len(query.unique()) if free else 0)
    if len(values) < 2 * unknowns + CONFIRMED or not len(values):
        return None
    numbers = _solved(values, of_used, query, spread) if free else _means(values, of_used, len(used))
    if numbers is None:
        return None
    left = values - numbers[of_used]
    if free:
        left = left - _means(left, query, int(query.max()) + 1, 1 / spread.square())[query]
    if bool((left.abs() > WITHIN * spread + 1e-9).any()) or float(numbers.max() - numbers.min()) < 1e-5:
        return None
    all_numbers = torch.zeros(size, dtype=torch.float64)
    all_numbers[used] = numbers - (numbers[0] if free else 0)
    return all_numbers.tolist()


def _means(values: Tensor, of: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones_like(values) if weights is None else weights
    sums = torch.zeros(size, dtype=torch.float64).index_add(0, of, values * weights)
    return sums / torch.zeros(size, dtype=torch.float64).index_add(0, of, weights).clamp(min=1e-300)


def _solved(values: Tensor, of: Tensor, query: Tensor, spread: Tensor) -> Tensor | None:
    """The numbers, where each query has one of its own, too."""
    kinds, rows = int(of.max()) + 1, query.unique(return_inverse=True)[1]
    size = kinds + int(rows.max()) + 1
    if len(values) * size > MOST_EQUATIONS:
        return None
    matrix = torch.zeros(len(values), size, dtype=torch.float64)
    places = torch.arange(len(values))
    matrix[places, of] = 1
    matrix[places, kinds + rows] = 1
    weight = spread.clamp(min=1e-12).reciprocal()
    solution = torch.linalg.lstsq(matrix * weight[:, None], (values * weight)[:, None], driver="gelsd").solution
    return solution[:kinds, 0]
