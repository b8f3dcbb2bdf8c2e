"""Bugs that change more than one tap.

An operation is made before a tap, or behind it, and not where it should be; or attention reads other texts (across.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.grammar.across import attends_to_others
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.rules import norm_input
from xlmr_core.parity.grammar.scopes import where
from xlmr_core.parity.grammar.terms import Term, Terms, add, resolved, tap, terms_of
from xlmr_core.parity.grammar.whole_layers import in_other_order, run_twice
from xlmr_core.parity.grammar.words import words_of
from xlmr_core.parity.judge import Judge, Reached, best_of
from xlmr_core.parity.simulate import SimulatedFault
from xlmr_core.pretrained import PretrainedModel


def joint(judge: Judge, model: PretrainedModel) -> list[Reached]:
    """The changes that give the first wrong tap and explain most: more than one if they give the same numbers.

    Args:
        judge: The dump, and the model with the faults that were found.
        model: The right model.
    """
    ways = _Ways(judge, terms_of(model), model.config)
    found = [
        (says, reached)
        for inside in ways.scopes
        for number, says in enumerate(ways.says)
        if (reached := ways.reached(number, inside)) is not None
    ]
    of_layers = [*run_twice(judge, model), *in_other_order(judge, model)]
    found += [(fault.name, reached) for fault in of_layers if (reached := judge.reached(fault)) is not None]
    best = best_of([reached for _, reached in found])
    unique: dict[str, Reached] = {}  # of scopes that give the same numbers, the widest
    for says, reached in found:
        if reached in best:
            unique.setdefault(says, reached)
    return [*unique.values()]


class _Ways:
    """The changes whose first tap in a layer is the wrong one.

    Attributes:
        says: Each in words.
        scopes: The layers that may have one of them, the most first; none for what is outside the layers.
    """

    def __init__(self, judge: Judge, terms: Terms, config: XLMRobertaConfig) -> None:
        wrong, layers = judge.wrong.tap, range(config.num_hidden_layers)
        across = _may_be_across(judge, terms)
        self._judge, self._layers, self._pad = judge, len(layers), config.pad_token_id
        self._here = int(wrong.split(".")[1]) if wrong.startswith("layers.") else None
        own = [*_ways(terms, wrong, across=across)]
        self.says = [says for says, _ in own]
        self.scopes = [frozenset[int]()]
        self._new = {self._here: [new for _, new in own]}
        if self._here is not None:
            rest = wrong.split(".", 2)[2]
            for layer in layers:
                self._new[layer] = [new for _, new in _ways(terms, f"layers.{layer}.{rest}", across=across)]
            self.scopes = [frozenset(layers), frozenset([self._here])]

    def reached(self, number: int, inside: frozenset[int]) -> Reached | None:
        """How far a change of these layers explains the dump; of later layers, those have it that show it."""
        judge = self._judge
        reached = judge.reached(self._fault(number, inside))
        if reached is None or not _explains(judge, reached, self._new[self._here][number]):
            return None
        while reached.end < len(judge.order):
            following = judge.order[reached.end].split(".")
            if self._here is None or following[0] != "layers" or int(following[1]) == self._here:
                break
            tried = inside ^ {int(following[1])}
            further = judge.reached(self._fault(number, tried))
            if further is None or further.end <= reached.end:
                break
            inside, reached = tried, further
        return replace(reached, fault=self._fault(number, inside, others_known=reached.end == len(judge.order)))

    def _fault(self, number: int, inside: frozenset[int], *, others_known: bool = False) -> SimulatedFault:
        layers: list[int | None] = [*sorted(inside)] or [None]
        new = {tap: term for layer in layers for tap, term in self._new[layer][number].items()}
        words = where(new, "", self._layers, others_known=others_known) if inside else ""
        return fault_of(Change(new, self.says[number], words, 1.0), self._pad)


def _explains(judge: Judge, reached: Reached, changed: Terms) -> bool:
    """Whether the taps that it changes in this layer are explained; of two taps, one behind the first, too."""
    section = judge.wrong.tap.split(".")[:2]
    own = [judge.order.index(tap) for tap in changed if tap in judge.order and tap.split(".")[:2] == section]
    return reached.end > max([*own, judge.start + (len(changed) > 1)])


def _may_be_across(judge: Judge, terms: Terms) -> bool:
    """Whether attention to other texts may begin between the last right tap and the first wrong one."""
    wrong = judge.wrong.tap
    if not wrong.startswith("layers.") or wrong not in terms or int(judge.simulator.real.any(dim=1).sum()) < 2:
        return False
    places = {tap: place for place, tap in enumerate(terms)}
    attention = ".".join(wrong.split(".")[:2]) + ".attention."
    before = places.get(resolved(judge.order[judge.start - 1]), 0) if judge.start else 0
    return before < places[f"{attention}context"] and places[wrong] >= places[f"{attention}scores"]


def _ways(terms: Terms, name: str, *, across: bool = False) -> Iterator[tuple[str, Terms]]:
    """In words, and the new terms of this tap and of one behind it."""
    if name == "embeddings.position":
        yield from _other_padding(terms, name)
    if name.endswith("attention.scores"):
        yield from _of_attention(terms, name)
    if across:
        yield from attends_to_others(terms, name)
    yield from _added_late(terms, name)


def _other_padding(terms: Terms, name: str) -> Iterator[tuple[str, Terms]]:
    """Another id is taken for padding: positions and masks are of it."""
    for other in (0, 2, 3):
        kinds = {
            "positions": ("counted with id {} for padding", other),
            "hide": ("tokens of id {}, not padding", other),
        }
        places = [tap for tap in terms if tap == name or tap.endswith("attention.scores")]
        changed = {
            tap: terms[tap].map(lambda part, kinds=kinds: replace(part, value=kinds.get(part.op, part.value)))
            for tap in places
        }
        yield f"id {other} is taken for padding, in positions and masks", changed


def _of_attention(terms: Terms, name: str) -> Iterator[tuple[str, Terms]]:
    after = name.replace("scores", "probs")
    hidden, probs = terms[name], terms[after]
    scaled, scores = hidden.args[0], probs.args[0]
    shown, scale = _softmax(probs, scores), scaled.args[1]
    changed = {
        "the mask is applied after the softmax": (scaled, Term("values", (shown,), "0 for padded keys")),
        "the scores that are kept are those before the mask": (scaled, _softmax(probs, _mask(hidden, scores))),
        "the scores that are kept are those before the scale": (
            replace(hidden, args=(scaled.args[0],)),
            _softmax(probs, Term("mul", (scores, scale))),
        ),
        "the scores that are kept are those before the scale and the mask": (
            scaled.args[0],
            _softmax(probs, _mask(hidden, Term("mul", (scores, scale)))),
        ),
    }
    yield from ((says, {name: new_scores, after: new_probs}) for says, (new_scores, new_probs) in changed.items())


def _added_late(terms: Terms, name: str) -> Iterator[tuple[str, Terms]]:
    """One of the values that a sum is made of is added behind the norm or the activation that reads the sum."""
    parts = _added(terms[name]) if name in terms else []
    for reader, term in terms.items():
        is_norm = norm_input(term) == tap(name)
        if len(parts) < 2 or not (is_norm or (term.op == "activation" and term.args[0] == tap(name))):
            continue
        what = "the norm" if is_norm else "the activation"
        for late in parts:
            rest = add(*(part for part in parts if part != late))
            yield f"{words_of(late)} is added after {what}, not before it", {name: rest, reader: add(term, late)}


def _added(term: Term) -> list[Term]:
    return [part for arg in term.args for part in _added(arg)] if term.op == "add" else [term]


def _softmax(probs: Term, scores: Term) -> Term:
    return replace(probs, args=(scores,))


def _mask(hidden: Term, scores: Term) -> Term:
    return replace(hidden, args=(scores,))
