"""A factor for each text of a batch, or for each head: read off the dump."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.recovered import Recovered, recovered
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.grammar.words import words_of
from xlmr_core.parity.local import WITHIN, counted_values

COST = 2.3
FEWEST = 16  # values that have the same factor
SHOWN = 8
CLOSE = 1e-4


@dataclass(frozen=True)
class Factors:
    """One factor for each text ("row") or head.

    Attributes:
        axis: "row" or "head".
        numbers: In their order.
    """

    axis: str
    numbers: tuple[float, ...]

    def of(self, x: Tensor, rows: int, heads: int) -> Tensor:
        """The factors of (B, S, H), (B, N, S, S) or (B, H), in a shape that broadcasts; 1 for texts that have none."""
        numbers = torch.tensor(self.numbers, dtype=x.dtype, device=x.device)
        if self.axis == "row":
            places = torch.arange(x.shape[0], device=x.device) % rows
            own = torch.where(places < len(numbers), numbers[places.clamp(max=len(numbers) - 1)], 1.0)
            return own.reshape(-1, *[1] * (x.dim() - 1))
        if len(numbers) != heads:
            raise ValueError(f"there are {heads} heads, and {len(numbers)} factors")
        return numbers[:, None, None] if x.dim() == 4 else numbers.repeat_interleave(x.shape[-1] // heads)

    def __str__(self) -> str:
        what = "text" if self.axis == "row" else "head"
        second = self.numbers[1]
        steps = [second**place for place in range(len(self.numbers))]
        pairs = zip(self.numbers, steps, strict=True)
        if len(steps) > 2 and all(math.isclose(*pair, rel_tol=CLOSE) for pair in pairs):
            return f"multiplied by {second:.6g} once more for each {what}: not in {what} 0, once in {what} 1, and so on"
        listed = ", ".join(f"{number:.4g}" for number in self.numbers[:SHOWN])
        return f"multiplied by {listed}{', ...' if len(self.numbers) > SHOWN else ''} in the {what}s"


def other_factors(target: Target, scene: Recorded) -> Iterator[Edit]:
    """The factors of a part of the wrong tap's term, if they are not all alike and nothing else is wrong there.

    Args:
        target: The wrong tap.
        scene: The run.
    """
    term = scene.terms[target.tap]
    if target.whole.dim() not in (3, 4) or target.tap not in scene.values:
        return
    counts = counted_values(target.tap, target.whole, scene.real).expand_as(target.whole) & target.whole.isfinite()
    for part in recovered(scene, term, target.whole, counts, target.allowed):
        right = scene.evaluate(part.part) if part.part.op != "weight" else None
        if right is None or right.shape != target.whole.shape or part.values.shape != right.shape:
            continue
        for axis in ("row", "head"):
            factors = _fitted(axis, part, right, scene, WITHIN * target.allowed * part.grown)
            if factors is not None:
                new = Term("factors", (part.part,), factors)
                yield Edit(part.path, new, COST, f"{words_of(part.part)} is {factors}")


def _fitted(axis: str, part: Recovered, right: Tensor, scene: Recorded, allowed: float) -> Factors | None:
    opened, found, counts = (_by(axis, x, scene.heads) for x in (right, part.values, part.counts.expand_as(right)))
    if opened is None or found is None or counts is None or len(opened) < 2:
        return None
    x, y = opened * counts, torch.where(counts.bool(), found, 0)
    squares = x.square().sum(dim=1)
    if not bool((squares > 0).all()) or int(counts.sum(dim=1).min()) < FEWEST:
        return None
    numbers = (x * y).sum(dim=1) / squares
    alike = bool(((numbers - numbers[0]).abs() <= CLOSE * numbers.abs().max()).all())
    if alike or float((y - numbers[:, None] * x).abs().max()) > allowed:
        return None
    return Factors(axis, tuple(numbers.tolist()))


def _by(axis: str, x: Tensor, heads: int) -> Tensor | None:
    """(groups, values); None if the tensor has no such axis."""
    if axis == "row":
        return x.flatten(1)
    if x.dim() == 4:
        return x.transpose(0, 1).flatten(1)
    return x.unflatten(-1, (heads, -1)).movedim(-2, 0).flatten(1) if x.shape[-1] % heads == 0 else None
