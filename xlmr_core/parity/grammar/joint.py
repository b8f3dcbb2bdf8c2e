"""Bugs that change two taps at once: an operation is made before a tap, or behind it, and not where it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.terms import Term, Terms, terms_of
from xlmr_core.parity.judge import Judge, Reached
from xlmr_core.pretrained import PretrainedModel


def joint(judge: Judge, model: PretrainedModel) -> list[Reached]:
    """Those that give the first wrong tap, the one that explains most first.

    Args:
        judge: The dump, and the model with the faults that were found.
        model: The right model.
    """
    wrong = judge.wrong.tap.split(".")
    if wrong[0] != "layers" or wrong[2] != "attention":
        return []
    terms, layers = terms_of(model), range(model.config.num_hidden_layers)
    found: list[Reached] = []
    for inside, words in ((layers, " (in every layer)"), ([int(wrong[1])], f" (in layer {wrong[1]} only)")):
        for says, new in _changes(terms, inside):
            reached = judge.reached(fault_of(Change(new, says, words, 1.0), model.config.pad_token_id))
            found += [reached] if reached and _explains(judge, reached, new) else []
    return sorted(found, key=lambda reached: -reached.end)


def _explains(judge: Judge, reached: Reached, changed: Terms) -> bool:
    """Whether the taps that it changes in this layer are explained, and one behind the first: one is too few."""
    section = judge.wrong.tap.split(".")[:2]
    own = [judge.order.index(tap) for tap in changed if tap in judge.order and tap.split(".")[:2] == section]
    return reached.end > max([*own, judge.start + 1])


def _changes(terms: Terms, layers: range | list[int]) -> Iterator[tuple[str, Terms]]:
    """Of attention, in these layers: words, and the new terms."""
    ways: dict[str, Terms] = {}
    for layer in layers:
        at = f"layers.{layer}.attention."
        hidden, probs = terms[f"{at}scores"], terms[f"{at}probs"]
        scaled, scores = hidden.args[0], probs.args[0]
        shown = replace(probs, args=(scores,))
        scale = scaled.args[1]
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
        for says, (new_scores, new_probs) in changed.items():
            ways.setdefault(says, {}).update({f"{at}scores": new_scores, f"{at}probs": new_probs})
    yield from ways.items()


def _softmax(probs: Term, scores: Term) -> Term:
    return replace(probs, args=(scores,))


def _mask(hidden: Term, scores: Term) -> Term:
    return replace(hidden, args=(scores,))
