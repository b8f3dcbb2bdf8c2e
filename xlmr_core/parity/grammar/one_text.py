"""One text of a batch, on which most changes of a model are seen to be wrong, many of them at once.

Between the last right tap of a dump and the first wrong one there may be the whole model. Then each change costs a run,
and there are thousands. The text is short, and what changes leave as it is, is computed for sixteen of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import UNFIT, Recorded, Scene
from xlmr_core.parity.grammar.fitting import fitted
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.rules import filled, open_in
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term, resolved
from xlmr_core.parity.grammar.words import FLOWS
from xlmr_core.parity.tap_values import elements

AT_ONCE = 16
NEAR = 0.3  # how much of the difference a right change may leave: where it rounds, some values are another number
SMALL = 1e-4  # a difference, as a part of the values, that float32 shows too coarsely to fit a number to it
STEPS = 8  # of Gauss and Newton
WIDTH = 0.05  # of the difference that gives the slope, as a part of the number
RELATED = 0.14  # how much of the difference the first step explains, at least
STALLED, SHRUNK = 3, 0.7  # after so many steps, so little of the error must be left
ROUNDED = 0.3  # a rounding explains a difference only if rounding everything makes this part of it, at least


@dataclass(frozen=True)
class Candidate:
    """An edit of the term of a tap, with the new terms of all taps that have it."""

    name: str
    edit: Edit
    term: Term
    terms: Mapping[str, Term]
    moved: frozenset[str]  # the taps of the gap that these terms change


class OneText:
    """The shortest of the texts that are wrong, without its padding."""

    def __init__(self, target: Target, scene: Recorded, gap: Sequence[str], row: int) -> None:
        """
        Args:
            target: The wrong tap.
            scene: The run, of several texts.
            gap: The taps that may be edited, in reading order, the wrong one last.
            row: The number of the text.
        """
        self.gap = gap
        tokens = scene.real[row].nonzero()[:, 0]
        self._all, self._row, self._tokens = scene, row, tokens
        real, whole = scene.real[row : row + 1, tokens], _of_text(target.whole, row, tokens)
        self._target = replace(target, whole=whole, values=elements(target.tap, whole, real), real=real)
        self._right = elements(target.tap, _of_text(scene.values[target.tap], row, tokens), real)
        self._before = _size(self._right - self._target.values)
        self._roundings: dict[str, float] = {}
        self._tried: set[frozenset[tuple[str, Term]]] = set()  # "in every layer" is one change, seen from each layer
        self._without_effect: list[Candidate] = []
        self._scene = Recorded(
            scene.terms,
            {tap: _of_text(tensor, row, tokens) for tap, tensor in scene.values.items()},
            weights=scene.weights,
            heads=scene.heads,
            pad=scene.pad,
            rows=1,
            top_ids=None if scene.top_ids is None else scene.top_ids[row : row + 1, tokens],
        )
        self._scene.ids, self._scene.real = scene.ids[row : row + 1, tokens], real
        self._copies = _Copies(self._scene)

    @classmethod
    def of(cls, target: Target, scene: Recorded, gap: Sequence[str]) -> OneText | None:
        """None if no text is wrong by much, or the wrong tap has no texts."""
        right = scene.values.get(target.tap)
        if right is None or right.shape != target.whole.shape or len(right) != len(scene.real):
            return None
        errors = [_error(target, right, scene.real, row) for row in range(len(right))]
        lengths: list[int] = scene.real.sum(dim=1).tolist()
        wrong = [row for row, error in enumerate(errors) if error > max(4 * target.allowed, 0.1 * max(errors))]
        return cls(target, scene, gap, min(wrong, key=lengths.__getitem__)) if wrong else None

    def promising(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """Those that give the text of the dump, or nearly so."""
        closed, opened = list[Candidate](), list[Candidate]()
        for candidate in candidates:
            key = frozenset(candidate.terms.items())
            if key in self._tried:
                continue
            self._tried.add(key)
            if open_in(candidate.terms) is None:
                closed.append(candidate)
            else:
                opened.append(candidate)
            if len(closed) == AT_ONCE:
                yield from self._near(closed)
                closed = []
            if len(opened) == AT_ONCE:
                yield from self._nearly_fitted(opened)
                opened = []
        yield from self._near(closed)
        yield from self._nearly_fitted(opened)

    def by_others(self) -> Iterator[Candidate]:
        """Those that had no effect on this text, but have one where the other texts of the batch are there, too."""
        waiting, self._without_effect = self._without_effect, []
        return (candidate for candidate in waiting if self._is_moved_by_others(candidate))

    def may_round(self, edit: Edit) -> bool:
        """Whether an edit that rounds in one place may do as much; True for all others."""
        kinds = {part.value for part in edit.part.walk_parts() if part.op in ("values", "tensor")}
        return all(self._rounding(kind) >= ROUNDED * self._before for kind in kinds if kind in PRECISIONS)

    def _rounding(self, kind: str) -> float:
        """How much the text changes where everything is rounded."""
        if kind not in self._roundings:
            rule = partial(_rounded, kind)
            terms = {tap: self._scene.terms[tap].map(rule) for tap in self.gap}
            found = self._computed(terms, frozenset(terms))
            self._roundings[kind] = math.inf if found is None else _size(found - self._right)
        return self._roundings[kind]

    def _nearly_fitted(self, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        """Those that come near at some number: the first steps of Gauss and Newton, for all of them at once."""
        if self._before < SMALL * _size(self._right):
            yield from (each for each in candidates if self._may_be_fitted(each))
            return
        at = {number: open_in(each.terms) or 0.0 for number, each in enumerate(candidates)}
        least = dict.fromkeys(at, self._before)
        for step in range(STEPS):
            width = {number: WIDTH * max(abs(value), 0.01) for number, value in at.items()}
            found = self._filled(candidates, at)
            moved = self._filled(candidates, {number: value + width[number] for number, value in at.items()})
            for number in [*at]:
                here, there = found[number], moved[number]
                if here is None or there is None:
                    del at[number]
                    continue
                residual, slope = (self._target.values - here).flatten(), ((there - here) / width[number]).flatten()
                error, steepness = _size(residual), _size(slope)
                if error <= NEAR * self._before:
                    yield candidates[number]
                    del at[number]
                    continue
                towards = float((residual * slope).mean()) / (steepness * steepness) if steepness else 0.0
                unrelated = step == 0 and abs(towards) * steepness < RELATED * error
                if not steepness or unrelated or (step == STALLED and error > SHRUNK * least[number]):
                    del at[number]
                    continue
                least[number] = min(least[number], error) if step else error
                at[number] += towards
            if not at:
                return

    def _filled(self, candidates: Sequence[Candidate], numbers: Mapping[int, float]) -> dict[int, Tensor | None]:
        """What counts of the wrong tap, with these numbers in place of those that are open."""
        tried = [
            replace(candidates[number], terms={tap: filled(term, at) for tap, term in candidates[number].terms.items()})
            for number, at in numbers.items()
        ]
        outputs = self._copies.outputs(self._target.tap, self.gap, tried)
        return {
            number: None if output is None else self._target.compared(output)
            for number, output in zip(numbers, outputs, strict=True)
        }

    def _may_be_fitted(self, candidate: Candidate) -> bool:
        def compute(number: float) -> Tensor | None:
            terms = {tap: filled(term, number) for tap, term in candidate.terms.items()}
            return self._computed(terms, candidate.moved)

        start = open_in(candidate.terms) or 0.0
        return fitted(compute, self._target.values, start, self._target.noise) is not None

    def _near(self, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        outputs = self._copies.outputs(self._target.tap, self.gap, candidates)
        for candidate, output in zip(candidates, outputs, strict=True):
            found = None if output is None else self._target.compared(output)
            if found is None:
                continue
            if _size(found - self._target.values) <= NEAR * self._before:
                yield candidate
            elif _counts_padding(candidate.edit) or ((found - self._right).abs() <= self._target.noise).all():
                self._without_effect.append(candidate)

    def _is_moved_by_others(self, candidate: Candidate) -> bool:
        """Whether the change moves the text where the other texts of the batch are there, too."""
        for tap, term in candidate.terms.items():
            try:
                found = self._all.changed(tap, {tap: term}, frozenset({tap}))
            except UNFIT:
                continue
            if found.shape == self._all.values[tap].shape:
                now, before = (_of_tokens(x, self._row, self._tokens) for x in (found, self._all.values[tap]))
                if not torch.allclose(now, before):
                    return True
        return False

    def _computed(self, terms: Mapping[str, Term], moved: frozenset[str]) -> Tensor | None:
        """What counts of the wrong tap with these terms, None if they do not fit it."""
        try:
            return self._target.compared(self._scene.changed(self._target.tap, terms, moved))
        except UNFIT:
            return None


class _Copies(Scene):
    """As many copies of one text as there are changes, one below the other, in float32."""

    def __init__(self, scene: Recorded) -> None:
        tables = {name: tensor for name, tensor in scene.weights.items() if name.startswith("embeddings.")}
        others = {name: tensor.float() for name, tensor in scene.weights.items() if name not in tables}
        super().__init__(tables | others, scene.heads, scene.pad, 1, scene.top_ids)
        self._one = scene
        self._own: dict[str, Tensor] = {}  # the taps that changes moved, (K, ...)
        self._count = 1

    def outputs(self, tap: str, gap: Sequence[str], candidates: Sequence[Candidate]) -> list[Tensor | None]:
        """The tensor at a tap for each of K changes; None where its terms do not fit."""
        self._own, self._count = {}, len(candidates)
        self.ids, self.real = (x.expand(self._count, -1) for x in (self._one.ids, self._one.real))
        unfit: set[int] = set()
        moved = frozenset[str]().union(*(candidate.moved for candidate in candidates))
        for name in (name for name in gap if name in moved):
            own = {number: each.terms[name] for number, each in enumerate(candidates) if name in each.terms}
            common = self.evaluate(self._one.terms[name]).float().clone()
            for number, term in own.items():
                try:
                    common[number] = _Copy(self, number).evaluate(term)[0]
                except UNFIT:
                    unfit.add(number)
            self._own[name] = common
        return [None if number in unfit else self.tap(tap)[number : number + 1] for number in range(self._count)]

    def tap(self, name: str) -> Tensor:
        name = resolved(name)
        if name in self._own:
            return self._own[name]
        one = self._one.values[name].float()
        return one.expand(self._count, *one.shape[1:])


class _Copy(Scene):
    """One of the copies."""

    def __init__(self, copies: _Copies, number: int) -> None:
        super().__init__(copies.weights, copies.heads, copies.pad, 1, copies.top_ids)
        self._copies, self._which = copies, slice(number, number + 1)
        self.ids, self.real = copies.ids[:1], copies.real[:1]

    def tap(self, name: str) -> Tensor:
        return self._copies.tap(name)[self._which]


def _counts_padding(edit: Edit) -> bool:
    """Whether it goes through the keys by number: padding, which the one text does not have, is counted."""
    return any(part.op == "softmax" and isinstance(part.value, tuple) for part in edit.part.walk_parts())


def _rounded(kind: str, part: Term) -> Term:
    """Tables are not: only the rows that are read."""
    if part.op == "weight" and not part.value.startswith("embeddings."):
        return Term("tensor", (part,), kind)
    return Term("values", (part,), kind) if part.op in FLOWS else part


def _of_text(x: Tensor, row: int, tokens: Tensor) -> Tensor:
    """The tensor of one text of a batch: of (B, S, H), (B, N, S, S) or (B, H)."""
    if x.dim() == 4:
        return x[row : row + 1][:, :, tokens][..., tokens]
    return x[row : row + 1, tokens] if x.dim() == 3 else x[row : row + 1]


def _of_tokens(x: Tensor, row: int, tokens: Tensor) -> Tensor:
    """The values of the tokens of one text, with those of padded keys."""
    return x[row][:, tokens] if x.dim() == 4 else x[row, tokens] if x.dim() == 3 else x[row]


def _error(target: Target, right: Tensor, real: Tensor, row: int) -> float:
    its = slice(row, row + 1)
    difference = elements(target.tap, right[its], real[its]) - elements(target.tap, target.whole[its], real[its])
    return float(difference.abs().max())


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
