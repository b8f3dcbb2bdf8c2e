"""Changes inside an attention kernel: what is behind it is wrong, though the scores and probs of the dump are right.

A port that dumps scores and probs computes them beside its kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from xlmr_core.parity.grammar import masks, softmaxes
from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.rules import opened
from xlmr_core.parity.grammar.terms import Term, Terms
from xlmr_core.parity.grammar.tokens import Kind, in_words, whole_numbers
from xlmr_core.parity.grammar.words import cost_of

USUAL = (1, 2, 3, 4, 6, 8, *(2**n for n in range(4, 17)))
SPECIAL = (0, 1, 2, 3)  # <s>, <pad>, </s>, <unk>


def hidden_kinds(size: int, vocabulary: int, *, brief: bool = False) -> list[Kind]:
    """The variants of the mask with a number, for so many keys; `brief`: with usual numbers only."""
    numbers = [n for n in whole_numbers(size) if not brief or n in USUAL]
    numbered = [(name, n) for name in masks.BY_NUMBER for n in numbers]
    ids = [(name, token) for name in masks.BY_ID for token in (*SPECIAL, vocabulary - 1)]
    return [*numbered, *ids]


def of_a_kernel(terms: Terms, term: Term, shapes: Mapping[str, tuple[int, ...]], vocabulary: int) -> Iterator[Edit]:
    """Another softmax, mask or scale in the kernel, where a term reads probs.

    Args:
        terms: Of the right model.
        term: Of the tap behind the kernel.
        shapes: Tap -> shape.
        vocabulary: The number of ids.
    """
    for path, part in term.walk():
        if part.op == "tap" and part.value.endswith("attention.probs"):
            for probs, cost, says in _other_probs(terms, part.value, shapes[part.value][-1], vocabulary):
                yield Edit(path, probs, cost, f"in the kernel, {says}")


def _other_probs(terms: Terms, name: str, size: int, vocabulary: int) -> Iterator[tuple[Term, float, str]]:
    probs = terms[name]
    hidden = terms[probs.args[0].value]
    for kind in (*softmaxes.SOFTMAX, *softmaxes.numbered(size)):
        cost = min(1.65, cost_of("softmax", kind))
        yield replace(probs, value=kind), cost, f"the softmax is taken over {in_words(kind)}"
    for kind in (*masks.HIDDEN_KEYS, *hidden_kinds(size, vocabulary)):
        yield replace(probs, args=(replace(hidden, value=kind),)), 1.65, f"the mask hides {in_words(kind)}"
    yield replace(probs, args=(Term("mul", (probs.args[0], opened(1.0))),)), 1.65, "the scores are multiplied by {}"
