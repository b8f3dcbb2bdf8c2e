"""How far down a dump a fault explains the numbers: each candidate is made in the model and compared with the dump."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from xlmr_core.parity.compare import Comparison, Row
from xlmr_core.parity.faults import TokenizerFault
from xlmr_core.parity.findings import AnyFault, Evidence
from xlmr_core.parity.local import WITHIN, Inputs, predicted, shown, values
from xlmr_core.parity.simulate import Run, SimulatedFault, Simulator
from xlmr_core.parity.tap_values import Dump, elements, in_reading_order

DEEP = 3  # layers
NEAR = 0.7  # a fault leaves less of the difference, root mean square, than this


@dataclass(frozen=True)
class Reached:
    """A fault that gives the first wrong tap of a dump, and maybe more."""

    fault: SimulatedFault
    end: int  # the number, in reading order, of the next wrong tap; of all taps if there is none
    rows: tuple[Row, ...]
    confirmed: bool = False  # whether later parts, computed from the dump's own tensors, show it, too

    @property
    def remoteness(self) -> float:
        """The largest difference in units of what rounding explains. Rounded, so that equal numbers are a tie."""
        rows = [row for row in self.rows if row.ok or row is not self.rows[-1]]
        ratios = [row.max_abs / row.allowed for row in rows if row.allowed and row.ok]
        return round(max(ratios, default=0.0), 3)


@dataclass
class Judge:
    """A dump, and the model with the faults that were found so far.

    Attributes:
        simulator: Makes faults in the model.
        dump: The foreign tensors.
        made: The faults that were found.
        run: The model with them.
        wrong: The first tap where that run does not give the dump.
        right: The taps where it does.
    """

    simulator: Simulator
    dump: Dump
    made: tuple[SimulatedFault, ...]
    run: Run
    wrong: Row
    right: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.order = in_reading_order(self.dump)
        self.start = self.order.index(self.wrong.tap)

    def reached(self, fault: SimulatedFault, *, shown: bool = False) -> Reached | None:
        """How far the fault explains the dump; None if it does not give the first wrong tap.

        Args:
            fault: To make.
            shown: Whether it has been shown to give nearly every value of the first wrong tap. Otherwise a fault whose
                rounding errors are as large as the difference does not count: it would agree with anything.
        """
        if self.simulator.part_of(fault.tap) > self.simulator.part_of(self.wrong.tap):
            return None
        if self._is_deep and not self._comes_near(fault):
            return None
        run = self.simulator.run((*self.made, fault), self.run)
        rows = self._mended(run, shown) if run else None
        if rows is None:
            return None
        then = first_wrong(rows)
        if then is None:
            return Reached(fault, len(self.order), rows, confirmed=True)
        later = self._shown_later(fault)
        return None if later is False else Reached(fault, self.order.index(then.tap), rows, confirmed=later is True)

    def furthest(self, groups: Iterable[Iterable[SimulatedFault]]) -> list[Reached]:
        """Those that explain most, the closest first. Later groups are left out where one explains all."""
        found: list[Reached] = []
        for group in groups:
            found += [reached for fault in group if (reached := self.reached(fault))]
            if any(reached.end == len(self.order) for reached in found):
                break
        return sorted(best_of(found), key=lambda reached: reached.remoteness)

    def evidence(self, reached: Reached, comparison: Comparison) -> tuple[Evidence, ...]:
        """The taps that it explains, beside the comparison without it."""
        explained = self.order[self.start : reached.end]
        before = {row.tap: row.max_abs for row in comparison.rows}
        return tuple(
            Evidence(row.tap, before.get(row.tap, math.nan), row.max_abs, row.allowed or 0.0)
            for row in reached.rows
            if row.tap in explained
        )

    def _shown_later(self, fault: SimulatedFault) -> bool | None:
        """Whether later parts of the dump, computed from the dump's own tensors, are what the fault makes of them.

        If not, the fault is made in fewer layers, or it is another one. None where it does not show. Only texts without
        padding are looked at: others may depend on what a port has at padding.
        """
        simulator = self.simulator
        try:
            before, after = self._expected, self._predicted(fault)
        except ValueError:
            return None  # it moves the taps
        real = simulator.real
        tokens = real.all(dim=1, keepdim=True).expand_as(real)[real]
        taps = [tap.name for tap in simulator.exact.taps()]
        seen: bool | None = None
        for previous, tap in pairwise(taps):
            later = simulator.part_of(tap) > simulator.part_of(self.wrong.tap)
            if not later or tap not in before or tap not in after or len(before[tap]) != len(tokens):
                continue
            right, changed, given = (x[tokens] for x in (before[tap], after[tap], values(tap, self.dump[tap], real)))
            there = shown(right, changed, given, self._allowed[tap], one_operation=previous in self.dump)
            if there is False:
                return False
            seen = seen or there
        return seen

    @cached_property
    def _is_deep(self) -> bool:
        """Whether there are several layers between the last right tap and the wrong one: then a run is slow."""
        right = self.simulator.part_of(self.order[self.start - 1]) if self.start else 0
        return self.simulator.part_of(self.wrong.tap) - right >= DEEP

    def _comes_near(self, fault: SimulatedFault) -> bool:
        """Whether the fault, without rounding errors, leaves less of the difference at the wrong tap."""
        tap, real = self.wrong.tap, self.simulator.real
        found = self.simulator.exact_at(tap, (*self.made, fault), self.run)
        before = self.run.expected.get(tap)
        if found is None or before is None or not found.shape == before.shape == self.dump[tap].shape:
            return True  # a run says what does not fit
        given = elements(tap, self.dump[tap], real)
        now, then = ((elements(tap, x, real) - given).square().mean() for x in (found, before))
        return not bool(now > NEAR * NEAR * then)  # NaN comes near

    def _predicted(self, *faults: SimulatedFault) -> dict[str, Tensor]:
        simulator = self.simulator
        inputs = Inputs(simulator.input_ids, simulator.attention_mask, simulator.top_ids)
        return predicted(simulator.exact, inputs, self.dump, simulator.made((*self.made, *faults)))

    @cached_property
    def _expected(self) -> dict[str, Tensor]:
        """What the model with the faults that were found makes of the dump's own tensors."""
        return self._predicted()

    @cached_property
    def _allowed(self) -> dict[str, float]:
        """Tap -> what rounding explains there."""
        return {row.tap: row.allowed or 0.0 for row in self.run.compared(self.dump).rows}

    def _was_closer(self, row: Row) -> bool:
        """Whether a right tap before the wrong one is moved: a fault that rounds may call that rounding."""
        before = self.order.index(row.tap) < self.start
        return before and row.max_abs > WITHIN * self._allowed[row.tap]

    def _mended(self, run: Run, shown: bool) -> tuple[Row, ...] | None:
        """The taps from the first that the run may change to the first wrong one; None if that is not behind ours."""
        wrong, simulator = self.wrong, self.simulator
        rows: tuple[Row, ...] = ()
        for index in range(run.start, simulator.count):
            rows += run.rows(self.dump, index)
            if any(self._was_closer(row) for row in rows):
                return None
            if any(row.tap == wrong.tap and (row.allowed or 0.0) >= wrong.max_abs for row in rows) and not shown:
                return None
            first = first_wrong(rows)
            if first is not None:
                return rows if self.order.index(first.tap) > self.start else None
            if index == simulator.part_of(wrong.tap):
                run.parts(simulator.count)  # all that is left at once: faults are made and lifted once
        return rows


def best_of(found: Sequence[Reached]) -> list[Reached]:
    """Those that explain most; of these, those that later parts show, if they show any."""
    end = max((reached.end for reached in found), default=0)
    furthest = [reached for reached in found if reached.end == end]
    return [reached for reached in furthest if reached.confirmed] or furthest


def told_apart_at(
    simulator: Simulator, taps: frozenset[str], made: tuple[SimulatedFault, ...], faults: tuple[AnyFault, ...]
) -> tuple[str | None, ...]:
    """For each fault after the first, the first tap of the model at which the two differ beyond rounding."""
    if len(faults) == 1:
        return ()
    simulated = [fault for fault in faults if not isinstance(fault, TokenizerFault)]
    first, *others = (simulator.run((*made, fault), taps=taps) for fault in simulated)
    rows = [first_wrong(first.compared(other.rounded).rows) if first and other else None for other in others]
    return tuple(row.tap if row else None for row in rows)


def first_wrong(rows: Sequence[Row]) -> Row | None:
    """The first tensor of the dump that is not what the model gives; a layer that the model lacks is wrong, too."""
    for row in rows:
        surplus = row.verdict == "extra" and row.tap.startswith("layers.")
        if surplus or row.verdict not in ("equal", "ok", "missing", "extra"):
            return row
    return None
