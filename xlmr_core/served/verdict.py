"""What a search for the fault of a server found, as a report and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from xlmr_core.formatting import json_number
from xlmr_core.parity.int8 import INT8
from xlmr_core.served.faults import PipelineFault
from xlmr_core.served.pipeline import Padding

MOST_TIES = 6  # candidates for which an input that tells them apart is looked for


@dataclass(frozen=True)
class Candidate:
    """Faults that, made together, give the numbers."""

    faults: tuple[PipelineFault, ...]
    error: float  # the largest of a text, as a share of the length of a vector
    precision: str  # whose noise explains it
    specials_in_text: bool
    told_apart_by: str | None = None  # a text whose vector differs from that of the first candidate
    padding: Padding = "right"  # of the batch in which it differs

    @property
    def name(self) -> str:
        """The names of the faults, joined by +."""
        return " + ".join(fault.name for fault in self.faults)


@dataclass(frozen=True)
class Verdict:
    """What `judge` found. Prints as a report."""

    precision: str | None  # of a right pipeline: whose noise explains the numbers; None: it is not right
    error: float  # of the right pipeline: the largest of a text
    allowed: dict[str, float]  # by precision: how far rounding takes a right pipeline
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the pipeline is right, or its numbers or weights were only rounded."""
        return self.precision is not None or any(
            all(fault.rounding for fault in candidate.faults) for candidate in self.candidates
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the candidates, the simplest first."""
        return tuple(candidate.name for candidate in self.candidates)

    def __str__(self) -> str:
        lines: list[str] = []
        if self.precision in INT8:
            lines.append(
                f"right, quantised about as int8: the error is {self.error:.1e}, simulated int8 gives "
                f"{self.allowed[self.precision]:.1e}. A fault that changes less than that would not show"
            )
        elif self.precision is not None:
            lines.append(
                f"right, to the noise of {self.precision}: the error is {self.error:.1e}, "
                f"allowed is {self.allowed[self.precision]:.1e}"
            )
        elif not self.candidates:
            lines.append(f"unexplained: the error is {self.error:.1e}, and no fault gives these numbers")
        for index, candidate in enumerate(self.candidates):
            first, *more = candidate.faults
            lines.append(f"{'or ' if index else ''}{candidate.name}: {first.cause}")
            lines += [f"  and {fault.cause}" for fault in more]
            lines += [f"  see {fault.thread}" for fault in candidate.faults if fault.thread]
            lines.append(
                f"  the error is {self.error:.1e} without, {candidate.error:.1e} with this; "
                f"{candidate.precision} explains {self.allowed[candidate.precision]:.1e}"
            )
            if index and index < MOST_TIES:
                lines.append(f"  {_apart(candidate, self.candidates[0])}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The same for programs, of what JSON can hold."""
        candidates = [
            {
                "name": candidate.name,
                "causes": [fault.cause for fault in candidate.faults],
                "threads": [fault.thread for fault in candidate.faults if fault.thread],
                "error": candidate.error,
                "precision": candidate.precision,
                "told_apart_by": candidate.told_apart_by,
                "padding": candidate.padding,
            }
            for candidate in self.candidates
        ]
        error = json_number(self.error)
        found = {"ok": self.ok, "precision": self.precision, "error": error, "allowed": self.allowed}
        return found | {"candidates": candidates, "notes": list(self.notes)}

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1)


def _apart(candidate: Candidate, first: Candidate) -> str:
    if candidate.told_apart_by is None:
        return f"no text of the probe tells it from {first.name}"
    shown = candidate.told_apart_by if len(candidate.told_apart_by) <= 60 else candidate.told_apart_by[:57] + "..."
    text = f"{shown!r} ({len(candidate.told_apart_by)} characters)"
    if candidate.padding == "left":
        return f"only a batch that is padded on the left tells it from {first.name}, for example at {text}"
    return f"this text tells it from {first.name}: {text}"
