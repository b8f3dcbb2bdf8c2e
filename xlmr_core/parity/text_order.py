"""Texts in another order: a port sorts them by length and does not put the results back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.compare import Row
from xlmr_core.parity.findings import Evidence, Finding, recognised
from xlmr_core.parity.judge import first_wrong
from xlmr_core.parity.simulate import Run, Simulator
from xlmr_core.parity.tap_values import Dump


def texts_put_back(simulator: Simulator, dump: Dump, run: Run, wrong: Row) -> tuple[Dump, Finding] | None:
    """The dump with its texts in the right order, and the finding that they were not.

    Args:
        simulator: With the right model.
        dump: The foreign tensors.
        run: The model with the faults that were found.
        wrong: The first wrong tap.

    Returns:
        None where no order of the texts explains the embeddings and the first layer: their ids or masks may be those of
        other texts.
    """
    order = TextOrder.of(run, dump, wrong)
    if order is None:
        return None
    put_back = order.put_back(dump)
    after = run.compared(put_back).rows
    then = first_wrong(after)
    if then is not None and simulator.part_of(then.tap) < 2:
        return None
    before = {row.tap: row for row in run.compared(dump).rows if not row.ok}
    evidence = tuple(
        Evidence(row.tap, before[row.tap].max_abs, row.max_abs, row.allowed or 0.0)
        for row in after
        if row.ok and row.tap in before
    )
    return put_back, recognised(wrong.tap, f"the texts are {order}", "vectors of other texts", evidence)


@dataclass(frozen=True)
class TextOrder:
    """Where the texts of a dump are.

    Attributes:
        texts: The numbers of the texts, in the order in which the dump has them.
        real: (B, S), the tokens of the batch.
        packed: Whether the texts lie one after the other, and are cut by the lengths of the right order.
    """

    texts: tuple[int, ...]
    real: Tensor
    packed: bool

    @classmethod
    def of(cls, run: Run, dump: Dump, wrong: Row) -> TextOrder | None:
        """The order that gives the first wrong tap; None if there is none."""
        right, found, real = run.expected.get(wrong.tap), dump[wrong.tap].double(), run.real
        if right is None or right.shape != found.shape or any(len(tensor) != len(real) for tensor in dump.values()):
            return None
        if right.dim() != 2 and (right.dim() != 3 or right.shape[:2] != real.shape):
            return None
        allowed = wrong.allowed or 0.0
        if right.dim() == 2:
            texts, packed = _rows(list(right[:, None]), list(found[:, None]), allowed), False
        else:
            ours = [its[tokens] for its, tokens in zip(right, real, strict=True)]
            texts = _rows(ours, [its[tokens] for its, tokens in zip(found, real, strict=True)], allowed)
            packed = texts is None
            texts = texts or _packed(ours, found[real], allowed)
        in_turn = tuple(range(len(real)))
        return None if texts is None or texts == in_turn else cls(texts, real, packed)

    def put_back(self, dump: Dump) -> Dump:
        """The dump with its texts in the right order."""
        return {tap: self._put_back(tensor) for tap, tensor in dump.items()}

    def _put_back(self, x: Tensor) -> Tensor:
        new = x.clone()
        if self.packed and x.dim() == 3:
            runs = x[self.real].split([int(self.real[text].sum()) for text in self.texts])
            for text, run in zip(self.texts, runs, strict=True):
                new[text, self.real[text]] = run
        else:
            new[list(self.texts)] = x
        return new

    def __str__(self) -> str:
        lengths = self.real.sum(dim=1)
        rules = {
            "sorted by length, the longest first": lengths.argsort(descending=True, stable=True),
            "sorted by length, the shortest first": lengths.argsort(stable=True),
            "backwards": torch.arange(len(lengths)).flip(0),
        }
        for rule, order in rules.items():
            if tuple(order.tolist()) == self.texts:
                return f"{rule}, and were not put back"
        for rule, order in rules.items():
            if tuple(order[order].tolist()) == self.texts:
                return f"{rule}, and put back by that order, not by its inverse"
        return f"in the order {', '.join(map(str, self.texts))}"


def _rows(right: list[Tensor], found: list[Tensor], allowed: float) -> tuple[int, ...] | None:
    """For each text of the dump the one that begins as it does: each once, (L, H)."""
    texts: list[int] = []
    for place, its in enumerate(found):
        own_first = sorted(range(len(right)), key=lambda text, place=place: text != place)
        near = [text for text in own_first if text not in texts and _begins_as(its, right[text], allowed)]
        if not near:
            return None
        texts.append(near[0])
    return tuple(texts)


def _packed(right: list[Tensor], found: Tensor, allowed: float) -> tuple[int, ...] | None:
    """The order in which the texts, (L, H), lie one after the other in the dump, (T, H)."""
    texts: list[int] = []
    while len(found):
        rest = [text for text in range(len(right)) if text not in texts and len(right[text]) <= len(found)]
        near = [text for text in rest if _begins_as(found, right[text], allowed)]
        if not near:
            return None
        texts.append(near[0])
        found = found[len(right[near[0]]) :]
    return tuple(texts) if len(texts) == len(right) else None


def _begins_as(a: Tensor, b: Tensor, allowed: float) -> bool:
    shared = min(len(a), len(b))
    return bool(((a[:shared] - b[:shared]).abs() <= allowed).all())
