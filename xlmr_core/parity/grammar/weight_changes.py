"""Changes of tensors of the checkpoint: rounded, rearranged, taken from elsewhere, cut wrongly out of a fused one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from xlmr_core.parity.grammar import matrices
from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.rules import Rule, exchanged, opened, renamed
from xlmr_core.parity.grammar.terms import Term, number, weight
from xlmr_core.parity.grammar.words import CLAMPED, PROJECTIONS, ROWWISE, module_of

Weights = Mapping[str, Tensor]


def of_a_tensor(weights: Weights, path: tuple[int, ...], part: Term, *, brief: bool) -> Iterator[Edit]:
    """Changes of one tensor, and of those like it; `brief`: without pruned ones."""
    name, tensor = part.value, weights[part.value]
    is_table = tensor.dim() == 2 and "embeddings" in name
    if not is_table:
        for other, its in weights.items():
            if its.shape == tensor.shape and other != name:
                cost = 2.0 if module_of(other).split(".")[:2] == module_of(name).split(".")[:2] else 2.3
                yield Edit(path, weight(other), cost, f"{other} is used for {name}")
            elif tensor.dim() == 2 and its.shape == tensor.shape[::-1]:
                new = Term("tensor", (weight(other),), "transposed")
                yield Edit(path, new, 2.6, f"{other}, transposed, is used for {name}")
    table = matrices.VECTORS if tensor.dim() == 1 else matrices.MATRICES
    for kind in ROWWISE if is_table else table:
        cost = 1.0 if kind == "transposed" else 1.5 if kind in PRECISIONS else 2.5
        new = Term("tensor", (part,), kind)
        says = f"of {name}, {kind}" if " of " in kind else f"{name} is {kind}"
        if kind == "transposed" and tensor.shape[0] != tensor.shape[1]:
            says = f"{name} is reshaped where it should be transposed"
        yield Edit(path, new, cost, says, _more_weights(weights, kind, tensor))
    if is_table:
        return
    if tensor.dim() == 2 and not brief:
        for kind in matrices.PRUNED:
            says = f"{name} is pruned: {kind}"
            yield Edit(path, Term("tensor", (part,), kind), 2.0, says, _more_weights(weights, kind, tensor))
        for kind in matrices.MISREAD:
            new = Term("tensor", (part,), kind)
            yield Edit(path, new, 2.0, f"{name} is {kind}", _more_weights(weights, kind, tensor))
    yield Edit(path, Term("mul", (part, opened(1.0))), 1.8, f"{name} is multiplied by {{}}")
    yield Edit(path, Term("add", (part, opened(0.0))), 2.2, f"{{}} is added to {name}")
    yield Edit(path, Term("clamp", (part, opened(CLAMPED))), 2.5, f"{name} is cut off at {{}}")
    zeros = Term("values", (part,), "missing (zeros)") if tensor.dim() > 1 else Term("mul", (part, number(0.0)))
    yield Edit(path, zeros, 1.3, f"{name} is all zeros")


def _more_weights(weights: Weights, kind: str, like: Tensor) -> tuple[tuple[str, Rule], ...]:
    """The same change of more weights: of those of this shape, of matrices or vectors, of all."""

    def among(fits: Callable[[str, Tensor], bool]) -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op != "weight" or not fits(part.value, weights[part.value]):
                return None
            return Term("tensor", (part,), kind)

        return rule

    linear = among(lambda name, its: its.dim() == 2 and "embeddings" not in name)
    if kind in PRECISIONS:
        what = "matrix" if like.dim() == 2 else "vector"
        return (
            ("all tensors", among(lambda name, its: True)),
            (f"every {what}", among(lambda name, its: its.dim() == like.dim())),
            *((("every linear map", linear),) if like.dim() == 2 else ()),
        )
    alike = (f"every {'x'.join(map(str, like.shape))}", among(lambda name, its: its.shape == like.shape))
    return (alike, ("every linear map", linear)) if kind in {**matrices.PRUNED, **matrices.MISREAD} else (alike,)


def of_modules(weights: Weights, name: str, term: Term) -> Iterator[Edit]:
    """Weight and bias together: those of another module, or cut wrongly out of a fused one."""
    for module in sorted({module_of(leaf) for leaf in term.leaves("weight")}):
        own = [leaf for leaf in term.leaves("weight") if module_of(leaf) == module]
        if len(own) < 2:
            continue
        for other in sorted({module_of(leaf) for leaf in weights}):
            pairs = {leaf: other + leaf[len(module) :] for leaf in own}
            if other != module and all(_alike(weights, a, b) for a, b in pairs.items()):
                near = other.split(".")[:2] == module.split(".")[:2]
                new = term.map(lambda part, pairs=pairs: renamed(part, pairs))
                yield Edit((), new, 1.1 if near else 1.4, f"{other} is used for {module}")
                if near and module.startswith("layers."):
                    says = f"{module} and {other.split('.', 2)[2]} are exchanged"
                    yield Edit((), new, 1.1, says, exchanged(module, other), whole=True)
                if module.startswith("layers.") and other.split(".")[2:] == module.split(".")[2:]:
                    ours, theirs = (".".join(name.split(".")[:2]) for name in (module, other))
                    says = f"all weights of {theirs} are used for {ours}"
                    yield Edit((), new, 1.1, says, _layers_moved(weights, ours, theirs), whole=True)
        place = module.rpartition(".")[2]
        if place in PROJECTIONS:
            for kind in matrices.CUTS:
                new = term.map(lambda part, kind=kind, own=own: _cut(part, own, kind))
                yield Edit((), new, 1.8, f"{module} is cut out of the fused q, k, v in another order: {kind}")


def _layers_moved(weights: Weights, ours: str, theirs: str) -> tuple[tuple[str, Rule], ...]:
    """A layer has all weights of another: each that of the one as far from it, or from the other end, or only this."""
    count = 1 + max(int(leaf.split(".")[1]) for leaf in weights if leaf.startswith("layers."))
    here, there = (int(name.split(".")[1]) for name in (ours, theirs))

    def among(layers: str, other: Callable[[int], int]) -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op != "weight" or not part.value.startswith(layers):
                return None
            _, layer, rest = part.value.split(".", 2)
            return weight(f"layers.{other(int(layer))}.{rest}")

        return rule

    def swapped(part: Term) -> Term | None:
        if part.op != "weight" or not part.value.startswith((f"{ours}.", f"{theirs}.")):
            return None
        _, layer, rest = part.value.split(".", 2)
        return weight(f"layers.{here + there - int(layer)}.{rest}")

    exchange = (f"layers {min(here, there)} and {max(here, there)} are exchanged", swapped)
    moved = (
        f"every layer has those of layer {there - here:+d}",
        among("layers.", lambda i: (i + there - here) % count),
    )
    turned = ("the layers are in reverse order", among("layers.", lambda i: count - 1 - i))
    only = (f"in layer {here} only", among(f"{ours}.", lambda i: there))
    return (moved, turned, exchange, only) if here + there == count - 1 else (moved, exchange, only)


def _alike(weights: Weights, a: str, b: str) -> bool:
    return b in weights and weights[a].shape == weights[b].shape


def _cut(part: Term, own: Sequence[str], kind: str) -> Term:
    if part.op != "weight" or part.value not in own:
        return part
    place = part.value.split(".")[-2]
    parts = tuple(weight(part.value.replace(place, each)) for each in PROJECTIONS)
    return Term("cut", parts, (PROJECTIONS.index(place), kind))
