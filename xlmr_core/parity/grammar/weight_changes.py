"""Changes of tensors of the checkpoint: rounded, rearranged, taken from elsewhere, cut wrongly out of a fused one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor

from xlmr_core.parity.grammar import matrices
from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.rules import Rule, exchanged, opened, renamed
from xlmr_core.parity.grammar.terms import Term, number, weight
from xlmr_core.parity.grammar.words import CLAMPED, PROJECTIONS, ROWWISE, module_of

Weights = Mapping[str, Tensor]
TURNED = ("transposed", matrices.RESHAPED)


def of_a_tensor(weights: Weights, path: tuple[int, ...], part: Term, *, brief: bool) -> Iterator[Edit]:
    """Changes of one tensor, and of those like it; `brief`: rare ones last."""
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
        cost = 1.0 if kind in TURNED else 1.5 if kind in PRECISIONS else 2.5
        new = Term("tensor", (part,), kind)
        says = f"of {name}, {kind}" if " of " in kind else f"{name} is {kind}"
        if kind == "transposed" and tensor.shape[0] != tensor.shape[1]:
            says = f"{name} is {matrices.RESHAPED}"
        yield Edit(path, new, cost, says, _more_weights(weights, kind, tensor))
    if is_table:
        return
    if tensor.dim() == 2:
        rare = 2.0 + brief
        for kind in matrices.PRUNED:
            says = f"{name} is pruned: {kind}"
            yield Edit(path, Term("tensor", (part,), kind), rare, says, _more_weights(weights, kind, tensor))
        for kind in matrices.MISREAD:
            new = Term("tensor", (part,), kind)
            yield Edit(path, new, rare, f"{name} is {kind}", _more_weights(weights, kind, tensor))
        yield from _with_scales_of_others(weights, path, part, rare)
    yield Edit(path, Term("mul", (part, opened(1.0))), 1.8, f"{name} is multiplied by {{}}")
    yield Edit(path, Term("add", (part, opened(0.0))), 2.2, f"{{}} is added to {name}")
    yield Edit(path, Term("clamp", (part, opened(CLAMPED))), 2.5, f"{name} is cut off at {{}}")
    zeros = Term("values", (part,), "missing (zeros)") if tensor.dim() > 1 else Term("mul", (part, number(0.0)))
    yield Edit(path, zeros, 1.3, f"{name} is all zeros")


def _with_scales_of_others(weights: Weights, path: tuple[int, ...], part: Term, cost: float) -> Iterator[Edit]:
    """An int8 weight multiplied by the scales of another of its layer, or of its like in a layer beside it."""
    _, layer, rest = part.value.split(".", 2) if part.value.startswith("layers.") else ("", "0", "")
    beside = [f"layers.{int(layer) + by}.{rest}" for by in (-1, 1)]
    own = [name for name in weights if rest and name.startswith(f"layers.{layer}.") and name != part.value]
    for other in (*own, *beside):
        its = weights.get(other)
        if its is not None and its.dim() == 2 and len(its) == len(weights[part.value]):
            for by in ("row", "tensor"):
                says = f"{part.value} is quantised to int8 by {by}, with the scales of {other}"
                yield Edit(path, Term("scaled like", (part, weight(other)), by), cost, says)


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
    if kind in TURNED and like.shape[0] != like.shape[1]:
        oblong = among(lambda name, its: its.dim() == 2 and "embeddings" not in name and its.shape[0] != its.shape[1])
        return alike, ("both maps of every feed-forward", oblong)
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
                new = term.map(lambda part, kind=kind, own=own: _cut(part, kind) if part.value in own else part)
                says = f"{module} is cut out of the fused q, k, v in another order: {kind}"
                yield Edit((), new, 1.8, says, (("of q, k and v", partial(_cut, kind=kind)),))


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
    shifted = among("layers.", lambda i: (i + there - here) % count)
    moved = (f"every layer has those of layer {there - here:+d}", shifted)

    def behind_it(part: Term) -> Term | None:
        return shifted(part) if _layer_of(part) >= here else None

    behind = (
        f"from layer {here} on, every layer has those of layer {there - here:+d}",
        behind_it,
    )
    turned = ("the layers are in reverse order", among("layers.", lambda i: count - 1 - i))
    same = (f"every layer has those of layer {there}", among("layers.", lambda i: there))
    only = (f"in layer {here} only", among(f"{ours}.", lambda i: there))
    return (moved, behind, same, *((turned,) if here + there == count - 1 else ()), exchange, only)


def _layer_of(part: Term) -> int:
    """The number of the layer of a weight; -1 for what is outside the layers."""
    return int(part.value.split(".")[1]) if part.op == "weight" and part.value.startswith("layers.") else -1


def _alike(weights: Weights, a: str, b: str) -> bool:
    return b in weights and weights[a].shape == weights[b].shape


def _cut(part: Term, kind: str) -> Term:
    """A weight or bias of a projection of q, k or v, cut out of the fused one; any other term as it is."""
    if part.op != "weight" or part.value.split(".")[-2] not in PROJECTIONS:
        return part
    place = part.value.split(".")[-2]
    parts = tuple(weight(part.value.replace(place, each)) for each in PROJECTIONS)
    return Term("cut", parts, (PROJECTIONS.index(place), kind))
