"""Which of several changes that explain as much are named, and in which words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.faults import Fault
from xlmr_core.parity.grammar.changes import Grammar
from xlmr_core.parity.grammar.inputs import told_apart_by
from xlmr_core.parity.grammar.orders import orders
from xlmr_core.parity.grammar.search import Hit
from xlmr_core.parity.grammar.terms import Term, resolved, tap
from xlmr_core.parity.grammar.tokens import in_words
from xlmr_core.parity.grammar.transforms import LOST
from xlmr_core.parity.judge import Judge, Reached
from xlmr_core.parity.simulate import SimulatedFault

ORDERS = orders(-1, "features")
COLUMNS = {*ORDERS, *LOST}
FITTED = 0.3  # what a fitted number may cost more than a change without one: it gives much the same as other changes


def named(judge: Judge, grammar: Grammar, config: XLMRobertaConfig, found: list[tuple[Hit, Reached]]) -> list[Reached]:
    """The simplest of the changes that explain as much, and those that another input tells apart from them.

    The same change of another value is kept, probs for values, and a change of another tap: it is another line of the
    port.

    Args:
        judge: The dump, and the model with the faults that were found.
        grammar: What edits there are.
        config: Of the model.
        found: Each change with how much it explains.
    """
    best = _with_numbers(sorted(_simplest(grammar, found), key=lambda each: each[0].cost))
    kept = best[:1]
    for hit, reached in best[1:]:
        if hit.says in [its.says for its, _ in kept]:
            continue  # two places of one step, in the same words
        if hit.tap not in [its.tap for its, _ in kept]:
            kept.append((hit, reached))
            continue
        pairs = ((its.fault, reached.fault) for _, its in kept)
        if _is_the_same_elsewhere(hit, best[0][0]) or all(_apart(judge, config, pair) for pair in pairs):
            kept.append((hit, reached))
    return [reached for _, reached in kept]


def _simplest(grammar: Grammar, found: list[tuple[Hit, Reached]]) -> list[tuple[Hit, Reached]]:
    """Those that are not made in a part of the batch only, nor with a number that a change without one explains."""
    best = [(hit, reached) for hit, reached in found if hit.edits[-1].part.op != "only"] or found
    plain = min((hit.cost for hit, _ in best if hit.value is None), default=math.inf)
    best = [(hit, reached) for hit, reached in best if hit.value is None or hit.cost <= plain + FITTED]
    taps = {hit.tap for hit, _ in best}
    return [(hit, reached) for hit, reached in best if _input_of(grammar, hit) not in taps]


def _input_of(grammar: Grammar, hit: Hit) -> str | None:
    """The tap whose value a hit changes on its way into the next operation, if it does no more.

    Features that are moved or lost on their way into a linear map may be columns of its weight: that is more.
    """
    edit = hit.edits[-1]
    path = edit.path if len(hit.edits) == 1 else ()
    part = grammar.terms[hit.tap].at(path)
    of_columns = path and grammar.terms[hit.tap].at(path[:-1]).op == "linear" and edit.part.value in COLUMNS
    return resolved(part.value) if part.op == "tap" and not of_columns else None


def _with_numbers(best: list[tuple[Hit, Reached]]) -> list[tuple[Hit, Reached]]:
    """One of the hits that differ in the number of a variant only, with all of the numbers in its words."""
    groups: dict[object, list[tuple[Hit, Reached]]] = {}
    for hit, reached in best:
        groups.setdefault(_without_number(hit), []).append((hit, reached))
    joined: list[tuple[Hit, Reached]] = []
    for alike in groups.values():
        hit, reached = max(alike, key=_number)  # small tiles fill up most lengths: they are like other changes
        kind = hit.edits[-1].part.value
        if len(alike) > 1 and isinstance(reached.fault, Fault):
            *some, last = sorted({_number(each) for each in alike})
            numbers = f"{', '.join(map(str, some))} or {last}"
            old, new = in_words(kind), in_words((kind[0], numbers))
            reached = replace(reached, fault=replace(reached.fault, name=reached.fault.name.replace(old, new)))
        joined.append((hit, reached))
    return joined


def _number(found: tuple[Hit, Reached]) -> float:
    """The number of a variant; 0 if it has none."""
    value = found[0].edits[-1].part.value
    return value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float) else 0


def _without_number(hit: Hit) -> object:
    """What a hit shares with those of another number; the hit itself where it has no number."""
    part = hit.edits[-1].part
    numbered = len(hit.edits) == 1 and isinstance(part.value, tuple) and len(part.value) == 2
    return (hit.tap, hit.edits[0].path, part.op, part.value[0], part.args) if numbered else id(hit)


def _is_the_same_elsewhere(a: Hit, b: Hit) -> bool:
    """Whether two hits are one edit of two values."""
    one, other = a.edits[-1].part, b.edits[-1].part
    if a.edits[:-1] != b.edits[:-1] or one.op == "only":
        return False
    alike = (one.op, one.value, one.args[1:]) == (other.op, other.value, other.args[1:])
    return alike and one.args[:1] != other.args[:1]


def _apart(judge: Judge, config: XLMRobertaConfig, faults: tuple[SimulatedFault, SimulatedFault]) -> bool:
    return told_apart_by(judge.simulator, config, judge.made, faults)[1] is not None


def seen_first(terms: Mapping[str, Term], name: str, says: str) -> tuple[str, str]:
    """The first tap of a change that is like the one that it was found at, and the words of it there."""
    if not name.startswith("layers."):
        return name, says
    _, here, rest = name.split(".", 2)
    alike = [tap for tap in terms if tap.startswith("layers.") and tap.split(".", 2)[2] == rest]
    first = min((int(tap.split(".")[1]) for tap in alike), default=int(here))
    if {*re.findall(r"layers\.(\d+)", says)} - {here}:
        return name, says  # of this layer and another one
    return f"layers.{first}.{rest}", says.replace(f"layers.{here}.", f"layers.{first}.")


def says_of(judge: Judge, grammar: Grammar, hit: Hit) -> str:
    """In words. What a linear map reads with features moved or lost is its weight with columns moved or lost."""
    edit = hit.edits[-1]
    if len(hit.edits) > 1 or edit.part.op != "values":
        return hit.says
    matrix = _matrix_behind(judge, grammar, hit.tap, edit.path)
    if matrix is None:
        return hit.says
    if edit.part.value in ORDERS:
        return f"{hit.says}, or the columns of {matrix} in that order"
    return f"{hit.says}, or those columns of {matrix} are lost" if edit.part.value in LOST else hit.says


def _matrix_behind(judge: Judge, grammar: Grammar, name: str, path: tuple[int, ...]) -> str | None:
    """The weight that multiplies a part of a tap's term, or the whole tap if the dump does not have it."""
    if path:
        parent = grammar.terms[name].at(path[:-1])
        return parent.args[1].value if parent.op == "linear" and path[-1] == 0 else None
    readers = [part for term in grammar.terms.values() for part in term.walk_parts() if tap(name) in part.args]
    if name in judge.dump or len(readers) != 1 or readers[0].op != "linear":
        return None
    return readers[0].args[1].value
