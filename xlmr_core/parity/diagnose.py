"""Why a port's numbers differ: each fault of the catalogue is made in our own model until one gives those numbers.

    diagnosis = diagnose(model, batch, dump)
    print(diagnosis)       # the fault, with the evidence for it; or the first wrong tap, and what the error looks like
    diagnosis.faults       # ("gelu_tanh",)

Nothing is guessed from symptoms: a fault is named when the model with that fault agrees with the dump up to the noise
of the dump's own precision, measured on the model with the fault. Faults that give the same numbers are named together.
Where several faults were made, the first is named, made, and the search goes on from where the numbers part next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from xlmr_core.formatting import dtype_name
from xlmr_core.inputs import check_choices
from xlmr_core.parity.compare import Comparison, Row
from xlmr_core.parity.drawn import DROPOUT, dropout, not_loaded
from xlmr_core.parity.faults import (
    FAULTS,
    POOLING_FAULTS,
    TOKENIZER_FAULTS,
    Fault,
    PoolingFault,
    TokenizerFault,
)
from xlmr_core.parity.findings import Diagnosis, Evidence, Finding, Stop, of_known_layers
from xlmr_core.parity.grammar.inputs import told_apart_by
from xlmr_core.parity.grammar.joint import joint
from xlmr_core.parity.grammar.search import SECONDS
from xlmr_core.parity.grammar.unlisted import unlisted
from xlmr_core.parity.judge import Judge, Reached, first_wrong, told_apart_at
from xlmr_core.parity.leaning import leanings
from xlmr_core.parity.local import Inputs
from xlmr_core.parity.patterns import describe, growth
from xlmr_core.parity.simulate import SENTENCE, Run, SimulatedFault, Simulator
from xlmr_core.parity.tap_values import (
    FLOATS,
    LOGITS,
    LOGSUMEXP,
    TOP,
    TOP_IDS,
    Dump,
    in_reading_order,
    narrowest,
    one_mask,
)
from xlmr_core.parity.text_order import texts_put_back
from xlmr_core.parity.variants import threads_by_size
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick
from xlmr_core.tokenizer import XLMRobertaTokenizer

IDS, MASK = "input_ids", "attention_mask"
CHOICES = "choice.logits"
SECONDS_BEYOND = 10.0  # of the search for a change that explains more than a fault of the catalogue
SHOWN_BY_INPUT = 16  # roundings: two faults that differ by less on another input would be a tie there, too


# ---- the search ------------------------------------------------------------------------------------------------------


def diagnose(
    model: PretrainedModel,
    batch: Mapping[str, Tensor],
    dump: Dump,
    *,
    tokenizer: XLMRobertaTokenizer | None = None,
    dtype: torch.dtype | None = None,
    most: int = 3,
    grammar: bool = True,
    catalogue: bool = True,
    seconds: float = SECONDS,
    tick: Tick = no_tick,
) -> Diagnosis:
    """Finds the faults that, made in `model`, give the numbers in `dump`.

    Args:
        model: The right model.
        batch: The right input_ids and attention_mask, (B, S); of multiple choice (B, K, S).
        dump: Tap -> foreign tensor, batch first; also the foreign "input_ids" and "attention_mask" if they are known.
            "sentence.mean" is the mean of the last hidden states, (B, H).
        tokenizer: For dumps whose ids may be wrong.
        dtype: What the port computes in. By default the narrowest type in the dump; float64 counts as float32.
        most: How many faults to look for.
        grammar: Whether small changes of single operations are tried, too, where no fault of the catalogue fits.
        catalogue: Whether the faults of the catalogue are tried.
        seconds: Of the search for one fault; after it, only usual changes near the first wrong tap are tried.
        tick: Is called with 1 after each run of the model, of which there are about a hundred for a fault.

    Returns:
        The faults that were found, each with its evidence, or a description of the difference.

    Raises:
        ValueError: The dump has no tap of the model, or a tensor of the wrong shape or type.
    """
    if model.spec.has_choices:
        batch, dump = _one_choice_each(batch, dump)
    ids, mask, findings = _checked_ids(batch, dump, tokenizer)
    if findings and not findings[0].faults:
        return Diagnosis((), IDS, _ids_look_like(batch, dump), 0, 1, "unexplained")
    top_ids = dump[TOP_IDS] if TOP_IDS in dump and LOGITS not in dump else None
    dump, dtype = checked_dump(model, dump, dtype)
    with threads_by_size(model, ids.numel()):
        simulator = Simulator(model, ids, mask, dump, dtype, top_ids, tick)
        found = search(
            simulator,
            dump,
            model,
            most=most,
            findings=findings,
            grammar=grammar,
            catalogue=catalogue,
            seconds=seconds,
        )
        if not found.ok or dtype == torch.float32:  # there the floors are narrow enough
            return found
        return replace(found, leanings=leanings(model, Inputs(ids, mask, top_ids), dump, dtype, tick=tick))


def search(
    simulator: Simulator,
    dump: Dump,
    model: PretrainedModel,
    *,
    most: int = 3,
    findings: Sequence[Finding] = (),
    grammar: bool = True,
    catalogue: bool = True,
    seconds: float = SECONDS,
) -> Diagnosis:
    """As `diagnose`, for a dump that `checked_dump` has made ready for the simulator."""
    run = simulator.run(())
    assert run is not None
    state = _Search(simulator, dump, model, run, list(findings), grammar, catalogue, seconds)
    _check_shapes(state.comparison)
    agrees = sum(row.ok for row in state.comparison.rows if row.tap in dump)
    stop = state.advance(most)
    while stop is None:
        stop = state.advance(most)
    if state.wrong is None or stop == "chance":
        return Diagnosis(tuple(state.found), None, (), agrees, len(dump), stop)
    dump = state.dump
    looks_like = _looks_like(dump, state.run, state.comparison, state.wrong, model)
    tap = _located(model, dump, state.wrong)
    names = [tap.name for tap in model.taps()]
    before = dict(zip(names[1:], names, strict=False))
    found = [of_known_layers(each, tap, one_operation=before.get(each.tap) in dump) for each in state.found]
    return Diagnosis(tuple(found), tap, looks_like, agrees, len(dump), stop)


@dataclass
class _Search:
    """How far a search has come."""

    simulator: Simulator
    dump: Dump
    model: PretrainedModel
    run: Run  # the model with the faults that were found
    found: list[Finding]
    grammar: bool
    catalogue: bool
    seconds: float
    made: tuple[SimulatedFault, ...] = ()  # those of `found` that are in `run`
    comparison: Comparison = field(init=False)
    wrong: Row | None = field(init=False)  # the first tap where `run` does not give the dump

    def __post_init__(self) -> None:
        self.comparison = self.run.compared(self.dump)
        self.wrong = first_wrong(self.comparison.rows)

    def advance(self, most: int) -> Stop | None:
        """Finds one more fault and makes it in the model, or says why the search ends."""
        if self.wrong is None:
            return "explained"
        if len(self.found) >= most:
            return "most"
        if not self.dump[self.wrong.tap].isfinite().all() and self.wrong.verdict == "not finite":
            return "not finite"
        in_order = texts_put_back(self.simulator, self.dump, self.run, self.wrong)
        if in_order is not None:
            self.dump, finding = in_order
            self.found.append(finding)
            self.__post_init__()
            return None
        drawn = dropout(self.simulator, self.dump, self.run, self.wrong)
        finding = None if drawn else _explanation(self, self.wrong)
        if finding is None:
            drawn = drawn or not_loaded(self.simulator, self.dump, self.run, self.wrong)
            self.found += [drawn] if drawn else []
            return "chance" if drawn else "unexplained"
        fault = finding.faults[0]
        assert not isinstance(fault, TokenizerFault)
        run = self.simulator.run((*self.made, fault), self.run)
        assert run is not None
        taps = frozenset(tap.name for tap in self.model.taps())
        apart = told_apart_at(self.simulator, taps, self.made, finding.faults)
        by = self._told_apart_by(finding) if None in apart else (None,) * len(apart)
        words = tuple(None if tap else each for tap, each in zip(apart, by, strict=True))
        self.found.append(replace(finding, told_apart_at=apart, told_apart_by=words))
        self.made, self.run = (*self.made, fault), run
        self.__post_init__()
        return None

    def _told_apart_by(self, finding: Finding) -> tuple[str | None, ...]:
        """For each fault after the first, another input that shows a difference beyond rounding."""
        simulated = [fault for fault in finding.faults if not isinstance(fault, TokenizerFault)]
        same = SHOWN_BY_INPUT * torch.finfo(self.simulator.dtype).eps
        return told_apart_by(self.simulator, self.model.config, self.made, simulated, same=same)[1:]


def _explanation(state: _Search, wrong: Row) -> Finding | None:
    """The faults that move the first difference furthest down; best, there is none left.

    Those of the catalogue come first; where none of them gives these numbers, the changes of the grammar.
    """
    simulator, dump, model = state.simulator, state.dump, state.model
    right = frozenset(row.tap for row in state.comparison.rows if row.ok)
    judge = Judge(simulator, dump, state.made, state.run, wrong, right)
    best = judge.furthest(_listed(state, wrong)) if state.catalogue else []
    if state.grammar and not _explains_all(judge, best):
        reached = best[0].end if best else judge.start
        best = [each for each in joint(judge, model) if each.end > reached] or best
    if state.grammar and not _explains_all(judge, best):
        beyond = best[0].end if best else judge.start
        seconds = min(state.seconds, SECONDS_BEYOND) if best else state.seconds
        best = unlisted(judge, model, seconds, beyond=beyond) or best
    if not best:
        return None
    faults = tuple(reached.fault for reached in best)
    return Finding(_located(model, dump, wrong), faults, judge.evidence(best[0], state.comparison))


def _explains_all(judge: Judge, best: Sequence[Reached]) -> bool:
    return bool(best) and best[0].end == len(judge.order)


def _listed(state: _Search, wrong: Row) -> Iterator[list[Fault | PoolingFault]]:
    """The faults of the catalogue, likely places first.

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
    yield near
    yield [fault for fault in candidates if fault not in near]
    yield [*_in_its_layer(wrong.tap, model)]


def _in_its_layer(tap: str, model: PretrainedModel) -> list[Fault]:
    """The faults of layers, each made in the layer of the tap alone: a port may have lost a single tensor."""
    parts = tap.split(".")
    if parts[0] != "layers" or int(parts[1]) >= model.config.num_hidden_layers:
        return []
    inside = [fault for fault in FAULTS if fault.shows == "outputs" and fault.tap.startswith("layers.0.")]
    return [fault.in_layer(int(parts[1])) for fault in inside]


def _located(model: PretrainedModel, dump: Dump, row: Row) -> str:
    """The tap of a row; where the dump has every layer but the last, and all of them agree, the first of that layer.

    The largest logits are of the tap of all logits.
    """
    last = model.config.num_hidden_layers - 1
    own = {tap.split(".", 2)[2] for tap in dump if tap.startswith(f"layers.{last - 1}.")}
    layers = {tap.split(".")[1] for tap in dump if tap.startswith("layers.")}
    if own and layers == {str(index) for index in range(last)} and not row.tap.startswith(("embeddings.", "layers.")):
        return next(tap.name for tap in model.taps() if tap.name in {f"layers.{last}.{name}" for name in own})
    return LOGITS if row.tap in (TOP, LOGSUMEXP) else row.tap


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
    dtype = dtype or narrowest(shared.values())
    return {name: one_mask(name, tensor.detach().cpu().to(dtype)) for name, tensor in shared.items()}, dtype


def _check_shapes(comparison: Comparison) -> None:
    for row in comparison.rows:
        if row.verdict in ("misshapen", "wrong dtype"):
            raise ValueError(f"{row.tap} cannot be compared: {row.note}")


def _one_choice_each(batch: Mapping[str, Tensor], dump: Dump) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of multiple choice as texts, each a question with one choice: no operation reads two of them."""
    check_choices((batch[IDS], batch[MASK]), None)
    texts = {name: tensor.flatten(0, -2) for name, tensor in dump.items() if name in (IDS, MASK)}
    logits = {name: dump[name].reshape(-1, 1, 1) for name in (CHOICES,) if name in dump}
    return {name: batch[name].flatten(0, 1) for name in (IDS, MASK)}, {**dump, **texts, **logits}


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
