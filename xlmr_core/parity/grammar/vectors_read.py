"""A bias, or the weight of a norm, with numbers that are not the checkpoint's: they are read off the dump."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.recovered import recovered
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.local import counted_values

COST = 2.9  # more than anything that says where the numbers come from
SHOWN = 3
FEWEST = 8  # tokens: as many equations for each number


@dataclass(frozen=True)
class Vector:
    """Numbers in place of those of a tensor of the checkpoint, (H,)."""

    name: str
    numbers: tuple[float, ...]
    right: tuple[float, ...]

    def tensor(self, like: Tensor) -> Tensor:
        return torch.tensor(self.numbers, dtype=like.dtype, device=like.device)

    def __str__(self) -> str:
        new, old = (", ".join(f"{each:.4g}" for each in its[:SHOWN]) for its in (self.numbers, self.right))
        return f"{self.name} holds other numbers than the checkpoint: {new}, ... in place of {old}, ..."


def other_vectors(target: Target, scene: Recorded) -> Iterator[Edit]:
    """Each vector of the wrong tap's term with the numbers that the dump has.

    Args:
        target: The wrong tap.
        scene: The run.
    """
    term = scene.terms[target.tap]
    counts = counted_values(target.tap, target.whole, scene.real).expand_as(target.whole)
    if target.whole.dim() != 3 or int(scene.real.sum()) < FEWEST:
        return
    for part in recovered(scene, term, target.whole, counts, target.allowed):
        right = scene.weights.get(part.part.value) if part.part.op == "weight" else None
        if right is not None and right.dim() == 1 and part.values.shape == right.shape:
            vector = Vector(part.part.value, tuple(part.values.tolist()), tuple(right.tolist()))
            yield Edit(part.path, Term("numbers", (part.part,), vector), COST, str(vector))
