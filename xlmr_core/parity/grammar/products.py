"""Changes of both operands of a product at once: of a linear map, of queries and keys, of probs and values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.flash import KINDS, TILES, WEIGHTS, flash, in_tiles
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.rules import Rule
from xlmr_core.parity.grammar.terms import Term, number
from xlmr_core.parity.grammar.transforms import ROTARY
from xlmr_core.parity.grammar.words import PROJECTIONS

WHAT = {"linear": "input and weights", "dot": "queries and keys", "mix": "probs and values"}
ROUNDED = tuple(kind for kind in PRECISIONS if "column" not in kind and "groups" not in kind)
KEPT = ("rounded to float16", "rounded to bfloat16", "rounded to tf32")  # a product may be computed in these
TURNED = (
    *ROTARY,
    "scaled to length 1",
    "scaled to length 1 in each head",
    "scaled to length sqrt(size)",
)
NORMED = (None, "by head", "rms", "rms by head")

# Linear maps that one piece of code computes: of a half of a layer, or of one side of both halves.
GROUPS = {
    "every linear map of the attention": (".attention.",),
    "every linear map of the feed-forward": (".feed_forward.",),
    "q_proj, k_proj, v_proj and up_proj": (*(f".{name}." for name in PROJECTIONS), ".up_proj."),
    "out_proj and down_proj": (".out_proj.", ".down_proj."),
}


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
    """The same of every product, of every linear map, and of those of the same half of a layer or side of a half."""

    def among(ops: Collection[str], names: Sequence[str] = ("",)) -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op not in ops or not any(name in str(part.args[1].value) for name in names):
                return None
            both = _both(part, kind)
            return Term("values", (both,), kind) if computed else both

        return rule

    every = [("of every product", among(WHAT))]
    if kind in KINDS and not computed:
        every += [
            (f"of every product, in attention {WEIGHTS}{in_tiles(tile)}", _in_kernels(kind, tile)) for tile in TILES
        ]
    if like.op != "linear":
        return tuple(every)
    near = [
        (f"of {words}", among({"linear"}, names))
        for words, names in GROUPS.items()
        if any(name in str(like.args[1].value) for name in names)
    ]
    return (*every, ("of every linear map", among({"linear"})), *near)


def _in_kernels(kind: str, tile: int) -> Rule:
    """Every product is rounded; in that of attention, weights before they are divided by their sum."""

    def rule(part: Term) -> Term | None:
        if part.op == "mix":
            return flash(part, kind, tile)
        return _both(part, kind) if part.op in WHAT else None

    return rule


def autocast(path: tuple[int, ...], part: Term) -> Iterator[Edit]:
    """A linear map with its bias that reads and gives narrow numbers, as under autocast.

    Args:
        path: Of the sum of the product and the bias.
        part: It.
    """
    for kind in KEPT[:2]:
        maps = partial(_narrow, kind, ())
        kinds = (
            ("of every linear map", maps),
            ("of every linear map and product", partial(_narrow, kind, ("dot", "mix"))),
            ("of every linear map, product and activation", partial(_narrow, kind, ("dot", "mix", "activation"))),
        )
        says = f"input, weights, bias and result are {kind}, as under autocast"
        yield Edit(path, maps(part) or part, 1.6, says, kinds)


def _narrow(kind: str, others: Collection[str], part: Term) -> Term | None:
    """A linear map with its bias, or another operation, in narrow numbers."""
    if part.op == "add" and part.args[0].op == "linear":
        bias = Term("tensor", (part.args[1],), kind)
        return Term("values", (replace(part, args=(_both(part.args[0], kind), bias)),), kind)
    return Term("values", (_both(part, kind),), kind) if part.op in others else None


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
