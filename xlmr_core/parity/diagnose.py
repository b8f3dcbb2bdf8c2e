"""Why a port's numbers differ: each mistake of the catalogue is made in our own model until one gives those numbers.

    diagnosis = diagnose(model, batch, dump)
    print(diagnosis)       # the cause, with the evidence for it; or the first wrong site, and what the error looks like
    diagnosis.causes       # ("gelu_tanh",)

Nothing is guessed from symptoms: a fault is named when the model with that fault agrees with the dump up to the noise
of the dump's own precision, measured on the model with the fault. Faults that give the same numbers are named together.
Where several mistakes were made, the first is named, made, and the search goes on from where the numbers part next.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from xlmr_core.checkpoint.writing import Tick, no_tick
from xlmr_core.model import SelfAttention
from xlmr_core.parity.compare import (
    FLOATS,
    LOGITS,
    LOGSUMEXP,
    TOP,
    TOP_IDS,
    Comparison,
    Dump,
    Floors,
    Row,
    compare,
    elements,
    in_reading_order,
    name_of,
    with_reduced_logits,
)
from xlmr_core.parity.faults import (
    FAULTS,
    POOLING_FAULTS,
    TOKENIZER_FAULTS,
    Fault,
    PoolingFault,
    TokenizerFault,
    find_fault,
    mean_pooled,
)
from xlmr_core.parity.patterns import describe, growth
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tokenizer import XLMRobertaTokenizer

# No product of queries and keys is so low: a score below it is a mask's, written as -inf, finfo.min, -1e9 or -1e4.
HIDDEN = -5e3
IDS, MASK, SENTENCE = "input_ids", "attention_mask", "sentence.mean"
Cause = Fault | PoolingFault
AnyCause = Cause | TokenizerFault


@dataclass(frozen=True)
class Evidence:
    """One site: how far the foreign numbers are from the model without the fault, and from the model with it."""

    site: str
    without: float
    with_fault: float
    allowed: float  # what rounding explains


@dataclass(frozen=True)
class Finding:
    """One mistake. `causes` has more than one entry where several give the same numbers on this input."""

    site: str  # the first that differed
    causes: tuple[AnyCause, ...]  # closest first
    evidence: tuple[Evidence, ...]  # from `site` to where the numbers part next, or to the end
    # For each cause after the first, the first tap at which it differs from the first cause: in the dump, that tap
    # would break the tie. None: they differ at no tap on this input.
    told_apart_at: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Prints as a report."""

    findings: tuple[Finding, ...]
    site: str | None  # the first site that differs and is not explained; None: everything is
    looks_like: tuple[str, ...]  # what the error there looks like
    agrees: int  # sites that agree without any fault
    compared: int

    @property
    def ok(self) -> bool:
        """Whether nothing differs at all."""
        return not self.findings and self.site is None

    @property
    def explained(self) -> bool:
        """Whether the findings together give the foreign numbers, up to noise, at every site."""
        return self.site is None

    @property
    def first_site(self) -> str | None:
        """The first site that differs from a right model."""
        return self.findings[0].site if self.findings else self.site

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the mistakes, in the order found, the closest of each."""
        return tuple(finding.causes[0].name for finding in self.findings)

    def __str__(self) -> str:
        if self.ok:
            return f"no difference beyond rounding at {self.compared} sites"
        lines = [f"first divergence: {self.first_site} ({self.agrees} of {self.compared} sites agree)"]
        for finding in self.findings:
            lines += ["", *_finding_lines(finding)]
        if self.site is not None:
            beside = "the faults above do" if self.findings else "no fault of the catalogue does"
            lines += ["", f"unexplained from {self.site} on: {beside} not give these numbers"]
            if not self.findings:
                lines[-1] = f"unexplained from {self.site} on: no fault of the catalogue gives these numbers"
            lines += [f"  {line}" for line in self.looks_like]
        elif self.findings:
            these = "this" if len(self.findings) == 1 else "these"
            lines += ["", f"with {these} the model gives the foreign numbers, up to rounding, at every site"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for programs."""
        findings = [
            {
                "site": finding.site,
                "causes": [{"name": cause.name, "cause": cause.cause} for cause in finding.causes],
                "evidence": [_finite(asdict(evidence)) for evidence in finding.evidence],
                "told_apart_at": finding.told_apart_at,
            }
            for finding in self.findings
        ]
        unexplained = None if self.site is None else {"site": self.site, "looks_like": self.looks_like}
        found = {"ok": self.ok, "explained": self.explained, "first_site": self.first_site}
        return json.dumps(found | {"findings": findings, "unexplained": unexplained}, indent=1)


def _finding_lines(finding: Finding) -> list[str]:
    lines = [f"{finding.causes[0].name}: {finding.causes[0].cause}"]
    for other, tap in zip_longest(finding.causes[1:], finding.told_apart_at):
        lines.append(f"  or {other.name}: {other.cause} (the same numbers on this input)")
        more = f"add {tap} to the dump" if tap else "no tap does on this input; texts of several lengths may"
        lines.append(f"     to tell it from {finding.causes[0].name}: {more}")
    width = max((len(evidence.site) for evidence in finding.evidence), default=0)
    lines.append(f"  {'largest difference at':{width}}  without it  with it   allowed")
    shown = finding.evidence if len(finding.evidence) <= 8 else (*finding.evidence[:4], None, *finding.evidence[-3:])
    for evidence in shown:
        if evidence is None:
            lines.append(f"  ... {len(finding.evidence) - 7} more sites")
            continue
        numbers = f"{evidence.without:<10.2e}  {evidence.with_fault:<8.2e}  {evidence.allowed:.2e}"
        lines.append(f"  {evidence.site:{width}}  {numbers}")
    return lines


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}


# ---- the model with faults in it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What the model with some faults computes in float64, and the same in the precision of a dump."""

    expected: Dump
    rounded: Dump
    real: Tensor
    dtype: torch.dtype

    def compared(self, dump: Dump) -> Comparison:
        """With the dump, at its sites: judged by what rounding alone does to this run."""
        expected = {site: tensor for site, tensor in self.expected.items() if site in dump}
        exact = dict.fromkeys(expected, 0.0)  # float64 is the truth here
        floors = Floors({"float64": exact, name_of(self.dtype): {site: self._noise(site) for site in expected}})
        # A site that only the dump has must still get its row.
        return compare(expected or self.expected, dump, real=self.real, floors=floors)

    def _noise(self, site: str) -> float:
        """The largest error, and at least the last place of the largest value, if anything is rounded at all."""
        error = _distance(site, self.rounded[site], self.expected[site], self.real)
        values = elements(site, self.expected[site], self.real)
        largest = float(values.where(values > HIDDEN, 0).abs().max())
        return max(error, largest * torch.finfo(self.dtype).eps) if error else 0.0


class Simulator:
    """Our model on one batch, with any faults made in it: as truth in float64, and in the dump's own precision."""

    def __init__(
        self,
        model: PretrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        sites: Iterable[str],
        dtype: torch.dtype,
        top_ids: Tensor | None = None,
        tick: Tick = no_tick,
    ) -> None:
        """sites: what to keep of a run. top_ids: (B, S, K), where logits are known by their top k alone.

        tick: is told 1 for each run.
        """
        self.tick = tick
        self.input_ids, self.attention_mask, self.dtype = input_ids.cpu(), attention_mask.cpu(), dtype
        self.sites, self.top_ids = frozenset(sites), top_ids
        self.dropout = model.config.hidden_dropout_prob
        self._exact, self._rounded = _twin(model, torch.float64), _twin(model, dtype)

    def run(self, causes: tuple[Cause, ...], sites: frozenset[str] | None = None) -> Run | None:
        """None where the model has no such part to make a fault in. sites: by default those of the dump."""
        self.tick(1)
        sites = self.sites if sites is None else sites
        try:
            exact = self._captured(self._exact, causes, sites)
            rounded = self._captured(self._rounded, causes, sites)
        except ValueError:
            return None
        return Run(exact, rounded, self.attention_mask.bool(), self.dtype)

    @torch.no_grad()
    def _captured(self, model: PretrainedModel, causes: tuple[Cause, ...], sites: frozenset[str]) -> dict[str, Tensor]:
        with ExitStack() as made:
            for cause in causes:
                if isinstance(cause, Fault):
                    made.enter_context(cause.applied(model))
            return self._run(model, causes, sites)

    def _run(self, model: PretrainedModel, causes: tuple[Cause, ...], sites: frozenset[str]) -> dict[str, Tensor]:
        pool = next((cause.pool for cause in causes if isinstance(cause, PoolingFault)), mean_pooled)
        torch.manual_seed(0)  # for dropout that was left on
        with model.capture("**") as seen:
            out = model(self.input_ids, self.attention_mask)
        reduced = with_reduced_logits(seen, self.top_ids)
        found = {name: one_mask(name, tensor) for name, tensor in reduced.items() if name in sites}
        if SENTENCE in sites:
            found[SENTENCE] = pool(out.last_hidden_state, self.attention_mask)
        return found


def _twin(model: PretrainedModel, dtype: torch.dtype) -> PretrainedModel:
    """A copy in eval mode on the CPU whose scores can be seen."""
    twin = copy.deepcopy(model).to("cpu", dtype).eval()
    for module in twin.modules():
        if isinstance(module, SelfAttention):
            module.fused = False
    return twin


def one_mask(site: str, tensor: Tensor) -> Tensor:
    """Scores with the same number for every masked key, whatever number was written there."""
    return tensor.clamp(min=HIDDEN) if site.endswith("attention.scores") else tensor


def _distance(site: str, a: Tensor, b: Tensor, real: Tensor) -> float:
    a, b = elements(site, a, real), elements(site, b, real)
    distance = float((a - b).masked_fill(a == b, 0).abs().max())
    return distance if math.isfinite(distance) else 0.0  # what overflows has no noise to measure


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

    batch: the right input_ids and attention_mask, (B, S). dump: tap name -> foreign tensor, batch first, and the
    foreign "input_ids" and "attention_mask" where they are known; "sentence.mean" is the mean of the last hidden
    states, (B, H). tokenizer: where ids may be wrong. dtype: what the port computes in, by default the narrowest
    in the dump; float64 counts as float32. most: how many mistakes to look for. tick: is told 1 for each run of the
    model, of which there are about a hundred for a mistake.

    Raises ValueError if the dump has no tap of the model, or a tensor of the wrong shape or type.
    """
    ids, mask, findings = _checked_ids(batch, dump, tokenizer)
    if findings and not findings[0].causes:
        return Diagnosis((), IDS, _ids_look_like(batch, dump), 0, 1)
    top_ids = dump[TOP_IDS] if TOP_IDS in dump and LOGITS not in dump else None
    dump, dtype = checked_dump(model, dump, dtype)
    simulator = Simulator(model, ids, mask, dump, dtype, top_ids, tick)
    return search(simulator, dump, model, most=most, findings=findings)


def search(
    simulator: Simulator, dump: Dump, model: PretrainedModel, *, most: int = 3, findings: Sequence[Finding] = ()
) -> Diagnosis:
    """As `diagnose`, for a dump that `checked_dump` has made ready for the simulator."""
    found = list(findings)
    made: tuple[Cause, ...] = ()
    run = simulator.run(made)
    assert run is not None
    comparison = run.compared(dump)
    _check_shapes(comparison)
    healthy = comparison
    while (row := _first_wrong(comparison)) is not None and len(found) < most:
        finding = _explanation(simulator, dump, model, made, comparison)
        finding = finding or _dropout(simulator, dump, run, row, made)
        if finding is None:
            break
        found.append(replace(finding, told_apart_at=_told_apart_at(simulator, model, made, finding.causes)))
        made = (*made, finding.causes[0])  # pyright: ignore[reportAssignmentType]
        if finding.causes[0].name == "dropout_left_on":
            comparison = Comparison(())  # what follows is chance
            break
        run = simulator.run(made)
        assert run is not None
        comparison = run.compared(dump)
    agrees = sum(row.ok for row in healthy.rows if row.site in dump)
    looks_like = _looks_like(dump, run, comparison, model) if row is not None and comparison.rows else ()
    site = _located(model, dump, comparison) if row is not None and comparison.rows else None
    return Diagnosis(tuple(found), site, looks_like, agrees, len(dump))


def _explanation(
    simulator: Simulator, dump: Dump, model: PretrainedModel, made: tuple[Cause, ...], comparison: Comparison
) -> Finding | None:
    """The faults that move the first difference furthest down; best, there is none left. Likely places first.

    Last comes each fault of a layer in that layer alone, where none that is made in every layer explains all.
    """
    order = in_reading_order(dump)
    row = _first_wrong(comparison)
    assert row is not None
    start = order.index(row.site)
    between = _between(model, order[start - 1] if start else None, row.site)
    everything = [*FAULTS, *(POOLING_FAULTS if SENTENCE in dump else ())]
    visible = [fault for fault in everything if not isinstance(fault, Fault) or fault.shows == "outputs"]
    candidates = [fault for fault in visible if fault not in made]
    near = [fault for fault in candidates if _resolved(fault.site, model) in between]
    reached: dict[Cause, tuple[int, Comparison]] = {}
    alone = _in_its_layer(row.site, model)
    for group in (near, [fault for fault in candidates if fault not in near], alone):
        for fault in group:
            run = simulator.run((*made, fault))
            if run is None or _first_wrong(run.compared({row.site: dump[row.site]})):
                continue  # it does not even mend the first wrong site
            then = run.compared(dump)
            wrong = _first_wrong(then)
            reached[fault] = len(order) if wrong is None else order.index(wrong.site), then
        if any(end == len(order) for end, _ in reached.values()):
            break
    furthest = max((end for end, _ in reached.values()), default=start)
    if furthest <= start:
        return None
    best = {fault: then for fault, (end, then) in reached.items() if end == furthest}
    explained = set(order[:furthest])
    causes = sorted(best, key=lambda fault: _remoteness(best[fault], explained))
    before = {row.site: row.max_abs for row in comparison.rows}
    evidence = tuple(
        Evidence(row.site, before.get(row.site, math.nan), row.max_abs, row.allowed or 0.0)
        for row in best[causes[0]].rows
        if row.site in explained and order.index(row.site) >= start
    )
    return Finding(_located(model, dump, comparison), tuple(causes), evidence)


def _told_apart_at(
    simulator: Simulator, model: PretrainedModel, made: tuple[Cause, ...], causes: tuple[AnyCause, ...]
) -> tuple[str | None, ...]:
    """For each cause after the first, the first tap of the model at which the two differ beyond rounding."""
    if len(causes) == 1:
        return ()
    taps = frozenset(tap.name for tap in model.taps())
    first, *others = (simulator.run((*made, cause), taps) for cause in causes)  # pyright: ignore[reportArgumentType]
    rows = [_first_wrong(first.compared(other.rounded)) if first and other else None for other in others]
    return tuple(row.site if row else None for row in rows)


def _in_its_layer(site: str, model: PretrainedModel) -> list[Fault]:
    """The faults of layers, each made in the layer of the site alone: a port may have lost a single tensor."""
    parts = site.split(".")
    if parts[0] != "layers" or int(parts[1]) >= model.config.num_hidden_layers:
        return []
    inside = [fault for fault in FAULTS if fault.shows == "outputs" and fault.site.startswith("layers.0.")]
    return [fault.in_layer(int(parts[1])) for fault in inside]


def _remoteness(comparison: Comparison, sites: set[str]) -> float:
    """The largest difference in units of what rounding explains. Rounded, so that equal numbers are a tie."""
    ratios = [row.max_abs / row.allowed for row in comparison.rows if row.site in sites and row.allowed]
    return round(max(ratios, default=0.0), 3)


def _first_wrong(comparison: Comparison) -> Row | None:
    """The first tensor of the dump that is not what the model gives; a layer that the model lacks is wrong, too."""
    for row in comparison.rows:
        surplus = row.verdict == "extra" and row.site.startswith("layers.")
        if surplus or row.verdict not in ("equal", "ok", "missing", "extra"):
            return row
    return None


def _located(model: PretrainedModel, dump: Dump, comparison: Comparison) -> str:
    """The first wrong site; where the dump lacks a whole layer before it, that layer's first."""
    row = _first_wrong(comparison)
    assert row is not None
    order = in_reading_order(dump)
    start = order.index(row.site)
    kinds = {_kind(site) for site in dump}
    skipped = _between(model, order[start - 1] if start else None, row.site)
    return next((site for site in skipped if _kind(site) in kinds), skipped[-1])


def _kind(site: str) -> str:
    parts = site.split(".")
    return ".".join([parts[0], "*", *parts[2:]]) if parts[0] == "layers" else site


def _between(model: PretrainedModel, agreeing: str | None, wrong: str) -> list[str]:
    """The taps after the last that agrees, up to the first that does not: there the mistake is."""
    taps = [tap.name for tap in model.taps()]
    wrong = LOGITS if wrong in (TOP, LOGSUMEXP) else wrong
    if wrong not in taps:
        return [wrong]
    start = taps.index(agreeing) + 1 if agreeing in taps else 0
    return taps[start : taps.index(wrong) + 1]


def _resolved(site: str, model: PretrainedModel) -> str:
    return site.replace("layers.-1.", f"layers.{model.config.num_hidden_layers - 1}.")


def _looks_like(dump: Dump, run: Run, comparison: Comparison, model: PretrainedModel) -> tuple[str, ...]:
    row = _first_wrong(comparison)
    assert row is not None
    if row.site not in run.expected:
        return ("the model has nothing here",)
    lines = describe(
        row.site,
        run.expected[row.site],
        dump[row.site],
        run.real,
        heads=model.config.num_attention_heads,
        allowed=row.allowed,
    )
    depth = growth(relative_errors_by_layer(comparison))
    return (*lines, depth) if depth else lines


def relative_errors_by_layer(comparison: Comparison) -> dict[int, float]:
    """Layer -> largest error of its output, in units of the largest value there; 0 where it is right."""
    return {
        int(row.site.split(".")[1]): 0.0 if row.ok else row.relative
        for row in comparison.rows
        if row.site.startswith("layers.") and row.site.count(".") == 2 and row.site.endswith(".output")
    }


def _dropout(simulator: Simulator, dump: Dump, run: Run, row: Row, made: tuple[Cause, ...]) -> Finding | None:
    """Dropout cannot be simulated, for it is chance, but what it leaves at the embeddings can be checked."""
    if row.site != "embeddings.output":
        return None
    keep = 1 - simulator.dropout
    kept = dump[row.site] != 0
    expected, real = run.expected[row.site] * kept / keep, run.real
    distance = _distance(row.site, dump[row.site], expected, real)
    allowed = (row.allowed or 0.0) / max(keep, 1e-9)
    if keep in (0, 1) or kept.all() or distance > allowed:
        return None
    return Finding(row.site, (find_fault("dropout_left_on"),), (Evidence(row.site, row.max_abs, distance, allowed),))


# ---- the dump --------------------------------------------------------------------------------------------------------


def checked_dump(model: PretrainedModel, dump: Dump, dtype: torch.dtype | None) -> tuple[Dump, torch.dtype]:
    """The sites of the dump that the model has, in the dtype that they were computed in."""
    known = [*(tap.name for tap in model.taps()), *((TOP, LOGSUMEXP) if LOGITS not in dump else ()), SENTENCE]
    shared = {name: dump[name] for name in known if name in dump}
    if not shared:
        raise ValueError(
            f"the dump has no tap of this model: it holds {', '.join(list(dump)[:5]) or 'nothing'}, "
            f"the model has {known[0]}, {known[1]}, ...; a name map says which is which"
        )
    for name, tensor in shared.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} holds {name_of(tensor.dtype)}: a tap holds floating-point numbers")
    narrowest = max((tensor.dtype for tensor in shared.values()), key=lambda kind: torch.finfo(kind).eps)
    dtype = dtype or (torch.float32 if narrowest == torch.float64 else narrowest)
    return {name: one_mask(name, tensor.detach().cpu().to(dtype)) for name, tensor in shared.items()}, dtype


def _check_shapes(comparison: Comparison) -> None:
    for row in comparison.rows:
        if row.verdict in ("misshapen", "wrong dtype"):
            raise ValueError(f"{row.site} cannot be compared: {row.note}")


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
    causes = tuple(
        fault
        for fault in (TOKENIZER_FAULTS if tokenizer else ())
        if tokenizer and [fault.rule(row, tokenizer) for row in right] == wrong
    )
    differ = sum(a != b for a, b in zip(right, wrong, strict=True))
    evidence = (Evidence(IDS, float(differ), 0.0, 0.0),) if causes else ()
    return theirs.long(), their_mask, [Finding(IDS, causes, evidence)]


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(ids.cpu().long(), mask.cpu().bool(), strict=True)]


def _ids_look_like(batch: Mapping[str, Tensor], dump: Dump) -> tuple[str, ...]:
    right, wrong = _rows(batch[IDS], batch[MASK]), _rows(dump[IDS], dump.get(MASK, batch[MASK]))
    for index, (a, b) in enumerate(zip(right, wrong, strict=True)):
        if a != b:
            place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return (f"row {index} differs from token {place} on: {a[place:][:4]} expected, {b[place:][:4]} found",)
    return ()
