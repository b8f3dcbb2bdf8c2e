"""The grammar: every small edit of a term, with its cost and a sentence.

The cost of an edit is how unusual it is: 1 for what ports get wrong every day. An edit may leave one number open, a
term "open" with the value to start from: search.py estimates it from the numbers of the dump.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from xlmr_core.parity.grammar import activations, functions, softmaxes, transforms
from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.flash import rounded_inside
from xlmr_core.parity.grammar.indices import SINUSOIDS, Read, numbered
from xlmr_core.parity.grammar.kernels import hidden_kinds, of_a_kernel
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.products import WHAT, autocast, of_both, of_projections
from xlmr_core.parity.grammar.rules import (
    Rule,
    Sum,
    bare_norm,
    bare_of,
    exchanged_norm,
    new_norm,
    of_both_outputs,
    of_every_like,
    of_every_residual,
    opened,
    raised_norm,
    rearranged,
    same_number,
    variant_of,
)
from xlmr_core.parity.grammar.tables import split_tables, stretched_tables
from xlmr_core.parity.grammar.terms import Term, Terms, add, norm, number, resolved, scaled, tap, weight
from xlmr_core.parity.grammar.tokens import Kind, in_words
from xlmr_core.parity.grammar.weight_changes import of_a_tensor, of_modules
from xlmr_core.parity.grammar.words import (
    CLAMPED,
    FLOWS,
    LOWERED,
    SAYS,
    VARIANTS,
    cost_of,
    is_of_heads,
    plain,
    words_of,
)
from xlmr_core.parity.tap_values import in_reading_order


@dataclass(frozen=True)
class Grammar:
    """What edits are made of.

    Attributes:
        terms: The right term of every tap.
        weights: The tensors of the checkpoint.
        shapes: Tap -> shape.
        heads: Their number.
        eps: Of the norms.
        read: What the dump says of the rows that were read of a table, for "ids" and "positions".
        brief: Whether the variants with a number in them are left out, all but a few: many taps are edited at once.
    """

    terms: Terms
    weights: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    heads: int
    eps: float
    pad: int = 1
    read: Mapping[str, Read] = field(default_factory=dict[str, Read])
    brief: bool = False

    @cached_property
    def places(self) -> dict[str, int]:
        """Tap -> its number in reading order."""
        return {tap: place for place, tap in enumerate(self.terms)}

    def edits(self, name: str, term: Term | None = None, *, most: float = math.inf) -> list[Edit]:
        """Every edit up to a cost of the term of a tap, or of another term in its place, the most usual first."""
        term = self.terms[name] if term is None else term
        found: list[Edit] = []
        for path, part in term.walk():
            for edit in self._edits_of(name, path, part):
                found.append(edit)
        found += self._exchanges(name, term)
        whole = replace(tap(name), value=name)
        for other in self._others(name, whole):
            found.append(Edit((), tap(other), 1.6, f"{other} is used in its place"))
        found += of_modules(self.weights, name, term)
        found += [] if self.brief else of_a_kernel(self.terms, term, self.shapes, self._vocabulary)
        found += of_projections(term, self.eps)
        unique: dict[tuple[Term, tuple[str, ...]], Edit] = {}
        for edit in sorted((edit for edit in found if edit.cost <= most), key=lambda edit: edit.cost):
            changed = edit.of(term)
            if changed != term:
                unique.setdefault((changed, tuple(of for of, _ in edit.kinds)), edit)
        return list(unique.values())

    def _edits_of(self, name: str, path: tuple[int, ...], part: Term) -> Iterator[Edit]:
        def edit(new: Term, cost: float, says: str, kind: Rule | None = None) -> Edit:
            return Edit(path, new, cost, says, (("everywhere", kind),) if kind else ())

        if part.op == "weight":
            yield from of_a_tensor(self.weights, path, part, brief=self.brief)
        elif part.op == "number":
            yield edit(opened(part.value), 1.2, f"{{}} stands where {plain(part.value)} should", same_number(part))
        elif part.op in VARIANTS and not (part.op == "ids" and name == "embeddings.position"):
            for kind in (*VARIANTS[part.op], *self._numbered(part)):
                new = replace(part, value=kind)
                says = SAYS[part.op].format(in_words(kind), words_of(part))
                yield edit(new, cost_of(part.op, kind), says, variant_of(part, kind))
        if part.op in WHAT or part.op == "softmax":
            yield from of_both(path, part, self.eps)
        if part.op == "add" and part.args[0].op == "linear":
            yield from autocast(path, part)
        if part.op == "mix":
            yield from rounded_inside(path, part)
        if part.op in FLOWS or part.op == "tap":
            yield from self._flow(name, path, part)
        if part.op == "add":
            yield from self._addition(path, part)
        if part.op == "activation":
            for says, (_, start) in activations.OPEN.items():
                yield edit(Term("bent", (part.args[0], opened(start)), says), 1.7, f"the activation is {says}")
        if part.op == "standard":
            yield edit(part.args[0], 1.4, "the input of the norm is not normalised", bare_norm)
        if new_norm(part) is not None:
            yield edit(new_norm(part) or part, 1.1, "the norm has the weight 1 and the bias 0, as a new one", new_norm)
            says = "the weight and the bias of the norm are exchanged"
            yield edit(exchanged_norm(part) or part, 1.4, says, exchanged_norm)
        if raised_norm(part) is not None:
            yield edit(raised_norm(part) or part, 1.4, f"1 is added to {part.args[1].value}", raised_norm)
        if part.op == "dot":
            says = f"{words_of(part.args[1])} are reshaped where they should be transposed"
            yield edit(replace(part, op="dot reshaped"), 1.6, says)
        if part.op == "hide":
            for kind in LOWERED:
                inner = part.args[0] if kind in ("padding", "real keys") else part
                lower = Term("lower", (inner, opened(-1.0)), kind)
                cost = 1.6 if inner is part.args[0] else 2.6
                yield edit(lower, cost, f"{{}} is added to the scores of {LOWERED[kind]}")
        if part.op == "rows" and part.args[1].op == "ids":
            rounded = Term("quantised like", (part, part.args[0]))
            yield edit(rounded, 1.6, f"{part.args[0].value} is quantised to int8 by tensor")
            yield from split_tables(path, part, self._vocabulary)
        if part.op == "rows" and part.args[1].op == "positions":
            for kind in SINUSOIDS:
                yield edit(Term("sinusoids", (part, part.args[1]), kind), 1.5, f"positions are not learned: {kind}")
            yield from stretched_tables(path, part)

    def _numbered(self, part: Term) -> Iterable[Kind]:
        """The variants of an operation that have a whole number in them."""
        size = self.shapes["embeddings.output"][1]
        if part.op in ("ids", "positions"):
            return numbered(part.op, self.read.get(part.op), self.pad, size)
        if part.op == "hide":
            return hidden_kinds(size, self._vocabulary, brief=self.brief)
        if part.op == "softmax":
            return softmaxes.numbered(size)
        tabled = part.op == "activation" and part.value == "gelu" and not self.brief
        return activations.NUMBERED if tabled else ()

    @property
    def _vocabulary(self) -> int:
        return len(self.weights["embeddings.word_embeddings.weight"])

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
                near = other.split(".")[:2] == name.split(".")[:2] or other.endswith(
                    (".input", "feed_forward.residual")
                )
                cost = 1.6 if near else 2.2
                yield Edit(path, tap(other), cost, f"{other} is used for {part.value}")
        if part.op not in ("split", "merge", "hide"):  # what these read has this edit
            yield Edit(path, Term("mul", (part, opened(1.0))), 1.9 if part.op != "mul" else 2.8,
                       f"{what} is multiplied by {{}}", )  # fmt: skip
        if letters is None:
            return
        for kind in transforms.VALUES[letters]:
            cost = 2.0 if kind in PRECISIONS or "batch" in kind else 2.4
            cost = 1.5 if kind == "missing (zeros)" else cost
            says = f"of {what}, {kind}" if " of " in kind else f"{what} is {kind}"
            more = of_every_like(part, kind) if kind in PRECISIONS else ()
            yield Edit(path, Term("values", (part,), kind), cost, says, more)
        for kind in activations.ACTIVATIONS:
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
            usual |= own[0] == "layers" and other == f"layers.{int(own[1]) - 1}.feed_forward.residual"
            same = own[0] == "layers" and other.split(".")[2:] == (part.value or "").split(".")[2:] \
                if part.op == "tap" and isinstance(part.value, str) else False  # fmt: skip
            if self.shapes[other] == shape and (usual or same) and (part.op != "tap" or other != resolved(part.value)):
                found.append(next((given for given in _given(own) if other == resolved(given)), other))
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
        yield Edit(path, a, 1.0, f"{second} is not added", bare_of(b) or of_every_residual(part, lambda a, b: a))
        yield Edit(path, b, 1.5, f"{first} is missing, only {second} is left")
        sums: tuple[tuple[float, str, Sum], ...] = (
            (1.2, f"{second} is added twice", lambda a, b: add(a, scaled(b, 2.0))),
            (1.6, f"{second} is added {{}} times", lambda a, b: add(a, Term("mul", (b, opened(1.0))))),
            (1.65, f"{first} is multiplied by {{}}", lambda a, b: add(Term("mul", (a, opened(1.0))), b)),
            (1.9, "the sum is multiplied by {}", lambda a, b: Term("mul", (add(a, b), opened(1.0)))),
        )
        for cost, says, sum_of in sums:
            kinds = of_every_residual(part, sum_of) or of_both_outputs(part, sum_of)
            yield Edit(path, sum_of(a, b), cost, says, kinds)
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


def _given(section: Sequence[str]) -> Iterator[str]:
    """What a layer reads, and what the layer before it reads: by these names a change moves to other layers."""
    if section[0] == "layers":
        layer = int(section[1])
        yield from (f"layers.{each}.input" for each in (layer, layer - 1) if each >= 0)
