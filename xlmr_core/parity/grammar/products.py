"""Changes of both operands of a product at once: of a linear map, of queries and keys, of probs and values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.rules import Rule
from xlmr_core.parity.grammar.terms import Term, number
from xlmr_core.parity.grammar.words import PROJECTIONS

WHAT = {"linear": "input and weights", "dot": "queries and keys", "mix": "probs and values"}
ROUNDED = tuple(kind for kind in PRECISIONS if "column" not in kind and "groups" not in kind)
KEPT = ("rounded to float16", "rounded to bfloat16", "rounded to tf32")  # a product may be computed in these
TURNED = (
    "rotary positions applied (halves)",
    "rotary positions applied (pairs)",
    "scaled to length 1",
    "scaled to length 1 in each head",
    "scaled to length sqrt(size)",
)
NORMED = (None, "by head", "rms", "rms by head")


def of_both(path: tuple[int, ...], part: Term, eps: float) -> Iterator[Edit]:
    """Both operands of a product are rounded, or scores and probs; or queries and keys are rotated or normalised."""
    if part.op == "softmax":
        for kind in KEPT[:2]:
            inside = replace(part, args=(Term("values", part.args, kind),))
            yield Edit(path, Term("values", (inside,), kind), 1.4, f"the softmax reads and gives numbers {kind}")
        return
    what = WHAT[part.op]
    for kind in ROUNDED:
        both = _both(part, kind)
        yield Edit(path, both, 1.5, f"{what} are {kind}", _more_products(part, kind))
        if kind in KEPT:
            computed = Term("values", (both,), kind)
            more = _more_products(part, kind, computed=True)
            yield Edit(path, computed, 1.6, f"{what} and their product are {kind}", more)
    if part.op != "dot":
        return
    for kind in TURNED:
        yield Edit(path, _both(part, kind), 1.4 if "rotary" in kind else 1.6, f"{what} are {kind}")
    for kind in NORMED:
        new = replace(part, args=tuple(_inside(arg, lambda x, k=kind: normed(x, eps, k)) for arg in part.args))
        yield Edit(path, new, 1.7, f"{what} are normalised without weights" + (f": {kind}" if kind else ""))


def of_projections(term: Term, eps: float) -> Iterator[Edit]:
    """What q and k are changed by where the tap is behind it."""
    leaves = term.leaves("weight")
    own = [name for name in PROJECTIONS[:2] if any(name in leaf for leaf in leaves)]
    if not own or term.op != "add":
        return
    for kind in TURNED:
        rule = _of_queries_and_keys(lambda x, k=kind: Term("values", (x,), k))
        yield Edit((), Term("values", (term,), kind), 1.4, f"it is {kind}", (("queries and keys", rule),))
    for kind in NORMED:
        rule = _of_queries_and_keys(lambda x, k=kind: normed(x, eps, k))
        says = "it is normalised without weights" + (f": {kind}" if kind else "")
        yield Edit((), normed(term, eps, kind), 1.7, says, (("queries and keys", rule),))


def normed(x: Term, eps: float, kind: str | None) -> Term:
    return Term("standard", (x, number(eps)), kind)


def _of_queries_and_keys(change: Rule) -> Rule:
    def rule(part: Term) -> Term | None:
        if part.op != "add" or part.args[1].op != "weight":
            return None
        return change(part) if part.args[1].value.split(".")[-2] in PROJECTIONS[:2] else None

    return rule


def _more_products(like: Term, kind: str, *, computed: bool = False) -> tuple[tuple[str, Rule], ...]:
    """The same of every product, of every linear map, and of those of the same half of a layer."""

    def among(ops: Collection[str], half: str = "") -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op not in ops or half not in str(part.args[1].value):
                return None
            both = _both(part, kind)
            return Term("values", (both,), kind) if computed else both

        return rule

    every = ("of every product", among(WHAT))
    if like.op != "linear":
        return (every,)
    halves = {".attention.": "the attention", ".feed_forward.": "the feed-forward"}
    near = [
        (f"of every linear map of {words}", among({"linear"}, half))
        for half, words in halves.items()
        if half in str(like.args[1].value)
    ]
    return (every, ("of every linear map", among({"linear"})), *near)


def _both(part: Term, kind: str) -> Term:
    return replace(part, args=tuple(_inside(arg, lambda x: Term("values", (x,), kind)) for arg in part.args))


def _inside(operand: Term, change: Rule) -> Term:
    """An operand changed before it is split into heads."""
    if operand.op == "split":
        return replace(operand, args=tuple(_inside(arg, change) for arg in operand.args))
    if operand.op == "weight":
        new = change(operand)
        return Term("tensor", (operand,), new.value) if new is not None and new.op == "values" else operand
    return change(operand) or operand
