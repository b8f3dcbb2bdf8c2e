"""Edits that arrange a value in another way, where the dump shows which: no table lists them.

Each part of a term is recovered from the dump (recovered.py) and compared slice by slice with what it should be, and
with earlier taps of its shape (matching.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import UNFIT, Recorded
from xlmr_core.parity.grammar.gather import Gather
from xlmr_core.parity.grammar.matching import arrangements
from xlmr_core.parity.grammar.pairs import paired
from xlmr_core.parity.grammar.recovered import Recovered, recovered
from xlmr_core.parity.grammar.rules import of_every_residual
from xlmr_core.parity.grammar.target import Target, regions_of
from xlmr_core.parity.grammar.terms import Term, tap
from xlmr_core.parity.grammar.words import words_of
from xlmr_core.parity.local import WITHIN
from xlmr_core.parity.tap_values import in_reading_order

RULED, UNRULED = 2.42, 2.45  # orders that have a name cost less
ELSEWHERE = 0.02  # more where the values are those of another tap


def arranged(target: Target, scene: Recorded) -> Iterator[Edit]:
    """The first arrangement of a part of the wrong tap's term that gives its values, the outermost part first.

    Args:
        target: The wrong tap.
        scene: The run, with the dump's own tensors where they are right.
    """
    term = scene.terms[target.tap]
    right = scene.changed(target.tap, {target.tap: term}, frozenset({target.tap}))
    counts = _counted(target, right, scene.real)
    if counts is None:
        return
    edit = next(_explaining(target, scene, term, counts, inside=None), None)
    if edit is None and right.dim() > 2:
        wrong = ((right - target.whole).abs() > target.allowed) & counts
        tokens = wrong.any(dim=(1, 3) if right.dim() == 4 else 2)
        if 0 < int(tokens.sum()) < int(scene.real.sum()):
            some = counts & (tokens[:, None, :, None] if right.dim() == 4 else tokens[:, :, None])
            edit = next(_explaining(target, scene, term, some, inside=right), None)
    if edit is not None:
        yield edit


def _counted(target: Target, right: Tensor, real: Tensor) -> Tensor | None:
    """Which values of the tap are known: those of real tokens, and of real keys."""
    if right.shape != target.whole.shape or right.dim() not in (2, 3, 4) or right.shape[0] != len(real):
        return None
    finite = target.whole.isfinite()
    if right.dim() == 4:
        return finite & real[:, None, :, None] & real[:, None, None, :]
    return finite & (real[:, :, None] if right.dim() == 3 else real[:, :1])


def _explaining(target: Target, scene: Recorded, term: Term, counts: Tensor, inside: Tensor | None) -> Iterator[Edit]:
    """Those that give the values of the dump, everywhere or in a region.

    Args:
        target: The wrong tap.
        scene: The run.
        term: Of the wrong tap.
        counts: Which values are looked at.
        inside: The right values, where the arrangement is made in a region only.
    """
    parts = list(recovered(scene, term, target.whole, counts, target.allowed))
    for part, new, cost, says in _candidates(target, scene, parts):
        whole = term.with_part(part.path, new)
        found = scene.changed(target.tap, {target.tap: whole}, frozenset({target.tap}))
        if inside is None:
            if _explains(target, found):
                yield _edit(term, part.path, new, cost, says)
            continue
        for region in regions_of(target, inside, found, scene.heads):
            only = Term("only", (whole, term), region)
            yield Edit((), only, cost + 0.05, f"{says}, {region}")


def _edit(term: Term, path: tuple[int, ...], new: Term, cost: float, says: str) -> Edit:
    """The edit, and the same of every sum of a layer or of every norm."""
    old = term.at(path)
    if old.op == "weight" and old.value.endswith(("norm.weight", "norm.bias")):
        leaf = old.value.rpartition(".")[2]
        rule = partial(_of_every_norm, f"norm.{leaf}", new)
        return Edit(path, new, cost, says, (("of every norm", rule),))
    if old.op == "standard":
        return Edit(path, new, cost, says, (("everywhere", lambda part: _in_place_of(part, old, new)),))
    above = term.at(path[:-1])
    if path and above.op == "add" and new.op == "gathered" and new.args == (old,):

        def sum_of(a: Term, b: Term) -> Term:
            args = [a, b]
            args[path[-1]] = Term("gathered", (args[path[-1]],), new.value)
            return Term("add", tuple(args))

        return Edit(path[:-1], sum_of(*above.args), cost, says, of_every_residual(above, sum_of))
    return Edit(path, new, cost, says)


def _of_every_norm(leaf: str, new: Term, part: Term) -> Term | None:
    """The arrangement of the same vector of any norm."""
    same = part.op == "weight" and part.value.endswith(leaf)
    return Term(new.op, (part,), new.value) if same else None


def _in_place_of(part: Term, old: Term, new: Term) -> Term | None:
    """The new term of any part of the kind of the old one."""
    same = (part.op, part.value) == (old.op, old.value) and new.args == (old,)
    return Term(new.op, (part,), new.value) if same else None


def _explains(target: Target, found: Tensor) -> bool:
    seen = target.compared(found)
    return seen is not None and float((seen - target.values).abs().max()) <= WITHIN * target.allowed


def _candidates(
    target: Target, scene: Recorded, parts: list[Recovered]
) -> Iterator[tuple[Recovered, Term, float, str]]:
    """A part, what may stand there, its cost and its words: the part's own values first, those of other taps last."""
    for part in parts:
        if part.part.op in ("mix", "dot"):
            for new, gather, what in paired(scene, part, target.allowed * part.grown):
                yield part, new, _cost(gather), f"of {what}, {gather}"
        if part.part.op in ("mix", "split"):  # (B, N, S, D): what is merged or split has the same values
            continue
        what = f"of {words_of(part.part).rstrip(',')}, " if part.path else ""
        for gather in _gathers(target, scene, part, scene.evaluate(part.part)):
            yield part, Term("gathered", (part.part,), gather), _cost(gather), f"{what}{gather}"
    for part in parts:
        if part.path and part.part.op != "tap":
            continue
        for other in _others(target, scene, part.values):
            for gather in _gathers(target, scene, part, scene.tap(other)):
                says = f"{other} is used for {words_of(part.part)}, {gather}" if part.path else f"{other} is used in " \
                    f"its place, {gather}"  # fmt: skip
                yield part, Term("gathered", (tap(other),), gather), _cost(gather) + ELSEWHERE, says


def _cost(gather: Gather) -> float:
    return RULED if gather.has_rule else UNRULED


def _gathers(target: Target, scene: Recorded, part: Recovered, source: Tensor) -> Iterator[Gather]:
    if source.shape != part.values.shape:
        return
    tolerance = target.allowed * part.grown
    try:
        yield from arrangements(part.values, source.double(), part.counts, scene.real, scene.heads, tolerance)
    except UNFIT:
        return


def _others(target: Target, scene: Recorded, values: Tensor) -> Iterator[str]:
    """The taps of the same shape before the wrong one, the nearest first."""
    names = in_reading_order(scene.values)
    before = names[: names.index(target.tap)]
    yield from (name for name in reversed(before) if scene.values[name].shape == values.shape)
