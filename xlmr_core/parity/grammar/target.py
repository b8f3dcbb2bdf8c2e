"""The first wrong tap of a dump: its values, how far rounding may move them, and in which part a change was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.compare import Row
from xlmr_core.parity.grammar.evaluate import UNFIT, Recorded
from xlmr_core.parity.grammar.regions import Region, regions
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.local import counted_values
from xlmr_core.parity.tap_values import Dump, elements, one_mask

FEWEST = 16  # values that a part of a change has to explain


@dataclass
class Target:
    """The wrong tap of a dump."""

    tap: str
    whole: Tensor  # in float64
    values: Tensor  # what counts of it
    real: Tensor
    allowed: float
    noise: float  # root mean square of its rounding errors, at most
    unit: float  # root mean square of one rounding of each value

    @classmethod
    def of(cls, dump: Dump, row: Row, real: Tensor) -> Target:
        values = elements(row.tap, dump[row.tap], real)
        eps = torch.finfo(dump[row.tap].dtype).eps
        allowed = max(row.allowed or 0.0, eps * float(values.abs().max()))  # one rounding of the largest
        unit = eps * float(values.square().mean().sqrt())
        return cls(row.tap, dump[row.tap].double(), values, real, allowed, allowed / 4, unit)

    def compared(self, found: Tensor) -> Tensor | None:
        """What counts of a tensor at that tap; None if it cannot be compared."""
        try:
            seen = elements(self.tap, one_mask(self.tap, found), self.real)
        except (RuntimeError, IndexError):
            return None
        return seen if seen.shape == self.values.shape and bool(seen.isfinite().all()) else None


def regions_of(target: Target, right: Tensor, found: Tensor, heads: int) -> Iterator[Region]:
    """Where a change was made that gives the dump there, while the right operation gives it elsewhere.

    Args:
        target: The wrong tap.
        right: What the right operation gives.
        found: What the changed one gives.
        heads: Their number.
    """
    if not target.whole.shape == right.shape == found.shape or right.dim() not in (2, 3, 4):
        return
    counts = counted_values(target.tap, right, target.real)
    of_found = (found - target.whole).abs() <= 2 * target.allowed
    of_right = (right - target.whole).abs() <= 2 * target.allowed
    if (counts & ~of_found & ~of_right).any():
        return
    there, elsewhere = counts & of_found & ~of_right, counts & of_right & ~of_found
    if int(there.sum()) >= FEWEST:
        yield from regions(right, there, elsewhere, target.real, heads if ".attention." in target.tap else 0)


def within(scene: Recorded, tap: str, term: Term, allowed: float) -> bool:
    """Whether a term gives the values of the run at its own tap, to an allowance."""
    try:
        found = scene.changed(tap, {tap: term}, frozenset({tap}))
    except UNFIT:
        return False
    right = scene.values[tap]
    if found.shape != right.shape:
        return False
    difference = elements(tap, one_mask(tap, found), scene.real) - elements(tap, right, scene.real)
    return float(difference.abs().max()) <= allowed


Allowances = Mapping[str, float]
