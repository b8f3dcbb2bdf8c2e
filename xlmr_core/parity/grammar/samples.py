"""Some values of a tap, on which most changes of its operation are seen to be wrong."""

from __future__ import annotations

from torch import Tensor

from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.tap_values import elements

# One value of these depends on one value of what they read.
ELEMENTWISE = frozenset({"activation", "bent", "mul", "add", "clamp", "capped", "tap", "number", "open"})
SAMPLED = 4096
CLOSER = 0.7  # how much of the difference a change may leave on a part of the values


class Sample:
    """Some values of a tap whose operation takes values one by one: many changes are seen to be wrong on them."""

    def __init__(self, target: Target, scene: Recorded, leaf: str, places: Tensor) -> None:
        given = elements(target.tap, scene.values[leaf], target.real).flatten()[places]
        self._values = target.values.flatten()[places]
        self._scene = Recorded(
            {}, {leaf: given}, weights={}, heads=scene.heads, pad=scene.pad, rows=scene.rows
        )  # fmt: skip
        self.before = self._left(scene.terms[target.tap])

    @classmethod
    def of(cls, target: Target, scene: Recorded) -> Sample | None:
        """None if the tap's values are not computed one by one."""
        term = scene.terms[target.tap]
        leaves = set(term.leaves("tap"))
        if len(leaves) != 1 or not is_elementwise(term) or target.tap not in scene.values:
            return None
        right = target.compared(scene.values[target.tap])
        if right is None:
            return None
        wrong = ((right - target.values).abs() > target.allowed).flatten().nonzero()[:, 0]
        step = max(1, len(wrong) // SAMPLED)
        return cls(target, scene, leaves.pop(), wrong[::step]) if len(wrong) else None

    def may_be(self, term: Term) -> bool:
        """Whether the term is no worse on the sample than a right one would be; True where it reads another tap."""
        if not is_elementwise(term) or not set(term.leaves("tap")) <= self._scene.values.keys():
            return True
        return self._left(term) <= CLOSER * self.before

    def _left(self, term: Term) -> float:
        found = self._scene.evaluate(term)
        return float((found - self._values).square().mean().sqrt())


def is_elementwise(term: Term) -> bool:
    return all(part.op in ELEMENTWISE for part in term.walk_parts())
