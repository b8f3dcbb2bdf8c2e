"""A product by head, of queries and keys or of probs and values, where one of the two comes from other places.

The product with each head, or each token of each text, is computed and compared: nothing has to be solved.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xlmr_core.parity.grammar.evaluate import Scene
from xlmr_core.parity.grammar.gather import Gather
from xlmr_core.parity.grammar.matching import equal_slices, map_of_places
from xlmr_core.parity.grammar.recovered import Recovered
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.grammar.words import words_of

Paired = tuple[Term, Gather, str]  # the new product, the arrangement, and of what in words


def paired(scene: Scene, part: Recovered, tolerance: float) -> Iterator[Paired]:
    """The arrangements of one factor that give a product.

    Args:
        scene: What the right factors are computed on.
        part: The product.
        tolerance: How far rounding may move a value of the product.
    """
    a, b = (scene.evaluate(arg) for arg in part.part.args)
    second = b.transpose(-1, -2) if part.part.op == "dot" else b
    for index in (1, 0):
        gather = _heads(a, second, part, index, tolerance)
        if gather is not None:
            yield _with(part.part, index, gather), gather, words_of(part.part.args[index]).rstrip(",")
    if part.part.op != "dot":
        return
    for index in (1, 0):
        gather = _tokens(scene, a, b, part, index, tolerance)
        inner = part.part.args[index]
        if gather is not None and inner.op == "split":
            opened = Term("split", (Term("gathered", inner.args, gather),), inner.value)
            args = tuple(opened if place == index else arg for place, arg in enumerate(part.part.args))
            yield Term(part.part.op, args, part.part.value), gather, words_of(inner.args[0])


def _with(product: Term, index: int, gather: Gather) -> Term:
    args = tuple(Term("gathered", (arg,), gather) if place == index else arg for place, arg in enumerate(product.args))
    return Term(product.op, args, product.value)


def _heads(a: Tensor, b: Tensor, part: Recovered, index: int, tolerance: float) -> Gather | None:
    """The heads of one factor, (B, N, S, D) or (B, N, S, S), that give those of the product."""
    if not bool(part.counts.flatten(2).any(dim=-1).any(dim=0).all()):
        return None
    order: list[int] = []
    for head in range(a.shape[1]):
        errors: list[float] = []
        for other in range(a.shape[1]):
            product = a[:, other] @ b[:, head] if index == 0 else a[:, head] @ b[:, other]
            errors.append(float((product - part.values[:, head])[part.counts[:, head]].abs().max()))
        if min(errors) > tolerance:
            return None
        order.append(head if errors[head] <= tolerance else errors.index(min(errors)))
    gather = Gather("head", tuple(order))
    return None if gather.is_trivial else gather


def _tokens(scene: Scene, q: Tensor, k: Tensor, part: Recovered, index: int, tolerance: float) -> Gather | None:
    """The tokens of all texts whose queries (index 0) or keys (index 1), (B, N, S, D), give the scores."""
    rows, _, size, _ = q.shape
    values, counts = part.values, part.counts
    if index == 0:
        q, k, values, counts = k, q, values.transpose(-1, -2), counts.transpose(-1, -2)
    every = k.transpose(0, 1).flatten(1, 2)  # (N, B * S, D)
    near = torch.ones(rows * size, rows * size + 1, dtype=torch.bool)
    near[:, -1] = False
    for row in range(rows):
        known = scene.real[row]
        products = (q[row][:, known] @ every.transpose(-1, -2)).flatten(0, 1).T  # (B * S, N * L)
        wanted, count = (x[row][:, known].flatten(0, 1).T for x in (values, counts))  # (S, N * L)
        places = count.all(dim=1).nonzero()[:, 0]
        if not len(places):
            continue
        found = equal_slices(wanted[places], products, torch.ones(products.shape[1], dtype=torch.bool), tolerance)
        if found is None:
            return None
        near[row * size + places] = found
    gather = map_of_places(near, scene.real)
    return None if gather is None or gather.is_trivial else gather
