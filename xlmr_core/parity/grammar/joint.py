"""Bugs that change two taps at once: an operation is made before a tap, or behind it, and not where it should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.rules import norm_input
from xlmr_core.parity.grammar.terms import Term, Terms, add, tap, terms_of
from xlmr_core.parity.grammar.words import words_of
from xlmr_core.parity.judge import Judge, Reached, best_of
from xlmr_core.pretrained import PretrainedModel


def joint(judge: Judge, model: PretrainedModel) -> list[Reached]:
    """Those that give the first wrong tap and explain most.

    Args:
        judge: The dump, and the model with the faults that were found.
        model: The right model.
    """
    found: list[Reached] = []
    for change in _changes(terms_of(model), judge.wrong.tap, model.config.num_hidden_layers):
        reached = judge.reached(fault_of(change, model.config.pad_token_id))
        found += [reached] if reached and _explains(judge, reached, change.terms) else []
    return best_of(found)


def _explains(judge: Judge, reached: Reached, changed: Iterable[str]) -> bool:
    """Whether the taps that it changes in this layer are explained, and one behind the first: one is too few."""
    section = judge.wrong.tap.split(".")[:2]
    own = [judge.order.index(tap) for tap in changed if tap in judge.order and tap.split(".")[:2] == section]
    return reached.end > max([*own, judge.start + 1])


def _changes(terms: Terms, wrong: str, layers: int) -> Iterator[Change]:
    """Those whose first tap this is: in every layer, and in this one."""
    if not wrong.startswith("layers."):
        yield from (Change(new, says, "", 1.0) for says, new in _ways(terms, wrong))
        return
    _, here, rest = wrong.split(".", 2)
    for inside, words in ((range(layers), " (in every layer)"), ([int(here)], f" (in layer {here} only)")):
        ways = {layer: [*_ways(terms, f"layers.{layer}.{rest}")] for layer in inside}
        for number, (says, _) in enumerate(ways[int(here)]):
            new = {tap: term for its in ways.values() for tap, term in its[number][1].items()}
            yield Change(new, says, words, 1.0)


def _ways(terms: Terms, name: str) -> Iterator[tuple[str, Terms]]:
    """In words, and the new terms of this tap and of one behind it."""
    if name.endswith("attention.scores"):
        yield from _of_attention(terms, name)
    yield from _added_late(terms, name)


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
