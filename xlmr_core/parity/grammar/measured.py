"""Edits whose numbers are read off the dump: arrangements, and a limit beyond which values are cut."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from xlmr_core.parity.grammar.arranged import arranged
from xlmr_core.parity.grammar.attention_read import attention_read
from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.factors_read import other_factors
from xlmr_core.parity.grammar.low_rank import of_low_rank
from xlmr_core.parity.grammar.pieces import pieces_of, shortest
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term, number
from xlmr_core.parity.grammar.vectors_read import other_vectors


def measured(target: Target, scene: Recorded) -> Iterator[Edit]:
    """The edits of the wrong tap's term with numbers that its values give in closed form.

    Args:
        target: The wrong tap.
        scene: The run, with the dump's own tensors where they are right.
    """
    term = scene.terms[target.tap]
    right = _of(target, scene, term)
    if right is None:
        return
    limit = _zero_below(target, right)
    if limit is not None:
        says = f"values smaller than {limit:g} are 0"
        yield Edit((), Term("shrunk", (term, number(limit))), 1.6, says)
    if term.op == "activation":
        given = _of(target, scene, term.args[0])
        pieces = None if given is None else pieces_of(given, target.values, target.allowed)
        if pieces is not None:
            yield Edit((), Term("pieces", term.args, pieces), 1.6, f"the activation is {pieces}")
    yield from of_low_rank(target, scene)
    yield from arranged(target, scene)
    yield from attention_read(target, scene)
    yield from other_factors(target, scene)
    yield from other_vectors(target, scene)


def _of(target: Target, scene: Recorded, term: Term) -> Tensor | None:
    """What counts of a term at the wrong tap, computed from the taps before it."""
    return target.compared(scene.changed(target.tap, {target.tap: term}, frozenset({target.tap})))


def _zero_below(target: Target, right: Tensor) -> float | None:
    """The limit below which values of the dump are 0."""
    zeros = target.values == 0
    if not (right[zeros].abs() > target.allowed).any():
        return None
    return _between(right[zeros], right[~zeros])


def _between(smaller: Tensor, larger: Tensor) -> float | None:
    """The shortest number between the sizes of the values; None if they overlap."""
    if not smaller.numel() or not larger.numel():
        return None
    low, high = float(smaller.abs().max()), float(larger.abs().min())
    if low > high:
        return None
    return shortest(low, high)
