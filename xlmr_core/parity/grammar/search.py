"""The search for the change that gives the numbers of a dump at the first wrong tap.

All that is above that tap in the data flow is right, so a change is tried on the stored numbers of the run: one
operation, or the operations since the last tap of the dump. What agrees there is made in the model and judged on the
whole dump by diagnose.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.compare import Row
from xlmr_core.parity.grammar.changes import Edit, Grammar
from xlmr_core.parity.grammar.evaluate import UNFIT, Recorded
from xlmr_core.parity.grammar.fitting import EPS, as_factor, fitted, in_words, usual_near, usual_numbers
from xlmr_core.parity.grammar.measured import measured
from xlmr_core.parity.grammar.one_text import Candidate, OneText
from xlmr_core.parity.grammar.rows_read import TABLES, other_rows, rows_read
from xlmr_core.parity.grammar.rules import filled, open_in, open_of
from xlmr_core.parity.grammar.samples import Sample
from xlmr_core.parity.grammar.scopes import scopes
from xlmr_core.parity.grammar.target import Allowances, Target, regions_of, within
from xlmr_core.parity.grammar.terms import Term, resolved
from xlmr_core.parity.grammar.traits import is_eps, is_gentle, rounds
from xlmr_core.parity.local import FEW, WITHIN
from xlmr_core.parity.tap_values import Dump
from xlmr_core.progress import Tick, no_tick

SECONDS = 60.0  # of the search for one fault, after which only usual changes of near operations are tried
TIERS = (1.65, 2.15, 9.0)  # costs: what is simple is tried first, and ends the search where it explains the numbers
EDITS = 5000  # as many are tried at a tap
CHANCE = 1e-4
SHOWN = 0.2
FALLEN = 0.1  # of the difference, where single numbers fall to the other side of a rounding
PAIRED = 1.6  # the highest cost of the edits of which pairs are tried


@dataclass(frozen=True)
class Hit:
    """An edit of the term of one tap that gives the numbers of the dump at the wrong tap."""

    tap: str
    term: Term
    edits: tuple[Edit, ...]
    value: float | None  # in place of the open number, if they have one
    says: str
    cost: float
    rms: float  # what is left of the difference, root mean square
    shown: bool  # whether next to nothing is left of the difference
    terms: Mapping[str, Term]  # those that were changed to see it


@dataclass(frozen=True)
class Left:
    """What is left of a difference: the largest, the root mean square, the share of values beyond rounding."""

    largest: float
    rms: float
    far: float


class LocalSearch:
    """The edits of the operations between the last right taps and the first wrong one."""

    def __init__(
        self,
        grammar: Grammar,
        config: XLMRobertaConfig,
        scene: Recorded,
        dump: Dump,
        wrong: Row,
        known: frozenset[str],
        *,
        quiet: Allowances | None = None,
        deadline: float = math.inf,
        tick: Tick = no_tick,
    ) -> None:
        """
        Args:
            grammar: What edits there are.
            config: Of the model.
            scene: The taps of the run that the dump is compared with, in float64.
            dump: The foreign tensors.
            wrong: The row of the first wrong tap.
            known: The taps of the dump that are right.
            quiet: Taps of the dump that are right, with what rounding explains there: a difference may begin below it.
            deadline: Of `time.monotonic`: after it, only usual edits near the wrong tap are tried.
            tick: Is called with 1 from time to time.
        """
        self.config, self.scene, self.known = config, scene, known
        self.target = Target.of(dump, wrong, scene.real)
        self.grammar = grammar
        self.gap = tuple(self._gap(wrong.tap))
        self.grammar = replace(grammar, read=rows_read(self.target, scene), brief=len(self.gap) > 1)
        self.text = OneText.of(self.target, scene, self.gap) if len(self.gap) > 1 else None
        self.usual = usual_numbers(config)
        self.tick, self.deadline = tick, deadline
        self.quiet = quiet or {}
        self.before = self._left(scene.values[wrong.tap]).rms if wrong.tap in scene.values else math.inf
        self.wrong_values = self._wrong_values()

    def _wrong_values(self) -> int:
        """How many values of the wrong tap differ by more than rounding."""
        right = self.scene.values.get(self.target.tap)
        seen = None if right is None else self.target.compared(right)
        if seen is None:
            return self.target.values.numel()
        return int(((seen - self.target.values).abs() > self.target.allowed).sum())

    def _gap(self, name: str) -> list[str]:
        """The taps of which nothing is known that this one is computed from, itself last."""
        found: dict[str, None] = {}

        def visit(name: str) -> None:
            name = resolved(name)
            if name in found or name in self.known or name not in self.grammar.terms:
                return
            for leaf in self.grammar.terms[name].leaves("tap"):
                visit(leaf)
            found[name] = None

        visit(name)
        return list(found)

    # ---- singles ----

    def singles(self) -> Iterator[list[Hit]]:
        """The hits among the edits of each tier.

        Where the gap has several layers, an edit is tried in all of them at once first, then in each.
        """
        edits = {name: self._edits(name) for name in self.gap}
        last = _layer_of(self.target.tap, self.gap)
        near = [name for name in self.gap if not name.startswith("layers.") or name.startswith(last)]
        far = [name for name in self.gap if name not in near]
        sample = None
        if len(self.gap) == 1:
            self.scene.keep_parts_of(self.grammar.terms[self.gap[0]])
            sample = Sample.of(self.target, self.scene)
        low, later = 0.0, list[Hit]()  # those with an unusual number wait for simpler edits
        # From outputs, changes of several operations give the same numbers: the usual ones are looked at together.
        for high in TIERS if self.text is None else TIERS[1:]:
            for names in (near, far) if far else (near,):
                bounded = bool(high > TIERS[0] or self.quiet or far)
                in_turn = self._in_time(_by_cost(edits, names, low, high), bounded=bounded)
                if self.text is not None:
                    candidates = self._candidates(self.text, in_turn, only_here=names is far)
                    hits = later + self._hits_among(self.text.promising(candidates))
                else:
                    hits = later + self._hits_of(in_turn, sample)
                self.tick(1)
                later = [hit for hit in hits if hit.cost > high]
                yield self._closest([hit for hit in hits if hit.cost <= high])
                if self.text is not None:
                    others = takewhile(lambda _: time.monotonic() <= self.deadline, self.text.by_others())
                    yield self._closest(self._hits_among(others))
            low = high
        yield self._closest(later)
        self.scene.forget()

    def _in_time(self, edits: Iterable[tuple[Edit, str]], *, bounded: bool) -> Iterator[tuple[Edit, str]]:
        """Edits as long as there is time; after the deadline those that were read off the dump."""
        for edit, name in edits:
            if edit.measured or not bounded or time.monotonic() <= self.deadline:
                yield edit, name

    def _hits_of(self, edits: Iterable[tuple[Edit, str]], sample: Sample | None) -> list[Hit]:
        """The hits among edits, each with the name of its tap."""
        hits: list[Hit] = []
        for edit, name in edits:
            term = edit.of(self.grammar.terms[name])
            if sample is None or open_of(term) is not None or sample.may_be(term):
                hits += self._hits(name, (edit,), term)
            if len(self.gap) == 1 and edit.cost <= TIERS[0] and open_of(term) is None and not edit.whole:
                hits += self._hits_in_part(name, edit, term)
        return hits

    def _candidates(self, text: OneText, edits: Iterable[tuple[Edit, str]], *, only_here: bool) -> Iterator[Candidate]:
        """Edits in their scopes, or at their own tap only."""
        for edit, name in edits:
            if text.may_round(edit):
                term = edit.of(self.grammar.terms[name])
                here = only_here and not edit.whole
                for terms in [{name: term}] if here else self._seen_scopes(name, (edit,), term):
                    yield Candidate(name, edit, term, terms, self._moved(terms))

    def _hits_among(self, candidates: Iterable[Candidate]) -> list[Hit]:
        found = [self._hit(each.name, (each.edit,), each.term, each.terms) for each in candidates]
        return [hit for hit in found if hit is not None]

    def _edits(self, name: str) -> list[Edit]:
        """The edits of a tap. Those of a tap that is right leave it right, to rounding."""
        if self.quiet and name == self.target.tap:
            return []
        edits = self.grammar.edits(name)
        if name == self.target.tap and name in self.scene.values:
            edits += [replace(edit, measured=True) for edit in measured(self.target, self.scene)]
        if name in TABLES:
            edits += [replace(edit, measured=True) for edit in other_rows(self.target, self.scene, name)]
        if name not in self.quiet:
            return edits
        term = self.grammar.terms[name]
        self.scene.keep_parts_of(term)
        kept: list[Edit] = []
        for edit in edits:
            if time.monotonic() > self.deadline:
                break
            new = edit.of(term)
            if is_gentle(edit) and open_of(new) is None and within(self.scene, name, new, self.quiet[name]):
                kept.append(edit)
        self.scene.forget()
        return kept

    # ---- pairs ----

    def pairs(self) -> Iterator[list[Hit]]:
        """The hits among two usual edits of one operation, or of two operations of a layer."""
        yield self._closest(self._pairs({name: self.grammar.edits(name, most=PAIRED) for name in self.gap}))

    def _pairs(self, edits: Mapping[str, Sequence[Edit]]) -> list[Hit]:
        hits: list[Hit] = []
        for name in reversed(self.gap):
            term = self.grammar.terms[name]
            for first in edits[name]:
                if open_of(first.part) is not None:
                    continue
                once = first.of(term)
                for second in self.grammar.edits(name, once, most=PAIRED):
                    if second.cost >= first.cost:
                        hits += self._hits(name, (first, second), second.of(once))
                    if time.monotonic() > self.deadline:
                        return hits
        return hits

    # ---- one edit ----

    def _hits_in_part(self, name: str, edit: Edit, term: Term) -> list[Hit]:
        """The edit in a part of the tensor, where it gives the numbers there."""
        right, found = self.scene.values.get(name), self._computed({name: term})
        if right is None or found is None:
            return []
        hits: list[Hit] = []
        for region in regions_of(self.target, right, found, self.grammar.heads):
            new = Term("only", (term, self.grammar.terms[name]), region)
            cost = edit.cost + (1.2 if region.which == "some" else 0.3)
            part = Edit((), new, cost, f"{edit.says}, {region}")
            hits += self._hits(name, (part,), new)
        return hits

    def _hits(self, name: str, edits: tuple[Edit, ...], term: Term) -> list[Hit]:
        """The edit in those scopes that the wrong tap can tell apart, where it gives the numbers.

        Args:
            name: The tap whose term is edited.
            edits: One edit, or two.
            term: What they make of its term.
        """
        found = [self._hit(name, edits, term, terms) for terms in self._seen_scopes(name, edits, term)]
        return [hit for hit in found if hit is not None]

    def _hit(self, name: str, edits: tuple[Edit, ...], term: Term, terms: Mapping[str, Term]) -> Hit | None:
        """The edit in one scope, if it gives the numbers."""
        found = self._judged(terms)
        if found is None:
            return None
        value, rms, extra = found
        seen = {tap: filled(each, value) for tap, each in terms.items()}
        says = " and ".join(edit.says for edit in edits)
        if value is not None:
            says = says.replace("{}", in_words(value, self.config) + as_factor(value, open_in(terms), self.usual))
        cost = sum(edit.cost for edit in edits) + extra
        return Hit(name, filled(term, value), edits, value, says, cost, rms, rms < SHOWN * self.before, seen)

    def _seen_scopes(self, name: str, edits: tuple[Edit, ...], term: Term) -> Iterator[dict[str, Term]]:
        """Where the edit may have been made: only there, or in every layer of the gap, or everywhere in it."""
        seen: list[dict[str, Term]] = []
        if len(self.gap) == 1:
            whole = any(edit.whole for edit in edits)
            kinds = edits[0].kinds if len(edits) == 1 else ()
            own = self.grammar.terms[name]
            ways = [*([] if whole else [term]), *(own.map(lambda part, k=kind: k(part) or part) for _, kind in kinds)]
            yield from ({name: way} for way in dict.fromkeys(ways) if way != own)
            return
        for terms, _ in scopes(self.grammar, name, edits, term, self.config.num_hidden_layers):
            inside = {tap: each for tap, each in terms.items() if tap in self.gap}
            if inside and inside not in seen:
                seen.append(inside)
                yield inside

    def _judged(self, terms: Mapping[str, Term]) -> tuple[float | None, float, float] | None:
        """(the open number, what is left, how unusual the number is) if the terms give the numbers of the dump."""
        start = open_in(terms)
        if start is None:
            left = self._left(self._computed(terms))
            return (None, left.rms, 0.0) if self._agrees(left, terms) else None

        def compute(value: float) -> Tensor | None:
            found = self._computed({tap: filled(term, value) for tap, term in terms.items()})
            return None if found is None else self.target.compared(found)

        of_eps = any(is_eps(term) for term in terms.values())
        best = fitted(compute, self.target.values, start, self.target.noise)
        if best is None:
            return None
        if any(part.op in ("clamp", "capped") for term in terms.values() for part in term.walk_parts()):
            best = replace(best, value=abs(best.value))  # of both signs it is the same
        times = [start * number for number in self.usual] if start not in (0, 1) else []
        usual = usual_near(best, EPS if of_eps else self.usual) or usual_near(best, times)
        for place, value in enumerate([*usual[:4], best.value]):
            left = self._left(self._computed({tap: filled(term, value) for tap, term in terms.items()}))
            if self._agrees(left, terms):
                return value, left.rms, 0.0 if place < min(len(usual), 4) else 0.9
        return None

    def _computed(self, terms: Mapping[str, Term]) -> Tensor | None:
        """The wrong tap with these terms."""
        try:
            return self.scene.changed(self.target.tap, terms, self._moved(terms))
        except UNFIT:
            return None

    def _moved(self, terms: Mapping[str, Term]) -> frozenset[str]:
        """The taps of the gap that these terms change."""
        moved: set[str] = set()
        for name in self.gap:
            term = terms.get(name)
            reads = self.grammar.terms[name] if term is None else term
            if term is not None or any(resolved(leaf) in moved for leaf in reads.leaves("tap")):
                moved.add(name)
        return frozenset(moved | {self.target.tap})

    def _left(self, found: Tensor | None) -> Left:
        """What is left of the difference."""
        seen = None if found is None else self.target.compared(found)
        if seen is None:
            return Left(math.inf, math.inf, 1.0)
        left = (seen - self.target.values).masked_fill(seen == self.target.values, 0).abs()
        far = float((left > self.target.allowed).double().mean())
        return Left(float(left.max()), float(left.square().mean().sqrt()), far)

    def _agrees(self, left: Left, terms: Mapping[str, Term]) -> bool:
        """To noise; an edit that makes values larger makes rounding errors larger, too: the model will be the judge.

        Where the edit is a rounding, a few numbers may fall to the other side of it: a weight that does moves a feature
        of every token, but by little.
        """
        if left.rms > 0.5 * self.before or self._by_chance(left, terms):
            return False
        falls = left.far < FEW or left.rms < FALLEN * self.before
        return left.largest <= WITHIN * self.target.allowed or (falls and rounds(terms))

    def _by_chance(self, left: Left, terms: Mapping[str, Term]) -> bool:
        """Whether one of so many edits would come as close to so few values without being right."""
        if not math.isfinite(self.before) or left.rms == 0:
            return False
        open_numbers = sum(part.op == "open" for part in next(iter(terms.values())).walk_parts())
        values = min(self.wrong_values, 1000) - open_numbers
        chance = values * math.log(max(left.rms, self.target.noise) / self.before) + math.log(EDITS)
        return chance > math.log(CHANCE)

    def _closest(self, hits: list[Hit]) -> list[Hit]:
        """Those as close as the closest: of right ones, only rounding errors are left, and they share those.

        A port rounds its constants, too: a right number may be further off than a fitted one, by one rounding.
        """
        if not hits:
            return []
        best = min(hit.rms for hit in hits)
        limit = best * math.sqrt(1 + 8 / math.sqrt(self.target.values.numel())) + self.target.unit
        kept = [hit for hit in hits if hit.rms <= limit]
        return sorted(kept, key=lambda hit: (hit.cost, hit.rms))


def _layer_of(tap: str, gap: Sequence[str]) -> str:
    """The beginning of the names of the last layer of a gap."""
    layers = [int(name.split(".")[1]) for name in gap if name.startswith("layers.")]
    return f"layers.{max(layers)}." if layers else tap


def _by_cost(
    edits: Mapping[str, Sequence[Edit]], names: Sequence[str], low: float, high: float
) -> list[tuple[Edit, str]]:
    """The edits of these taps whose cost lies between, the most usual first."""
    found = [(edit, name) for name in reversed(names) for edit in edits[name] if low < edit.cost <= high]
    return sorted(found, key=lambda each: each[0].cost)
