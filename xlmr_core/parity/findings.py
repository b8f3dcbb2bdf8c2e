"""What a diagnosis says: the faults that were found, with the evidence for each, as a report and as JSON."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Literal

from torch import nn

from xlmr_core import notebook
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.formatting import json_number
from xlmr_core.parity.compare import Leaning
from xlmr_core.parity.faults import Fault, TokenizerFault
from xlmr_core.parity.simulate import SimulatedFault

AnyFault = SimulatedFault | TokenizerFault
# Why a search ended: nothing differs any more; no fault moves the difference; as many were found as were asked for;
# what follows is drawn at random; the dump has NaN or infinity there, which no fault gives.
Stop = Literal["explained", "unexplained", "most", "chance", "not finite"]


@dataclass(frozen=True)
class Evidence:
    """One tap: how far the foreign numbers are from the model without the fault, and from the model with it."""

    tap: str
    without: float
    with_fault: float
    allowed: float  # what rounding explains


@dataclass(frozen=True)
class Finding:
    """One fault. `faults` has more than one entry where several give the same numbers on this input."""

    tap: str  # the first that differed
    faults: tuple[AnyFault, ...]  # closest first
    evidence: tuple[Evidence, ...]  # from `tap` to where the numbers part next, or to the end
    # For each fault after the first, the first tap at which it differs from the first fault: in the dump, that tap
    # would break the tie. None: they differ at no tap on this input.
    told_apart_at: tuple[str | None, ...] = ()
    # For each fault after the first, another input that would break the tie, in words. None: a tap does, or none of the
    # inputs that were tried.
    told_apart_by: tuple[str | None, ...] = ()


def recognised(tap: str, cause: str, symptom: str, evidence: tuple[Evidence, ...]) -> Finding:
    """A fault that shows in the numbers of a dump, and cannot be made in a model."""

    def patch(_model: nn.Module, _config: XLMRobertaConfig, _undo: ExitStack) -> None:
        raise ValueError(f"{cause}: that cannot be made in a model")

    return Finding(tap, (Fault(f"{tap}: {cause}", cause, symptom, tap, patch, listed=False),), evidence)


def of_known_layers(finding: Finding, unexplained: str, *, one_operation: bool) -> Finding:
    """A finding without what is not known of the layers from the unexplained one on.

    Args:
        finding: As it was found.
        unexplained: The first tap that the findings do not explain. Behind it a layer may have the fault or not.
        one_operation: Whether the dump has the tap before that of the finding. Then "in every layer" is known: the taps
            of all layers were computed from the dump's own tensors.
    """
    if not all(tap.startswith("layers.") for tap in (finding.tap, unexplained)):
        return finding
    first, last = int(finding.tap.split(".")[1]), int(unexplained.split(".")[1]) - 1
    inside = f"(in layer {first})" if last <= first else f"(in layers {first} to {last})"

    def known(name: str) -> str:
        name = re.sub(r"(in layer \d+) only", r"\1", name)
        return name if one_operation else name.replace("(in every layer)", inside)

    faults = (replace(each, name=known(each.name)) if isinstance(each, Fault) else each for each in finding.faults)
    return replace(finding, faults=tuple(faults))


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Prints as a report."""

    findings: tuple[Finding, ...]
    tap: str | None  # the first tap that differs and is not explained; None: everything is
    looks_like: tuple[str, ...]  # what the error there looks like
    agrees: int  # taps that agree without any fault
    compared: int
    stop: Stop  # why the search ended
    leanings: tuple[Leaning, ...] = ()  # where nothing differs: what is below the noise

    @property
    def ok(self) -> bool:
        """Whether nothing differs at all."""
        return not self.findings and self.tap is None

    @property
    def explained(self) -> bool:
        """Whether the findings together give the foreign numbers, up to noise, at every tap."""
        return self.tap is None

    @property
    def first_tap(self) -> str | None:
        """The first tap that differs from a right model."""
        return self.findings[0].tap if self.findings else self.tap

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of the faults, in the order found, the closest of each."""
        return tuple(finding.faults[0].name for finding in self.findings)

    def __str__(self) -> str:
        if self.ok:
            agreement = f"no difference beyond rounding at {self.compared} taps"
            return "\n".join([agreement, *map(str, self.leanings)])
        lines = [self._headline()]
        for finding in self.findings:
            lines += ["", *_finding_lines(finding)]
        return "\n".join([*lines, "", *self._end()])

    def _repr_html_(self) -> str:
        """In a notebook: what `print` shows, with the evidence folded."""
        if self.ok:
            return notebook.paragraph(*str(self).split("\n"))
        parts = [notebook.heading(self._headline())]
        for finding in self.findings:
            rows = [("largest difference at", "without it", "with it", "allowed"), *map(_numbers, finding.evidence)]
            parts.append(notebook.paragraph(*_names_lines(finding)))
            parts.append(notebook.folded(f"evidence at {len(finding.evidence)} taps", notebook.table(rows)))
        return "".join([*parts, notebook.paragraph(*self._end())])

    def _headline(self) -> str:
        return f"first divergence: {self.first_tap} ({self.agrees} of {self.compared} taps agree)"

    def _end(self) -> list[str]:
        """What remains after the findings."""
        if self.tap is not None:
            return [f"unexplained from {self.tap} on: {self._why()}", *(f"  {line}" for line in self.looks_like)]
        if self.stop == "chance":
            return ["what follows is not compared: it depends on numbers that are drawn at random"]
        these = "this" if len(self.findings) == 1 else "these"
        return [f"with {these} the model gives the foreign numbers, up to rounding, at every tap"]

    def _why(self) -> str:
        if self.stop == "not finite":
            return "the search stops here, because no fault of the catalogue gives NaN or infinity"
        if self.findings:
            return "the faults above do not give these numbers"
        return "no fault of the catalogue gives these numbers, nor does a small change of one operation"

    def to_json(self) -> str:
        """The same for programs."""
        findings = [
            {
                "tap": finding.tap,
                "faults": [{"name": fault.name, "cause": fault.cause} for fault in finding.faults],
                "evidence": [
                    {name: json_number(value) for name, value in asdict(evidence).items()}
                    for evidence in finding.evidence
                ],
                "told_apart_at": finding.told_apart_at,
                "told_apart_by": finding.told_apart_by,
            }
            for finding in self.findings
        ]
        unexplained = None if self.tap is None else {"tap": self.tap, "looks_like": self.looks_like}
        found = {"ok": self.ok, "explained": self.explained, "first_tap": self.first_tap, "stop": self.stop}
        found |= {"leanings": [asdict(leaning) for leaning in self.leanings]}
        return json.dumps(found | {"findings": findings, "unexplained": unexplained}, indent=1)


def _names_lines(finding: Finding) -> list[str]:
    """The fault, those that give the same numbers, and what would break the tie."""
    lines = [_named(finding.faults[0])]
    for other, tap, words in zip_longest(finding.faults[1:], finding.told_apart_at, finding.told_apart_by):
        lines.append(f"  or {_named(other)} (the same numbers on this input)")
        if tap:
            more = f"add {tap} to the dump"
        elif words:
            more = f"record another input, such as {words}"
        elif isinstance(other, TokenizerFault):
            more = "record other texts"
        else:
            more = "no tap does on this input, nor does any other input that was tried"
        lines.append(f"     to tell it from {finding.faults[0].name}: {more}")
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    lines = _names_lines(finding)
    if not finding.evidence:  # of numbers that are drawn at random
        return lines
    width = max((len(evidence.tap) for evidence in finding.evidence), default=0)
    lines.append(f"  {'largest difference at':{width}}  without it  with it   allowed")
    shown = finding.evidence if len(finding.evidence) <= 8 else (*finding.evidence[:4], None, *finding.evidence[-3:])
    for evidence in shown:
        if evidence is None:
            lines.append(f"  ... {len(finding.evidence) - 7} more taps")
            continue
        tap, without, with_fault, allowed = _numbers(evidence)
        lines.append(f"  {tap:{width}}  {without:10}  {with_fault:8}  {allowed}")
    return lines


def _numbers(evidence: Evidence) -> tuple[str, str, str, str]:
    return evidence.tap, f"{evidence.without:.2e}", f"{evidence.with_fault:.2e}", f"{evidence.allowed:.2e}"


def _named(fault: AnyFault) -> str:
    unlisted = isinstance(fault, Fault) and not fault.listed
    return fault.name if unlisted else f"{fault.name}: {fault.cause}"
