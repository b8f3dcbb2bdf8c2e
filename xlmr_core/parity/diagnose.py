"""Why a port's numbers differ: each fault of the catalogue is made in our own model until one gives those numbers.

    diagnosis = diagnose(model, batch, dump)
    print(diagnosis)       # the fault, with the evidence for it; or the first wrong tap, and what the error looks like
    diagnosis.faults       # ("gelu_tanh",)

Nothing is guessed from symptoms: a fault is named when the model with that fault agrees with the dump up to the noise
of the dump's own precision, measured on the model with the fault. Faults that give the same numbers are named together.
Where several faults were made, the first is named, made, and the search goes on from where the numbers part next.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from xlmr_core.formatting import dtype_name, json_number
from xlmr_core.parity.compare import (
    FLOATS,
    LOGITS,
    LOGSUMEXP,
    TOP,
    TOP_IDS,
    Comparison,
    Dump,
    Row,
    elements,
    in_reading_order,
)
from xlmr_core.parity.faults import (
    FAULTS,
    POOLING_FAULTS,
    TOKENIZER_FAULTS,
    Fault,
    TokenizerFault,
    find_fault,
)
from xlmr_core.parity.floors import threads_by_size
from xlmr_core.parity.patterns import describe, growth
from xlmr_core.parity.simulate import SENTENCE, Run, SimulatedFault, Simulator, one_mask
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick
from xlmr_core.tokenizer import XLMRobertaTokenizer

IDS, MASK = "input_ids", "attention_mask"
DROPOUT = find_fault("dropout_left_on")  # drawn at random: it is recognised, not simulated
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


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Prints as a report."""

    findings: tuple[Finding, ...]
    tap: str | None  # the first tap that differs and is not explained; None: everything is
    looks_like: tuple[str, ...]  # what the error there looks like
    agrees: int  # taps that agree without any fault
    compared: int
    stop: Stop  # why the search ended

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
            return f"no difference beyond rounding at {self.compared} taps"
        lines = [f"first divergence: {self.first_tap} ({self.agrees} of {self.compared} taps agree)"]
        for finding in self.findings:
            lines += ["", *_finding_lines(finding)]
        if self.tap is not None:
            lines += ["", f"unexplained from {self.tap} on: {self._why()}", *(f"  {line}" for line in self.looks_like)]
        elif self.stop == "chance":
            lines += ["", "what follows is not compared: dropout is drawn at random"]
        else:
            these = "this" if len(self.findings) == 1 else "these"
            lines += ["", f"with {these} the model gives the foreign numbers, up to rounding, at every tap"]
        return "\n".join(lines)

    def _why(self) -> str:
        if self.stop == "not finite":
            return "the search stops here, because no fault of the catalogue gives NaN or infinity"
        if self.findings:
            return "the faults above do not give these numbers"
        return "no fault of the catalogue gives these numbers"

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
            }
            for finding in self.findings
        ]
        unexplained = None if self.tap is None else {"tap": self.tap, "looks_like": self.looks_like}
        found = {"ok": self.ok, "explained": self.explained, "first_tap": self.first_tap, "stop": self.stop}
        return json.dumps(found | {"findings": findings, "unexplained": unexplained}, indent=1)


def _finding_lines(finding: Finding) -> list[str]:
    lines = [f"{finding.faults[0].name}: {finding.faults[0].cause}"]
    for other, tap in zip_longest(finding.faults[1:], finding.told_apart_at):
        lines.append(f"  or {other.name}: {other.cause} (the same numbers on this input)")
        more = f"add {tap} to the dump" if tap else "no tap does on this input; texts of several lengths may"
        lines.append(f"     to tell it from {finding.faults[0].name}: {more}")
    width = max((len(evidence.tap) for evidence in finding.evidence), default=0)
    lines.append(f"  {'largest difference at':{width}}  without it  with it   allowed")
    shown = finding.evidence if len(finding.evidence) <= 8 else (*finding.evidence[:4], None, *finding.evidence[-3:])
    for evidence in shown:
        if evidence is None:
            lines.append(f"  ... {len(finding.evidence) - 7} more taps")
            continue
        numbers = f"{evidence.without:<10.2e}  {evidence.with_fault:<8.2e}  {evidence.allowed:.2e}"
        lines.append(f"  {evidence.tap:{width}}  {numbers}")
    return lines


# ---- the search ------------------------------------------------------------------------------------------------------


def diagnose(
    model: PretrainedModel,
    batch: Mapping[str, Tensor],
    dump: Dump,
    *,
    tokenizer: XLMRobertaTokenizer | None = None,
    dtype: torch.dtype | None = None,
    most: int = 3,
    tick: Tick = no_tick,
) -> Diagnosis:
    """Finds the faults that, made in `model`, give the numbers in `dump`.

    Args:
        model: The right model.
        batch: The right input_ids and attention_mask, (B, S).
        dump: Tap -> foreign tensor, batch first; also the foreign "input_ids" and "attention_mask" if they are known.
            "sentence.mean" is the mean of the last hidden states, (B, H).
        tokenizer: For dumps whose ids may be wrong.
        dtype: What the port computes in. By default the narrowest type in the dump; float64 counts as float32.
        most: How many faults to look for.
        tick: Is called with 1 after each run of the model, of which there are about a hundred for a fault.

    Returns:
        The faults that were found, each with its evidence, or a description of the difference.

    Raises:
        ValueError: The dump has no tap of the model, or a tensor of the wrong shape or type.
    """
    ids, mask, findings = _checked_ids(batch, dump, tokenizer)
    if findings and not findings[0].faults:
        return Diagnosis((), IDS, _ids_look_like(batch, dump), 0, 1, "unexplained")
    top_ids = dump[TOP_IDS] if TOP_IDS in dump and LOGITS not in dump else None
    dump, dtype = checked_dump(model, dump, dtype)
    with threads_by_size(model, ids.numel()):
        simulator = Simulator(model, ids, mask, dump, dtype, top_ids, tick)
        return search(simulator, dump, model, most=most, findings=findings)


def search(
    simulator: Simulator, dump: Dump, model: PretrainedModel, *, most: int = 3, findings: Sequence[Finding] = ()
) -> Diagnosis:
    """As `diagnose`, for a dump that `checked_dump` has made ready for the simulator."""
    run = simulator.run(())
    assert run is not None
    state = _Search(simulator, dump, model, run, list(findings))
    _check_shapes(state.comparison)
    agrees = sum(row.ok for row in state.comparison.rows if row.tap in dump)
    stop = state.advance(most)
    while stop is None:
        stop = state.advance(most)
    if state.wrong is None or stop == "chance":
        return Diagnosis(tuple(state.found), None, (), agrees, len(dump), stop)
    looks_like = _looks_like(dump, state.run, state.comparison, state.wrong, model)
    tap = _located(model, dump, state.wrong)
    return Diagnosis(tuple(state.found), tap, looks_like, agrees, len(dump), stop)


@dataclass
class _Search:
    """How far a search has come."""

    simulator: Simulator
    dump: Dump
    model: PretrainedModel
    run: Run  # the model with the faults that were found
    found: list[Finding]
    made: tuple[SimulatedFault, ...] = ()  # those of `found` that are in `run`
    comparison: Comparison = field(init=False)
    wrong: Row | None = field(init=False)  # the first tap where `run` does not give the dump

    def __post_init__(self) -> None:
        self.comparison = self.run.compared(self.dump)
        self.wrong = _first_wrong(self.comparison.rows)

    def advance(self, most: int) -> Stop | None:
        """Finds one more fault and makes it in the model, or says why the search ends."""
        if self.wrong is None:
            return "explained"
        if len(self.found) >= most:
            return "most"
        if not self.dump[self.wrong.tap].isfinite().all() and self.wrong.verdict == "not finite":
            return "not finite"
        finding = _explanation(self, self.wrong)
        if finding is None:
            finding = _dropout(self.simulator, self.dump, self.run, self.wrong)
            self.found += [finding] if finding else []
            return "chance" if finding else "unexplained"
        fault = finding.faults[0]
        assert not isinstance(fault, TokenizerFault)
        run = self.simulator.run((*self.made, fault), self.run)
        assert run is not None
        told_apart_at = _told_apart_at(self.simulator, self.model, self.made, finding.faults)
        self.found.append(replace(finding, told_apart_at=told_apart_at))
        self.made, self.run = (*self.made, fault), run
        self.__post_init__()
        return None


def _explanation(state: _Search, wrong: Row) -> Finding | None:
    """The faults that move the first difference furthest down; best, there is none left. Likely places first.

    Last comes each fault of a layer in that layer only, where none that is made in every layer explains all.
    """
    simulator, dump, model = state.simulator, state.dump, state.model
    order = in_reading_order(dump)
    start = order.index(wrong.tap)
    between = _between(model, order[start - 1] if start else None, wrong.tap)
    everything = [*FAULTS, *(POOLING_FAULTS if SENTENCE in dump else ())]
    visible = [fault for fault in everything if not isinstance(fault, Fault) or fault.shows == "outputs"]
    candidates = [
        fault
        for fault in visible
        if fault not in state.made
        and fault is not DROPOUT
        and simulator.part_of(fault.tap) <= simulator.part_of(wrong.tap)  # it can change the first wrong tap
    ]
    near = [fault for fault in candidates if _resolved(fault.tap, model) in between]
    reached: dict[SimulatedFault, tuple[int, tuple[Row, ...]]] = {}
    only_here = _in_its_layer(wrong.tap, model)
    for group in (near, [fault for fault in candidates if fault not in near], only_here):
        for fault in group:
            run = simulator.run((*state.made, fault), state.run)
            rows = _mended(simulator, run, dump, wrong) if run else None
            if rows is not None:
                then = _first_wrong(rows)
                reached[fault] = len(order) if then is None else order.index(then.tap), rows
        if any(end == len(order) for end, _ in reached.values()):
            break
    furthest = max((end for end, _ in reached.values()), default=start)
    if furthest <= start:
        return None
    best = {fault: rows for fault, (end, rows) in reached.items() if end == furthest}
    explained = set(order[:furthest])
    faults = sorted(best, key=lambda fault: _remoteness(best[fault], explained))
    before = {row.tap: row.max_abs for row in state.comparison.rows}
    evidence = tuple(
        Evidence(row.tap, before.get(row.tap, math.nan), row.max_abs, row.allowed or 0.0)
        for row in best[faults[0]]
        if row.tap in explained and order.index(row.tap) >= start
    )
    return Finding(_located(model, dump, wrong), tuple(faults), evidence)


def _mended(simulator: Simulator, run: Run, dump: Dump, wrong: Row) -> tuple[Row, ...] | None:
    """The taps from the first that the run may change to the first wrong one; None if that is not behind `wrong`."""
    order = in_reading_order(dump)
    rows: tuple[Row, ...] = ()
    for index in range(run.start, simulator.count):
        rows += run.rows(dump, index)
        first = _first_wrong(rows)
        if first is not None:
            return rows if order.index(first.tap) > order.index(wrong.tap) else None
        if index == simulator.part_of(wrong.tap):
            if any(row.tap == wrong.tap and (row.allowed or 0.0) >= wrong.max_abs for row in rows):
                return None  # rounding errors as large as the difference: this run would agree with anything
            run.parts(simulator.count)  # all that is left at once: faults are made and lifted once
    return rows


def _told_apart_at(
    simulator: Simulator, model: PretrainedModel, made: tuple[SimulatedFault, ...], faults: tuple[AnyFault, ...]
) -> tuple[str | None, ...]:
    """For each fault after the first, the first tap of the model at which the two differ beyond rounding."""
    if len(faults) == 1:
        return ()
    taps = frozenset(tap.name for tap in model.taps())
    simulated = [fault for fault in faults if not isinstance(fault, TokenizerFault)]
    first, *others = (simulator.run((*made, fault), taps=taps) for fault in simulated)
    rows = [_first_wrong(first.compared(other.rounded).rows) if first and other else None for other in others]
    return tuple(row.tap if row else None for row in rows)


def _in_its_layer(tap: str, model: PretrainedModel) -> list[Fault]:
    """The faults of layers, each made in the layer of the tap alone: a port may have lost a single tensor."""
    parts = tap.split(".")
    if parts[0] != "layers" or int(parts[1]) >= model.config.num_hidden_layers:
        return []
    inside = [fault for fault in FAULTS if fault.shows == "outputs" and fault.tap.startswith("layers.0.")]
    return [fault.in_layer(int(parts[1])) for fault in inside]


def _remoteness(rows: Sequence[Row], taps: set[str]) -> float:
    """The largest difference in units of what rounding explains. Rounded, so that equal numbers are a tie."""
    ratios = [row.max_abs / row.allowed for row in rows if row.tap in taps and row.allowed]
    return round(max(ratios, default=0.0), 3)


def _first_wrong(rows: Sequence[Row]) -> Row | None:
    """The first tensor of the dump that is not what the model gives; a layer that the model lacks is wrong, too."""
    for row in rows:
        surplus = row.verdict == "extra" and row.tap.startswith("layers.")
        if surplus or row.verdict not in ("equal", "ok", "missing", "extra"):
            return row
    return None


def _located(model: PretrainedModel, dump: Dump, row: Row) -> str:
    """The first wrong tap; where the dump lacks a whole layer before it, that layer's first."""
    order = in_reading_order(dump)
    start = order.index(row.tap)
    kinds = {_kind(tap) for tap in dump}
    skipped = _between(model, order[start - 1] if start else None, row.tap)
    return next((tap for tap in skipped if _kind(tap) in kinds), skipped[-1])


def _kind(tap: str) -> str:
    parts = tap.split(".")
    return ".".join([parts[0], "*", *parts[2:]]) if parts[0] == "layers" else tap


def _between(model: PretrainedModel, agreeing: str | None, wrong: str) -> list[str]:
    """The taps after the last that agrees, up to the first that does not: there the fault is."""
    taps = [tap.name for tap in model.taps()]
    wrong = LOGITS if wrong in (TOP, LOGSUMEXP) else wrong
    if wrong not in taps:
        return [wrong]
    start = taps.index(agreeing) + 1 if agreeing in taps else 0
    return taps[start : taps.index(wrong) + 1]


def _resolved(tap: str, model: PretrainedModel) -> str:
    return tap.replace("layers.-1.", f"layers.{model.config.num_hidden_layers - 1}.")


def _looks_like(dump: Dump, run: Run, comparison: Comparison, row: Row, model: PretrainedModel) -> tuple[str, ...]:
    expected = run.expected.get(row.tap)
    if expected is None:
        return ("the model has nothing here",)
    lines = describe(
        row.tap,
        expected,
        dump[row.tap],
        run.real,
        heads=model.config.num_attention_heads,
        allowed=row.allowed,
    )
    depth = growth(relative_errors_by_layer(comparison))
    return (*lines, depth) if depth else lines


def relative_errors_by_layer(comparison: Comparison) -> dict[int, float]:
    """Layer -> largest error of its output, in units of the largest value there; 0 where it is right."""
    return {
        int(row.tap.split(".")[1]): 0.0 if row.ok else row.relative
        for row in comparison.rows
        if row.tap.startswith("layers.") and row.tap.count(".") == 2 and row.tap.endswith(".output")
    }


def _dropout(simulator: Simulator, dump: Dump, run: Run, row: Row) -> Finding | None:
    """Dropout cannot be simulated, for it is drawn at random, but what it leaves at the embeddings can be checked."""
    if row.tap != "embeddings.output":
        return None
    keep = 1 - simulator.dropout
    kept = dump[row.tap] != 0
    if keep in (0, 1) or kept.all():
        return None
    allowed = (row.allowed or 0.0) / keep
    expected = run.expected[row.tap] * kept / keep
    difference = elements(row.tap, dump[row.tap], run.real) - elements(row.tap, expected, run.real)
    distance = float(difference.abs().max())
    if distance > allowed:
        return None
    return Finding(row.tap, (DROPOUT,), (Evidence(row.tap, row.max_abs, distance, allowed),))


# ---- the dump --------------------------------------------------------------------------------------------------------


def checked_dump(model: PretrainedModel, dump: Dump, dtype: torch.dtype | None) -> tuple[Dump, torch.dtype]:
    """The taps of the dump that the model has, in the dtype that they were computed in."""
    known = [*(tap.name for tap in model.taps()), *((TOP, LOGSUMEXP) if LOGITS not in dump else ()), SENTENCE]
    shared = {name: dump[name] for name in known if name in dump}
    if not shared:
        raise ValueError(
            f"the dump has no tap of this model: it holds {', '.join(list(dump)[:5]) or 'nothing'}, "
            f"the model has {known[0]}, {known[1]}, ...; a name map says which is which"
        )
    for name, tensor in shared.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} holds {dtype_name(tensor.dtype)}: a tap holds floating-point numbers")
    narrowest = max((tensor.dtype for tensor in shared.values()), key=lambda kind: torch.finfo(kind).eps)
    dtype = dtype or (torch.float32 if narrowest == torch.float64 else narrowest)
    return {name: one_mask(name, tensor.detach().cpu().to(dtype)) for name, tensor in shared.items()}, dtype


def _check_shapes(comparison: Comparison) -> None:
    for row in comparison.rows:
        if row.verdict in ("misshapen", "wrong dtype"):
            raise ValueError(f"{row.tap} cannot be compared: {row.note}")


# ---- ids -------------------------------------------------------------------------------------------------------------


def _checked_ids(
    batch: Mapping[str, Tensor], dump: Dump, tokenizer: XLMRobertaTokenizer | None
) -> tuple[Tensor, Tensor, list[Finding]]:
    """The ids to run the model on: the foreign ones where they differ, for then the rest can still be compared."""
    ids, mask = batch[IDS], batch[MASK]
    if IDS not in dump:
        return ids, mask, []
    theirs = dump[IDS].cpu()
    their_mask = dump[MASK].cpu() if MASK in dump else mask
    if theirs.shape == ids.shape and torch.equal(theirs.long(), ids.cpu().long()):
        return ids, mask, []
    if their_mask.shape != theirs.shape or len(theirs) != len(ids):
        raise ValueError(
            f"input_ids of the dump have shape {tuple(theirs.shape)}, its attention_mask {tuple(their_mask.shape)} and "
            f"ours {tuple(ids.shape)}: a dump with other ids must hold its attention_mask, too"
        )
    right, wrong = _rows(ids, mask), _rows(theirs, their_mask)
    faults = tuple(
        fault
        for fault in (TOKENIZER_FAULTS if tokenizer else ())
        if tokenizer and [fault.rule(row, tokenizer) for row in right] == wrong
    )
    differ = sum(a != b for a, b in zip(right, wrong, strict=True))
    evidence = (Evidence(IDS, float(differ), 0.0, 0.0),) if faults else ()
    return theirs.long(), their_mask, [Finding(IDS, faults, evidence)]


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(ids.cpu().long(), mask.cpu().bool(), strict=True)]


def _ids_look_like(batch: Mapping[str, Tensor], dump: Dump) -> tuple[str, ...]:
    right, wrong = _rows(batch[IDS], batch[MASK]), _rows(dump[IDS], dump.get(MASK, batch[MASK]))
    for index, (a, b) in enumerate(zip(right, wrong, strict=True)):
        if a != b:
            place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return (f"row {index} differs from token {place} on: {a[place:][:4]} expected, {b[place:][:4]} found",)
    return ()
