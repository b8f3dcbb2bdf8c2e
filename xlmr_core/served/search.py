"""Which fault gives the numbers of a server: one after the other is made in the right pipeline, then two at a time.

A fault is named only when the pipeline with it gives the numbers, at every text, up to rounding. How far rounding takes
a right pipeline is measured on the same texts: in float32, float16 and bfloat16, with sums in several orders. Where
nothing gives the numbers, the verdict is "unexplained".
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch
from torch import Tensor

from xlmr_core.checkpoint.writing import Tick, no_tick
from xlmr_core.parity.compare import FACTOR
from xlmr_core.parity.int8 import INT8, quantise
from xlmr_core.parity.variants import perturbed, threads_by_size, variant
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.served.changes import encoder_changes
from xlmr_core.served.faults import PipelineFault, encoder_fault, faults_for
from xlmr_core.served.pipeline import Input, Padding, Pipeline, Steps
from xlmr_core.served.probe import probe_pairs, probe_texts
from xlmr_core.served.verdict import MOST_TIES, Candidate, Verdict
from xlmr_core.tokenizer import SPECIALS

BATCH = 32  # texts that are taken to have run together, where nobody says which did
SEEDS = (1, 2)  # of perturbed runs
PRECISIONS = ("float32", "float16", "bfloat16")
# A fault that is judged by the noise of half precision must leave at most this share of the difference that there is
# without it: noise of that size could hide another cause.
EXPLAINS = 0.25
UNEVEN = 16.0  # how many times the median the largest error of a text may be, both in units of the text's noise
FEW_TEXTS = 8  # from which changes of the encoder are found
MOST_SECONDS = 100.0  # of that search
FEW = 16  # numbers: with fewer, a fault could fit the noise of half precision by chance
# Errors from this share of simulated int8 on are taken for int8 before pairs of faults are tried, smaller ones after.
INT8_LEAST = 0.25
FLIPPED = 0.01  # the share of the rounded numbers of a text that may lie one step away from ours


def judge(
    pipeline: Pipeline,
    inputs: Sequence[str | Input],
    values: Tensor,
    *,
    batches: Sequence[Sequence[int]] | None = None,
    budget: float = 300.0,
    tick: Tick = no_tick,
) -> Verdict:
    """Whether vectors or scores are what the checkpoint defines, and if not, which faults give them.

    Args:
        pipeline: Of the checkpoint.
        inputs: Texts, or pairs of texts.
        values: A vector for each text, (N, D), or a score, (N) or (N, labels).
        batches: Which inputs ran together, by their numbers; by default 32 at a time. It matters for faults that read
            padding only.
        budget: Seconds after which the search for pairs of faults ends. Single faults are all tried. A third of it,
            at most 100 seconds, is for changes of the encoder that no list has.
        tick: Is called with 1 for each candidate.

    Raises:
        ValueError: Sizes do not fit, or a value is NaN or infinite, of the given ones or of the checkpoint.
    """
    given = [(one,) if isinstance(one, str) else tuple(one) for one in inputs]
    values = (values[:, None] if values.dim() == 1 else values).double()
    _check(pipeline, given, values)
    order = batches or [range(start, min(start + BATCH, len(given))) for start in range(0, len(given), BATCH)]
    tokens = sum(len(pipeline.row(one, pipeline.right)) for one in given)
    with threads_by_size(pipeline.model, tokens // len(order)):
        return _Search(pipeline, given, values, [list(batch) for batch in order], tick).verdict(budget)


def _check(pipeline: Pipeline, inputs: Sequence[Input], values: Tensor) -> None:
    if not inputs:
        raise ValueError("there are no texts to judge: give at least one")
    if values.dim() != 2 or len(values) != len(inputs):
        raise ValueError(
            f"expected one vector or score for each of {len(inputs)} texts, got an array of shape {tuple(values.shape)}"
        )
    bad = (~values.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the values of text {bad[0]} (counted from 0) are not finite: {len(bad)} texts are so")
    first = pipeline.run(inputs[:1])
    if not first.isfinite().all():
        raise ValueError(
            "the checkpoint gives NaN or infinity: `xlmr inspect MODEL --values` shows whether its weights do"
        )
    width = first.shape[1]
    if values.shape[1] != width:
        raise ValueError(
            f"the checkpoint gives {width} numbers for a text, got {values.shape[1]}: "
            "is it this checkpoint, with these dimensions?"
        )


@dataclass
class _Search:
    pipeline: Pipeline
    inputs: list[Input]
    values: Tensor  # (N, D)
    batches: list[list[int]]
    tick: Tick
    allowed: dict[str, float] = field(default_factory=dict[str, float])
    noise: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # by precision: of each text, without a factor
    kept: dict[int, tuple[object, Tensor]] = field(default_factory=dict[int, tuple[object, Tensor]])

    def __post_init__(self) -> None:
        right = self.pipeline.right
        special = any(name in text for one in self.inputs for text in one for name in SPECIALS)
        self.bases = [right, replace(right, specials_in_text=not right.specials_in_text)] if special else [right]
        # Rounding is relative: a vector that was not brought to length 1 is longer, and so is its noise.
        self.scale = _length(self.values)
        errors = [self.errors(self.all(base), range(len(self.inputs))) for base in self.bases]
        self.base = min(range(len(errors)), key=lambda number: float(errors[number].square().sum()))
        self.right_errors = errors[self.base]

    def all(self, steps: Steps) -> Tensor:
        """The values of every input, (N, D)."""
        found = torch.zeros_like(self.values)
        for number, batch in enumerate(self.batches):
            found[batch] = self.of_batch(number, steps)
        return found

    def of_batch(self, number: int, steps: Steps) -> Tensor:
        """The values of one batch. What the model computed last for it is kept: many faults come after the model."""
        pipeline = self.pipeline
        rows = [pipeline.row(self.inputs[index], steps) for index in self.batches[number]]
        ids, mask = pipeline.batch(rows, steps)
        key = (rows, steps.padding, steps.weights, steps.encoder)
        if number not in self.kept or self.kept[number][0] != key:
            self.kept[number] = key, pipeline.encoded(ids, mask, steps)
        return pipeline.finished(self.kept[number][1], ids, mask, steps)

    def errors(self, found: Tensor, indices: Sequence[int], *, drop: bool = False) -> Tensor:
        """For each text the length of the difference, as a share of the length of the vectors that are judged."""
        difference = (found - self.values[list(indices)]).abs()
        if drop:  # a number that was rounded may have gone to either side
            count = int(FLIPPED * difference.shape[1])  # of each text, so that no text is left out
            difference = difference.scatter(1, difference.topk(count, dim=1).indices, 0.0)
        return torch.nan_to_num(difference.square().sum(dim=1).sqrt() / self.scale, nan=math.inf)

    def verdict(self, budget: float) -> Verdict:
        self.measure("float32")
        error = float(self.right_errors.max())
        notes = self.notes()
        if self.explained(self.right_errors) == "float32":
            return Verdict("float32", error, self.allowed, notes=notes)
        self.measure("float16")  # half precision is slow on some processors, and seldom needed
        self.measure("bfloat16")
        singles = [(fault,) for fault in faults_for(self.pipeline)]
        found = list(self.search(singles, None))
        exact = [candidate for candidate in found if candidate.precision == "float32"]
        if exact:
            return self.named(exact, notes)
        precision = self.explained(self.right_errors)
        if precision == "bfloat16" and self.int8_scheme() is not None:
            notes = (*notes, "int8 gives errors as large on these texts, too")
        if precision is not None:
            return Verdict(precision, error, self.allowed, notes=notes)
        if found:
            return self.named(found, notes)
        scheme = self.int8_scheme()
        if scheme is not None and error >= INT8_LEAST * min(self.allowed[name] for name in INT8):
            untried = "pairs of faults were not tried: the errors are those of int8"
            return Verdict(scheme, error, self.allowed, notes=(*notes, untried))
        changes = self.changed_encoder(min(MOST_SECONDS, budget / 3))
        if changes:
            return self.named(changes, notes)
        pairs = list(combinations((fault for [fault] in singles), 2))
        likely = self.nearest(singles)
        deadline = time.monotonic() + budget
        for some in ([pair for pair in pairs if likely in pair], [pair for pair in pairs if likely not in pair]):
            found = found or list(self.search(some, deadline))
        if time.monotonic() > deadline:
            notes = (*notes, f"the search for pairs of faults ended after {budget:.0f} s; a larger budget goes on")
        if found:
            return self.named(found, notes)
        return Verdict(scheme, error, self.allowed, notes=notes)

    def changed_encoder(self, seconds: float) -> list[Candidate]:
        """Changes of the encoder that no list has: found from a few texts of a batch, they give all of them."""
        limit = self.allowed["float32"]
        wrong = [number for number, batch in enumerate(self.batches) if float(self.right_errors[batch].max()) > limit]
        if self.pipeline.kind != "embedding" or seconds <= 0 or not wrong:
            return []
        steps = self.bases[self.base]
        texts = self.batches[min(wrong, key=self.cost)][:FEW_TEXTS]
        ids, mask = self.pipeline.batch([self.pipeline.row(self.inputs[index], steps) for index in texts], steps)
        faults = encoder_changes(self.pipeline, steps, ids, mask, self.values[texts], seconds, self.tick)
        names = [fault.name for fault in faults]  # the simplest first
        found = self.search([(encoder_fault(fault),) for fault in faults], None)
        exact = [candidate for candidate in found if candidate.precision == "float32"]
        return sorted(exact, key=lambda candidate: names.index(candidate.name))

    def nearest(self, singles: Sequence[tuple[PipelineFault, ...]]) -> PipelineFault | None:
        """Of the faults after the model, the one with which half of the texts come nearest: it may be one of two."""
        best, found = float(self.right_errors.median()), None
        right = self.bases[self.base]
        for [fault] in singles:
            steps = fault.made(right)
            if _model_part(steps) == _model_part(right):
                error = float(self.errors(self.all(steps), range(len(self.inputs))).median())
                if error < best:
                    best, found = error, fault
        return found

    def named(self, found: Sequence[Candidate], notes: tuple[str, ...]) -> Verdict:
        best = min(PRECISIONS.index(candidate.precision) for candidate in found)
        found = [candidate for candidate in found if candidate.precision == PRECISIONS[best]]
        first, *others = sorted(found, key=lambda candidate: candidate.error > 3 * found[0].error)
        apart = [self.told_apart(first, other) for other in others[: MOST_TIES - 1]]
        ties = [
            replace(other, told_apart_by=text, padding=padding)
            for other, (text, padding) in zip(others, apart, strict=False)
        ]
        candidates = (first, *ties, *others[MOST_TIES - 1 :])
        return Verdict(None, float(self.right_errors.max()), self.allowed, candidates, notes)

    def explained(self, errors: Tensor) -> str | None:
        """The precision whose noise is as large as these errors, the most exact first."""
        for precision, allowed in self.allowed.items():
            if precision in PRECISIONS and float(errors.max()) <= allowed and self.is_noise(errors, precision):
                return precision
        return None

    def is_noise(self, errors: Tensor, precision: str) -> bool:
        """Whether errors lie on the texts as the noise of a half precision does.

        It is everywhere: where half of the texts are right to float32, the others are not wrong by it. And it is even:
        where a few texts have many times the error of the others, in units of their noise, something else is there.
        """
        if precision == "float32":
            return True
        rounds = self.noise[precision] > 0  # a text whose numbers are exact there says nothing
        shares = errors[rounds] / self.noise[precision][rounds]
        even = not len(shares) or float(shares.max()) <= UNEVEN * float(shares.median())
        return even and float(errors.median()) > self.allowed["float32"]

    def search(self, sets: Sequence[tuple[PipelineFault, ...]], deadline: float | None) -> Iterator[Candidate]:
        """The sets of faults that give the numbers, those first that share what the model computes."""
        numbers = sorted(range(len(self.batches)), key=self.cost)
        made = [(faults, self.made(faults)) for faults in sets]
        tried = [(faults, steps) for faults, steps in made if steps is not None]
        for faults, steps in sorted(tried, key=lambda one: str(_model_part(one[1]))):
            if deadline is not None and time.monotonic() > deadline:
                return
            self.tick(1)
            try:
                candidate = self.candidate(faults, steps, numbers)
            except (ValueError, IndexError):  # the model has no such part; an id outside the table
                continue
            if candidate is not None:
                yield candidate

    def cost(self, number: int) -> int:
        """The tokens of a batch, padding included. Most faults change small batches, too, and are rejected there."""
        batch = self.batches[number]
        length = max(len(self.pipeline.row(self.inputs[index], self.pipeline.right)) for index in batch)
        return length * len(batch)

    def made(self, faults: Sequence[PipelineFault]) -> Steps | None:
        """The steps with these faults; None where one undoes the other."""
        base = self.bases[self.base]
        steps = base
        for fault in faults:
            steps = fault.made(steps)
        apart = [fault.made(base) for fault in faults]
        return None if len(faults) > 1 and (steps in apart or steps == base) else steps

    def candidate(self, faults: tuple[PipelineFault, ...], steps: Steps, numbers: Sequence[int]) -> Candidate | None:
        for base in self.bases:  # special tokens in a text: as text, or as tokens
            tried = replace(steps, specials_in_text=base.specials_in_text)
            errors = torch.zeros(len(self.inputs), dtype=torch.float64)
            for number in numbers:
                batch = self.batches[number]
                errors[batch] = self.errors(self.of_batch(number, tried), batch, drop=tried.rounding is not None)
                if float(errors[batch].max()) > max(self.allowed.values()):
                    break
            else:
                precision = self.explained(errors)
                if precision == "float32" or (precision is not None and self.is_better(errors, faults)):
                    return Candidate(faults, float(errors.max()), precision, tried.specials_in_text)
        return None

    def is_better(self, errors: Tensor, faults: tuple[PipelineFault, ...]) -> bool:
        """Whether these errors are far smaller than without the faults, and of two faults, than with either of them."""
        fewer = [self.right_errors]
        if len(faults) > 1:
            right = self.bases[self.base]
            fewer += [self.errors(self.all(fault.made(right)), range(len(self.inputs))) for fault in faults]
        least = min(float(one.norm()) for one in fewer)
        return self.values.numel() >= FEW and float(errors.norm()) <= EXPLAINS * least

    # ---- rounding ----------------------------------------------------------------------------------------------------

    def measure(self, precision: str) -> None:
        """How far rounding takes the right pipeline on these texts, in a precision."""
        truth = self.all(self.pipeline.right)
        dtype = getattr(torch, precision)
        model = variant(self.pipeline.model, dtype, "eager", "cpu")
        runs = [self.rounded(model, dtype)]
        for seed in SEEDS if precision == "float32" else SEEDS[:1]:
            with perturbed(model, seed=seed):
                runs.append(self.rounded(model, dtype))
        noise = torch.stack([self.distances(run, truth) for run in runs]).amax(dim=0)
        if noise.isfinite().all():  # float16 may overflow
            self.noise[precision] = noise
            self.allowed[precision] = FACTOR * float(noise.max())

    def int8_scheme(self) -> str | None:
        """The most exact scheme of int8 that is as far from the right numbers as these are, at every text.

        The allowance is what the simulation gives, without a factor.
        """
        truth = self.all(self.pipeline.right)
        for scheme in INT8:
            model = variant(self.pipeline.model, torch.float32, "eager", "cpu")
            quantise(model, scheme)
            self.allowed[scheme] = float(self.distances(self.rounded(model, torch.float32), truth).max())
        if float(self.right_errors.median()) <= self.allowed["float32"]:  # rounding is everywhere
            return None
        error = float(self.right_errors.max())
        return next((name for name in sorted(INT8, key=self.allowed.__getitem__) if error <= self.allowed[name]), None)

    def rounded(self, model: PretrainedModel, dtype: torch.dtype) -> Tensor:
        """The values of a copy in another precision, which pools and normalises in that precision, too."""
        found = torch.zeros_like(self.values)
        for batch in self.batches:
            inputs = [self.inputs[index] for index in batch]
            found[batch] = self.pipeline.run(inputs, self.pipeline.right, model).to(dtype).double()
        return found

    def distances(self, found: Tensor, truth: Tensor) -> Tensor:
        """For each text the length of the difference of two right runs, as a share of the length of the vectors."""
        return (found - truth).square().sum(dim=1).sqrt() / _length(truth)

    # ---- what else there is to say -----------------------------------------------------------------------------------

    def notes(self) -> tuple[str, ...]:
        found: list[str] = []
        if self.base:
            read = "tokens" if self.bases[self.base].specials_in_text else "plain text"
            found.append(f"special tokens in a text (<mask>, </s>) are read as {read}")
        first: dict[Input, int] = {}
        for index, one in enumerate(self.inputs):
            other = first.setdefault(one, index)
            difference = float((self.values[index] - self.values[other]).norm()) / self.scale
            if difference > self.allowed["float32"]:
                found.append(
                    f"texts {other} and {index} are the same, and their values differ by {difference:.1e}: the result "
                    "depends on the batch, or on chance"
                )
        return tuple(found)

    def told_apart(self, first: Candidate, other: Candidate) -> tuple[str | None, Padding]:
        """The text of the probe at which the two differ most, and how its batch is padded.

        Rows that are padded on the left are tried where no text tells them apart otherwise. None where they differ
        nowhere beyond rounding.
        """
        pipeline = self.pipeline
        made = [self.made(candidate.faults) for candidate in (first, other)]
        steps = [one for one in made if one is not None]
        if pipeline.kind == "embedding":
            groups = [[(text,) for text in batch] for batch in probe_texts()]
        else:
            groups = [[(query, passage) for passage in passages] for query, passages in probe_pairs()]
        text = self.differing(groups, steps)
        if text is not None:
            return text, "right"
        # A few short texts of several lengths are enough: what padding on the left shows, it shows in all of them.
        return self.differing(groups[:2], [replace(one, padding="left") for one in steps]), "left"

    def differing(self, groups: Sequence[Sequence[Input]], steps: Sequence[Steps]) -> str | None:
        """The text at which two pipelines differ most, None where they do not."""
        best, found = self.allowed["float32"], None
        for group in groups:
            one, other = (self.pipeline.run(group, its) for its in steps)
            apart = (one - other).norm(dim=1) / _length(one)
            if float(apart.max()) > best:
                best, found = float(apart.max()), " | ".join(group[int(apart.argmax())])
        return found


def _model_part(steps: Steps) -> Steps:
    """The steps without those that come after the model."""
    return replace(
        steps,
        tokens="real",
        normalize_tokens=False,
        pooling=(),
        dimensions=None,
        cut_after_normalize=False,
        normalize=False,
        activations=(),
        rounding=None,
    )


def _length(vectors: Tensor) -> float:
    """The root mean square of the lengths of vectors, (N, D); 1 if all are 0."""
    return float(vectors.square().sum(dim=1).mean().sqrt()) or 1.0
