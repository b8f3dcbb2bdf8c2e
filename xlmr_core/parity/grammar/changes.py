"""The grammar: every small edit of a term, with its cost and a sentence.

The cost of an edit is how unusual it is: 1 for what ports get wrong every day. An edit may leave one number open, a
term "open" with the value to start from: search.py estimates it from the numbers of the dump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from xlmr_core.parity.compare import in_reading_order
from xlmr_core.parity.grammar import functions, transforms
from xlmr_core.parity.grammar.rules import (
    Rule,
    bare_norm,
    bare_of,
    exchanged,
    opened,
    rearranged,
    renamed,
    same_number,
    variant_of,
)
from xlmr_core.parity.grammar.terms import Term, Terms, norm, number, resolved, tap, weight
from xlmr_core.parity.grammar.words import (
    CLAMPED,
    FLOWS,
    LOWERED,
    PROJECTIONS,
    ROWWISE,
    SAYS,
    VARIANTS,
    cost_of,
    is_of_heads,
    module_of,
    plain,
    words_of,
)


@dataclass(frozen=True)
class Edit:
    """One small change of a term.

    Attributes:
        path: Of the part that is changed.
        part: What is there now.
        cost: How unusual it is.
        says: It in words.
        kinds: The same change of any part of the model that it fits, with which parts those are in words.
        whole: Whether the change is one of several parts at once, as `kinds` has it, and never of this part only.
    """

    path: tuple[int, ...]
    part: Term
    cost: float
    says: str
    kinds: tuple[tuple[str, Rule], ...] = ()
    whole: bool = False

    def of(self, term: Term) -> Term:
        return term.with_part(self.path, self.part)


@dataclass(frozen=True)
class Grammar:
    """What edits are made of.

    Attributes:
        terms: The right term of every tap.
        weights: The tensors of the checkpoint.
        shapes: Tap -> shape.
        heads: Their number.
        eps: Of the norms.
    """

    terms: Terms
    weights: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    heads: int
    eps: float

    @cached_property
    def places(self) -> dict[str, int]:
        """Tap -> its number in reading order."""
        return {tap: place for place, tap in enumerate(self.terms)}

    def edits(self, name: str, term: Term | None = None) -> list[Edit]:
        """Every edit of the term of a tap, or of another term in its place, the most usual first."""
        term = self.terms[name] if term is None else term
        found: list[Edit] = []
        for path, part in term.walk():
            for edit in self._edits_of(name, path, part):
                found.append(edit)
        found += self._exchanges(name, term)
        whole = replace(tap(name), value=name)
        for other in self._others(name, whole):
            found.append(Edit((), tap(other), 1.6, f"{other} is used in its place"))
        found += self._modules(name, term)
        unique: dict[tuple[Term, tuple[str, ...]], Edit] = {}
        for edit in sorted(found, key=lambda edit: edit.cost):
            changed = edit.of(term)
            if changed != term:
                unique.setdefault((changed, tuple(of for of, _ in edit.kinds)), edit)
        return list(unique.values())

    def _edits_of(self, name: str, path: tuple[int, ...], part: Term) -> Iterator[Edit]:
        def edit(new: Term, cost: float, says: str, kind: Rule | None = None) -> Edit:
            return Edit(path, new, cost, says, (("everywhere", kind),) if kind else ())

        if part.op == "weight":
            yield from self._weight(path, part)
        elif part.op == "number":
            yield edit(opened(part.value), 1.2, f"{{}} stands where {plain(part.value)} should", same_number(part))
        elif part.op in VARIANTS:
            for kind in VARIANTS[part.op]:
                new = replace(part, value=kind)
                says = SAYS[part.op].format(kind, words_of(part))
                yield edit(new, cost_of(part.op, kind), says, variant_of(part, kind))
        if part.op in FLOWS or part.op == "tap":
            yield from self._flow(name, path, part)
        if part.op == "add":
            yield from self._addition(path, part)
        if part.op == "standard":
            yield edit(part.args[0], 1.4, "the input of the norm is not normalised", bare_norm)
        if part.op == "hide":
            for kind in ("padding", "real keys", "distance", "distance by head", "diagonal", "first key"):
                inner = part.args[0] if kind in ("padding", "real keys") else part
                lower = Term("lower", (inner, opened(-1.0)), kind)
                cost = 1.6 if inner is part.args[0] else 2.6
                yield edit(lower, cost, f"{{}} is added to the scores of {LOWERED[kind]}")
        if part.op == "rows" and part.args[1].op == "ids":
            rounded = Term("quantised like", (part, part.args[0]))
            yield edit(rounded, 1.6, f"{part.args[0].value} is quantised to int8 by tensor")

    # ---- weights ----

    def _weight(self, path: tuple[int, ...], part: Term) -> Iterator[Edit]:
        name, tensor = part.value, self.weights[part.value]
        is_table = tensor.dim() == 2 and "embeddings" in name
        if not is_table:
            for other, its in self.weights.items():
                if its.shape == tensor.shape and other != name:
                    cost = 2.0 if module_of(other).split(".")[:2] == module_of(name).split(".")[:2] else 2.3
                    yield Edit(path, weight(other), cost, f"{other} is used for {name}")
                elif tensor.dim() == 2 and its.shape == tensor.shape[::-1]:
                    new = Term("tensor", (weight(other),), "transposed")
                    yield Edit(path, new, 2.6, f"{other}, transposed, is used for {name}")
        table = transforms.WEIGHTS if tensor.dim() == 1 else transforms.MATRICES
        for kind in ROWWISE if is_table else table:
            cost = 1.0 if kind == "transposed" else 1.5 if kind in transforms.PRECISIONS else 2.5
            new = Term("tensor", (part,), kind)
            says = f"of {name}, {kind}" if " of " in kind else f"{name} is {kind}"
            yield Edit(path, new, cost, says, self._weights_changed(kind, tensor))
        if not is_table:
            yield Edit(path, Term("mul", (part, opened(1.0))), 1.8, f"{name} is multiplied by {{}}")
            yield Edit(path, Term("add", (part, opened(0.0))), 2.2, f"{{}} is added to {name}")
            yield Edit(path, Term("values", (part,), "missing (zeros)") if tensor.dim() > 1 else
                       Term("mul", (part, number(0.0))), 1.3, f"{name} is all zeros")  # fmt: skip

    def _weights_changed(self, kind: str, like: Tensor) -> tuple[tuple[str, Rule], ...]:
        """The same change of more weights: of those of this shape, of matrices or vectors, of all."""

        def among(fits: Callable[[str, Tensor], bool]) -> Rule:
            def rule(part: Term) -> Term | None:
                if part.op != "weight" or not fits(part.value, self.weights[part.value]):
                    return None
                return Term("tensor", (part,), kind)

            return rule

        if kind in transforms.PRECISIONS:
            what = "matrix" if like.dim() == 2 else "vector"
            linear = among(lambda name, its: its.dim() == 2 and "embeddings" not in name)
            return (
                ("all tensors", among(lambda name, its: True)),
                (f"every {what}", among(lambda name, its: its.dim() == like.dim())),
                *((("every linear map", linear),) if like.dim() == 2 else ()),
            )
        return ((f"every {'x'.join(map(str, like.shape))}", among(lambda name, its: its.shape == like.shape)),)

    def _modules(self, name: str, term: Term) -> Iterator[Edit]:
        """Weight and bias together: those of another module, or cut wrongly out of a fused one."""
        for module in sorted({module_of(leaf) for leaf in term.leaves("weight")}):
            own = [leaf for leaf in term.leaves("weight") if module_of(leaf) == module]
            if len(own) < 2:
                continue
            for other in sorted({module_of(leaf) for leaf in self.weights}):
                pairs = {leaf: other + leaf[len(module) :] for leaf in own}
                if other != module and all(self._alike(a, b) for a, b in pairs.items()):
                    near = other.split(".")[:2] == module.split(".")[:2]
                    new = term.map(lambda part, pairs=pairs: renamed(part, pairs))
                    yield Edit((), new, 1.1 if near else 1.4, f"{other} is used for {module}")
                    if near and module.startswith("layers."):
                        says = f"{module} and {other.split('.', 2)[2]} are exchanged"
                        yield Edit((), new, 1.1, says, exchanged(module, other), whole=True)
                    if module.startswith("layers.") and other.split(".")[2:] == module.split(".")[2:]:
                        ours, theirs = (".".join(name.split(".")[:2]) for name in (module, other))
                        says = f"all weights of {theirs} are used for {ours}"
                        yield Edit((), new, 1.1, says, self._layers_moved(ours, theirs), whole=True)
            place = module.rpartition(".")[2]
            if place in PROJECTIONS:
                for kind in transforms.CUTS:
                    new = term.map(lambda part, kind=kind, own=own: self._cut(part, own, kind))
                    yield Edit((), new, 1.8, f"{module} is cut out of the fused q, k, v in another order: {kind}")

    def _layers_moved(self, ours: str, theirs: str) -> tuple[tuple[str, Rule], ...]:
        """A layer has all weights of another: this layer, or each that of the one as far from it."""
        count = 1 + max(int(leaf.split(".")[1]) for leaf in self.weights if leaf.startswith("layers."))
        by = int(theirs.split(".")[1]) - int(ours.split(".")[1])

        def among(layers: str) -> Rule:
            def rule(part: Term) -> Term | None:
                if part.op != "weight" or not part.value.startswith(layers):
                    return None
                _, layer, rest = part.value.split(".", 2)
                return weight(f"layers.{(int(layer) + by) % count}.{rest}")

            return rule

        return (
            (f"every layer has those of layer {by:+d}", among("layers.")),
            ("in this layer only", among(f"{ours}.")),
        )

    def _alike(self, a: str, b: str) -> bool:
        return b in self.weights and self.weights[a].shape == self.weights[b].shape

    def _cut(self, part: Term, own: Sequence[str], kind: str) -> Term:
        if part.op != "weight" or part.value not in own:
            return part
        place = part.value.split(".")[-2]
        parts = tuple(weight(part.value.replace(place, each)) for each in PROJECTIONS)
        return Term("cut", parts, (PROJECTIONS.index(place), kind))

    # ---- what flows through ----

    def _letters(self, name: str, part: Term) -> str | None:
        """The letters of the shape of a part."""
        if part.op == "tap":
            shape = self.shapes.get(resolved(part.value))
            if shape is None:
                return None
            return {2: transforms.VECTORS, 3: transforms.TOKENS, 4: transforms.MAPS}.get(len(shape))
        if part.op in ("split", "mix"):
            return None
        if part.op in ("dot", "hide", "softmax", "lower"):
            return transforms.MAPS
        if part.op in ("rows",):
            return transforms.TOKENS
        if part.op == "select":
            return transforms.VECTORS
        flow = next((arg for arg in part.args if arg.op not in ("weight", "number")), None)
        return self._letters(name, flow) if flow is not None else None

    def _flow(self, name: str, path: tuple[int, ...], part: Term) -> Iterator[Edit]:
        """Edits of any value between two operations."""
        letters, what = self._letters(name, part), words_of(part)
        if part.op == "tap":
            for other in self._others(name, part):
                cost = 1.6 if other.split(".")[:2] == name.split(".")[:2] or other.endswith(".input") else 2.2
                yield Edit(path, tap(other), cost, f"{other} is used for {part.value}")
        yield Edit(path, Term("mul", (part, opened(1.0))), 1.9 if part.op != "mul" else 2.8,
                   f"{what} is multiplied by {{}}", )  # fmt: skip
        if letters is None:
            return
        for kind in transforms.VALUES[letters]:
            cost = 2.0 if kind in transforms.PRECISIONS or "batch" in kind else 2.4
            cost = 1.5 if kind == "missing (zeros)" else cost
            yield Edit(path, Term("values", (part,), kind), cost, f"{what} is {kind}" if " of " not in kind else
                       f"of {what}, {kind}")  # fmt: skip
        for kind in functions.ACTIVATIONS:
            if kind != "identity":
                yield Edit(path, Term("activation", (part,), kind), 2.7, f"{kind} is applied to {what}")
        yield Edit(path, Term("clamp", (part, opened(CLAMPED))), 2.7, f"{what} is cut off at {{}}")
        yield Edit(path, Term("capped", (part, opened(CLAMPED))), 2.8, f"{what} is capped by tanh at {{}}")
        yield Edit(path, Term("add", (part, opened(0.0))), 2.8, f"{{}} is added to {what}")
        if letters == transforms.MAPS or (part.op in ("merge",) or is_of_heads(part)):
            for head in range(self.heads):
                yield Edit(path, Term("without head", (part,), head), 2.6, f"head {head} of {what} is 0")
        for other in self._others(name, part, like=letters):
            new = Term("add", (part, Term("mul", (tap(other), opened(0.0)))))
            yield Edit(path, new, 2.5, f"{{}} times {other} is added to {what}")
            if letters != transforms.MAPS:
                yield Edit(path, Term("product", (part, tap(other))), 3.2, f"{what} is multiplied by {other}")
        if letters in (transforms.TOKENS, transforms.VECTORS):
            size = self._size(part)
            for module in self._norms(name, size):
                yield Edit(path, norm(part, module, self.eps), 2.2, f"{module} is applied to {what}")
            for bias in self._vectors(name, size):
                new = Term("add", (part, Term("mul", (weight(bias), opened(0.0)))))
                yield Edit(path, new, 2.4, f"{{}} times {bias} is added to {what}")
            for bias in self._vectors(name, size, biases=False):
                yield Edit(path, Term("mul", (part, weight(bias))), 2.8, f"{what} is multiplied by {bias}")
            for kind in functions.NORMS:
                new = Term("standard", (part, number(self.eps)), kind)
                if part.op != "standard":
                    yield Edit(path, new, 2.6 if kind in (None, "rms") else 3.2,
                               f"{what} is normalised without weights" + (f": {kind}" if kind else ""))  # fmt: skip

    def _size(self, part: Term) -> int | None:
        """The number of features of a part."""
        for _, inner in part.walk():
            if inner.op == "linear":
                return self.weights[inner.args[1].leaves("weight")[0]].shape[0]
            if inner.op == "tap":
                shape = self.shapes.get(resolved(inner.value))
                return shape[-1] if shape else None
            if inner.op == "rows":
                return self.weights[inner.args[0].leaves("weight")[0]].shape[1]
        return None

    def _others(self, name: str, part: Term, like: str | None = None) -> list[str]:
        """Taps before this one whose tensors fit in place of the part."""
        if part.op == "tap":
            shape = self.shapes.get(resolved(part.value))
        else:
            size = self._size(part)
            shape = next((s for t, s in self.shapes.items() if self._fits(t, s, size, like)), None)
            if like == transforms.MAPS:
                shape = self.shapes.get(
                    name if len(self.shapes.get(name, ())) == 4 else name.replace("context", "probs")
                )
        if shape is None:
            return []
        own = name.split(".")[:2]
        found: list[str] = []
        for other in in_reading_order(self.shapes):
            if other == name:
                break
            inside = other.split(".")[:2] == own and own[0] == "layers"
            usual = other.endswith((".output", ".mid")) and other.count(".") == 2
            usual |= other.startswith("embeddings.") or inside
            same = own[0] == "layers" and other.split(".")[2:] == (part.value or "").split(".")[2:] \
                if part.op == "tap" and isinstance(part.value, str) else False  # fmt: skip
            if self.shapes[other] == shape and (usual or same) and (part.op != "tap" or other != resolved(part.value)):
                given = f"{'.'.join(own)}.input"
                found.append(given if own[0] == "layers" and other == resolved(given) else other)
        return found

    def _fits(self, tap_name: str, shape: tuple[int, ...], size: int | None, like: str | None) -> bool:
        dims = {transforms.TOKENS: 3, transforms.VECTORS: 2}.get(like or "", 0)
        return len(shape) == dims and shape[-1] == size

    def _norms(self, name: str, size: int | None) -> list[str]:
        """The norms near a tap."""
        modules = [leaf.removesuffix(".weight") for leaf in self.weights if leaf.endswith("norm.weight")]
        own = name.split(".")[:2]
        near = [
            m for m in modules if m.split(".")[:2] == own or not m.startswith("layers.") or m.startswith("layers.0.")
        ]
        return [m for m in near if self.weights[f"{m}.weight"].shape[0] == size]

    def _vectors(self, name: str, size: int | None, *, biases: bool = True) -> list[str]:
        own = name.split(".")[:2]
        found: list[str] = []
        for leaf, tensor in self.weights.items():
            near = leaf.split(".")[:2] == own or not leaf.startswith("layers.")
            right = leaf.endswith(".bias") if biases else leaf.endswith("norm.weight")
            if near and right and tensor.dim() == 1 and tensor.shape[0] == size:
                found.append(leaf)
        return found

    # ---- structure ----

    def _addition(self, path: tuple[int, ...], part: Term) -> Iterator[Edit]:
        a, b = part.args
        first, second = words_of(a), words_of(b)
        yield Edit(path, a, 1.0, f"{second} is not added", bare_of(b))
        yield Edit(path, b, 1.5, f"{first} is missing, only {second} is left")
        yield Edit(path, Term("add", (a, Term("mul", (b, number(2.0))))), 1.2, f"{second} is added twice")
        yield Edit(path, Term("add", (a, Term("mul", (b, opened(1.0))))), 1.6, f"{second} is added {{}} times")
        yield Edit(path, Term("add", (Term("mul", (a, opened(1.0))), b)), 1.7, f"{first} is multiplied by {{}}")
        yield Edit(path, Term("product", (a, b)), 2.8, f"{first} and {second} are multiplied, not added")
        yield Edit(path, Term("maximum", (a, b)), 3.0, f"the larger of {first} and {second} is taken")

    def _exchanges(self, name: str, term: Term) -> Iterator[Edit]:
        """Two steps in the other order, and steps left out. A tap below may be opened for it."""
        for path, part in term.walk():
            for new, cost, says in rearranged(part):
                yield Edit(path, new, cost, says.removeprefix("order: "))
            below = self.terms.get(part.value) if part.op == "tap" else None
            if below is not None and below.op in ("add", "hide"):
                opened_up = term.with_part(path, below)
                for inner_path, inner in opened_up.walk():
                    for new, cost, says in rearranged(inner):
                        if says.startswith("order: "):
                            yield Edit((), opened_up.with_part(inner_path, new), cost, says.removeprefix("order: "))
