"""Edits whose numbers are read off the dump: a limit beyond which values are cut, an order of heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term, number

OF_HEADS = ("attention.q", "attention.k", "attention.v", "attention.context")


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
    if term.op == "activation" and term.value == "gelu":
        given = _of(target, scene, term.args[0])
        limit = None if given is None else _relu_beyond(target, right, given)
        if limit is not None:
            kind = ("gelu, relu beyond -{0:g} and {0:g}", limit)
            yield Edit((), Term("activation", term.args, kind), 1.6, f"the activation is {kind[0].format(limit)}")
    if target.tap.endswith(OF_HEADS):
        order = _order_of_heads(target.values, right, scene.heads)
        if order != sorted(order):
            says = f"heads {', '.join(map(str, order))} stand where 0 to {len(order) - 1} should"
            yield Edit((), Term("heads", (term,), tuple(order)), 2.45, says)  # orders that have a name cost less


def _of(target: Target, scene: Recorded, term: Term) -> Tensor | None:
    """What counts of a term at the wrong tap, computed from the taps before it."""
    return target.compared(scene.changed(target.tap, {target.tap: term}, frozenset({target.tap})))


def _zero_below(target: Target, right: Tensor) -> float | None:
    """The limit below which values of the dump are 0."""
    zeros = target.values == 0
    if not (right[zeros].abs() > target.allowed).any():
        return None
    return _between(right[zeros], right[~zeros])


def _relu_beyond(target: Target, right: Tensor, given: Tensor) -> float | None:
    """The limit beyond which the dump has relu of what the activation reads."""
    relu = given.relu()
    cut = ((right - target.values).abs() > target.allowed) & ((relu - target.values).abs() <= target.allowed)
    kept = (relu - target.values).abs() > target.allowed
    return _between(given[kept], given[cut])


def _between(smaller: Tensor, larger: Tensor) -> float | None:
    """The shortest number between the sizes of the values; None if they overlap."""
    if not smaller.numel() or not larger.numel():
        return None
    low, high = float(smaller.abs().max()), float(larger.abs().min())
    if low > high:
        return None
    middle = (low + high) / 2
    return next((short for digits in range(1, 9) if low <= (short := float(f"{middle:.{digits}g}")) <= high), middle)


def _order_of_heads(values: Tensor, right: Tensor, heads: int) -> list[int]:
    """For each head of the dump the number of the right head that is nearest; in order, if two have the same."""
    theirs, ours = (x.unflatten(-1, (heads, -1)).transpose(0, 1).flatten(1) for x in (values, right))
    order = torch.cdist(theirs, ours).argmin(-1).tolist()
    return order if len(set(order)) == heads else list(range(heads))
