"""A weight that was cut to a low rank, as where a product of two narrow matrices stands for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.rules import Rule
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term

COST = 2.0


def of_low_rank(target: Target, scene: Recorded) -> Iterator[Edit]:
    """The weight of a linear map with as many of its singular values as the products in the dump have.

    Args:
        target: The wrong tap.
        scene: The run.
    """
    term = scene.terms[target.tap]
    if term.op != "add" or term.args[0].op != "linear" or target.values.dim() != 2:
        return
    weight, bias = term.args[0].args[1], scene.evaluate(term.args[1])
    rank = _rank(target.values - bias, target.allowed)
    right = scene.weights[weight.value]
    if 0 < rank < min(*right.shape, len(target.values)):
        says = f"{weight.value} is of rank {rank}: its smaller singular values are 0"
        yield Edit((0, 1), _cut(weight, rank), COST, says, _more(scene.weights, right, rank))


def _rank(products: Tensor, allowed: float) -> int:
    """How many singular values are more than rounding."""
    noise = allowed * math.sqrt(products.numel())
    return int((torch.linalg.svdvals(products.double()) > noise).sum())


def _cut(weight: Term, rank: int) -> Term:
    return Term("low rank", (weight,), rank)


def _more(weights: Mapping[str, Tensor], like: Tensor, rank: int) -> tuple[tuple[str, Rule], ...]:
    """The same of the weights of this shape, and of every linear map."""

    def among(fits: Callable[[Tensor], bool]) -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op != "weight" or "embeddings" in part.value or weights[part.value].dim() != 2:
                return None
            return _cut(part, rank) if fits(weights[part.value]) else None

        return rule

    alike = f"every {'x'.join(map(str, like.shape))}"
    return (alike, among(lambda its: its.shape == like.shape)), ("every linear map", among(lambda its: True))
