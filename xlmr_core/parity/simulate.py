"""Our model with faults in it, computed part by part, and only as far as somebody looks.

The parts are the embeddings, each layer, and all that is above the layers. A fault changes nothing below the part of
its tap, so a run with a fault begins there, with what the run without it has below. Most candidates of a search are
wrong after one part, and no other part of them is computed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_core.formatting import dtype_name
from xlmr_core.kernels import batch_of
from xlmr_core.model import XLMRobertaModel, position_ids_from
from xlmr_core.parity.compare import Comparison, Floors, Row, compare
from xlmr_core.parity.faults import Fault, Pool, PoolingFault, mean_pooled
from xlmr_core.parity.faults.patching import SURROUNDINGS, Surroundings
from xlmr_core.parity.floors import REPEATS
from xlmr_core.parity.tap_values import (
    LOGITS,
    LOGSUMEXP,
    TOP,
    Dump,
    elements,
    in_reading_order,
    one_mask,
    with_reduced_logits,
)
from xlmr_core.parity.variants import perturbed, variant
from xlmr_core.parts import encoder_of, run_on_texts
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick

SENTENCE = "sentence.mean"
# Perturbed runs go through the model as more rows of the batch. Many tokens have many errors at each tap, of which the
# largest is steady: there the number of rows is kept down.
MOST_TOKENS = 512
FLOAT32_EPS = torch.finfo(torch.float32).eps
SimulatedFault = Fault | PoolingFault


@dataclass(frozen=True)
class Part:
    """The embeddings, one layer, or all that is above the layers, of one run."""

    expected: Dump  # in float64
    noise: dict[str, float]  # tap -> the largest error of the runs in the precision of the dump
    exact: Tensor  # (B, S, H): what the next part reads, in float64
    rounded: Tensor  # (R * B, S, H): the same in the precision of the dump, of each of R runs


class Run:
    """The model with some faults in it: the truth in float64, and how far rounding takes the same model from it."""

    def __init__(
        self, simulator: Simulator, faults: tuple[SimulatedFault, ...], below: Run | None, taps: frozenset[str]
    ) -> None:
        self._simulator, self._faults, self._taps = simulator, faults, taps
        self.start = simulator.part_of(faults[-1].tap) if below else 0
        self._parts = below.parts(self.start) if below else []

    def parts(self, count: int) -> list[Part]:
        """The first `count` parts. Raises ValueError if the model has no such part to make a fault in."""
        if count > len(self._parts):
            with self._simulator.made(self._faults):
                while len(self._parts) < count:
                    self._parts.append(self._simulator.computed(self._faults, self._parts, self._taps))
        return self._parts[:count]

    @property
    def expected(self) -> dict[str, Tensor]:
        """Every tap in float64."""
        return {tap: tensor for part in self.parts(self._simulator.count) for tap, tensor in part.expected.items()}

    @property
    def rounded(self) -> dict[str, Tensor]:
        """The same as a dump."""
        return {tap: tensor.to(self._simulator.dtype) for tap, tensor in self.expected.items()}

    @property
    def real(self) -> Tensor:
        """(B, S): True for real tokens."""
        return self._simulator.real

    def compared(self, dump: Dump) -> Comparison:
        """With the dump, at its taps: judged by what rounding alone does to this run."""
        self.parts(self._simulator.count)  # all at once: faults are made and lifted once
        return Comparison(tuple(row for i in range(self._simulator.count) for row in self.rows(dump, i)))

    def rows(self, dump: Dump, index: int) -> tuple[Row, ...]:
        """The comparison of one part."""
        dump = {tap: tensor for tap, tensor in dump.items() if self._simulator.part_of(tap) == index}
        part = self.parts(index + 1)[index]
        expected = {tap: tensor for tap, tensor in part.expected.items() if tap in dump}
        if not expected:  # a layer that this run lacks
            return tuple(Row(tap, "extra", tuple(dump[tap].shape)) for tap in in_reading_order(dump))
        return compare(expected, dump, real=self.real, floors=self._simulator.floors(part.noise)).rows


class Simulator:
    """Our model on one batch, with any faults made in it."""

    def __init__(
        self,
        model: PretrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        taps: Iterable[str],
        dtype: torch.dtype,
        top_ids: Tensor | None = None,
        tick: Tick = no_tick,
        pool: Pool = mean_pooled,
    ) -> None:
        """Copies the model to float64 and to `dtype`.

        Args:
            model: Is left as it is.
            input_ids: (B, S).
            attention_mask: (B, S).
            taps: What to keep of a run.
            dtype: Of the dump, whose rounding is measured.
            top_ids: (B, S, K), where logits are known by their top k only.
            tick: Is called with 1 for each run.
            pool: From the last hidden states and the mask to the sentence vectors, the tap "sentence.mean".
        """
        self.tick, self.pool = tick, pool
        self.input_ids, self.attention_mask, self.dtype = input_ids.cpu(), attention_mask.cpu(), dtype
        self.real = self.attention_mask.bool()
        self.taps, self.top_ids = frozenset(taps), top_ids
        self.dropout = model.config.hidden_dropout_prob
        self.layers = model.config.num_hidden_layers
        self.count = self.layers + 2  # parts
        self.repeats = min(1 + REPEATS, max(2, MOST_TOKENS // self.real.numel()))
        self._exact, self._rounded = (variant(model, kind, "eager", "cpu") for kind in (torch.float64, dtype))

    def run(
        self, faults: tuple[SimulatedFault, ...], below: Run | None = None, taps: frozenset[str] | None = None
    ) -> Run | None:
        """The model with `faults` in it, as far as the first part that the last of them changes.

        Args:
            faults: In the order in which they are made.
            below: The run without the last fault, of the same taps; by default, all is computed.
            taps: What to keep; by default the taps of the dump.

        Returns:
            None where the model has no such part to make a fault in.
        """
        self.tick(1)
        try:
            run = Run(self, faults, below, self.taps if taps is None else taps)
            run.parts(run.start + 1)
        except ValueError:
            return None
        return run

    @property
    def exact(self) -> PretrainedModel:
        """The copy in float64."""
        return self._exact

    @torch.no_grad()
    def exact_taps(self, faults: tuple[SimulatedFault, ...]) -> dict[str, Tensor]:
        """Every tap of the model with these faults, in float64; also the sentence vector and the reduced logits."""
        pool = self._pool(faults)
        with self.made(faults), self._exact.capture("**") as seen:
            _, hidden = run_on_texts(self._exact, self.input_ids, self.attention_mask)
        found = {tap: one_mask(tap, tensor) for tap, tensor in seen.items()}
        if self.top_ids is not None:
            found |= {tap: t for tap, t in with_reduced_logits(found, self.top_ids).items() if tap in (TOP, LOGSUMEXP)}
        if SENTENCE in self.taps:
            found[SENTENCE] = pool(hidden, self.attention_mask)
        return found

    @torch.no_grad()
    def exact_at(self, tap: str, faults: tuple[SimulatedFault, ...], below: Run) -> Tensor | None:
        """One tap of the model with these faults, in float64, without the rounding errors that a run has.

        Args:
            tap: Its name.
            faults: In the order in which they are made.
            below: The run without the last of them.

        Returns:
            None where the model has no such part to make a fault in.
        """
        self.tick(1)
        start = self.part_of(faults[-1].tap)
        exact = [part.exact for part in below.parts(start)]
        found: dict[str, Tensor] = {}
        try:
            with self.made(faults):
                for index in range(start, self.part_of(tap) + 1):
                    found, hidden = self._exact_part(index, tuple(exact), frozenset({tap}), self._pool(faults))
                    exact.append(hidden)
        except ValueError:
            return None
        return found.get(tap)

    @torch.no_grad()
    def through_layer(self, hidden: Tensor, layer: int) -> Tensor:
        """What a layer with the faults that are made now makes of hidden states (B, S, H), in float64."""
        return _through_layer(self._exact, frozenset(), layer, hidden, self.attention_mask)[1]

    def part_of(self, tap: str) -> int:
        """The number of the part that a tap lies in."""
        if tap.startswith("embeddings."):
            return 0
        if tap.startswith("layers."):
            return int(tap.split(".")[1]) % self.layers + 1  # layer -1 is the last
        return self.layers + 1

    def floors(self, noise: dict[str, float]) -> Floors:
        """What `check` allows between a trace in float32 and a dump: here, too, each of the two errs on its own.

        float64 stands in for the trace, with the floor that float32 has: rounding errors scale with eps.
        """
        ratio = FLOAT32_EPS / torch.finfo(self.dtype).eps
        of_trace = {tap: error * ratio for tap, error in noise.items()}
        return Floors({"float64": of_trace, dtype_name(self.dtype): noise})

    @contextmanager
    def made(self, faults: tuple[SimulatedFault, ...]) -> Generator[None, None, None]:
        """Both copies have these faults in them while the context is open. Raises ValueError where they cannot."""
        with ExitStack() as stack:
            for fault in faults:
                for model in (self._exact, self._rounded):
                    if isinstance(fault, Fault):
                        stack.enter_context(fault.applied(model))
            yield

    @torch.no_grad()
    def computed(self, faults: tuple[SimulatedFault, ...], below: list[Part], taps: frozenset[str]) -> Part:
        """The part above those, while these faults are made."""
        pool = self._pool(faults)
        index, repeats, rows = len(below), self.repeats, len(self.real)
        ids, mask, top_ids = self.input_ids, self.attention_mask, self.top_ids
        SURROUNDINGS[self._rounded] = Surroundings(ids, mask, tuple(part.rounded for part in below))
        expected, exact = self._exact_part(index, tuple(part.exact for part in below), taps, pool)
        if index == 0:
            runs: list[tuple[dict[str, Tensor], Tensor]] = []
            for seed in range(repeats):  # one by one: positions may be counted through the batch
                with perturbed(self._rounded, seed=seed, kept=0 if seed else rows):
                    runs.append(_embedded(self._rounded, taps, ids))
            found = {tap: torch.cat([seen[tap] for seen, _ in runs]) for tap in expected}
            rounded = torch.cat([hidden for _, hidden in runs])
        elif index <= self.layers:
            with perturbed(self._rounded, seed=index, kept=rows):
                found, rounded = _through_layer(
                    self._rounded, taps, index - 1, below[-1].rounded, mask.repeat(repeats, 1)
                )
        else:
            rounded = below[-1].rounded
            with perturbed(self._rounded, seed=index, kept=rows):
                many = None if top_ids is None else top_ids.repeat(repeats, 1, 1)
                found = _above(
                    self._rounded, taps, rounded, ids.repeat(repeats, 1), mask.repeat(repeats, 1), many, pool
                )
        noise = {tap: self._noise(tap, found[tap], tensor) for tap, tensor in expected.items()}
        return Part(expected, noise, exact, rounded)

    def _pool(self, faults: tuple[SimulatedFault, ...]) -> Pool:
        return next((fault.pool for fault in faults if isinstance(fault, PoolingFault)), self.pool)

    def _exact_part(
        self, index: int, below: tuple[Tensor, ...], taps: frozenset[str], pool: Pool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The taps of a part in float64, and what the next part reads.

        Args:
            index: The number of the part.
            below: What each part before it gave.
            taps: What to keep.
            pool: Of the sentence vectors.
        """
        ids, mask = self.input_ids, self.attention_mask
        SURROUNDINGS[self._exact] = Surroundings(ids, mask, below)
        if index == 0:
            return _embedded(self._exact, taps, ids)
        if index <= self.layers:
            return _through_layer(self._exact, taps, index - 1, below[-1], mask)
        return _above(self._exact, taps, below[-1], ids, mask, self.top_ids, pool), below[-1]

    def _noise(self, tap: str, rounded: Tensor, expected: Tensor) -> float:
        """The largest error of all runs; 0 where there is an overflow, which has no error to measure."""
        runs = elements(tap, rounded, self.real.repeat(self.repeats, 1)).unflatten(0, (self.repeats, -1))
        truth = elements(tap, expected, self.real)
        error = float((runs - truth).masked_fill(runs == truth, 0).abs().max())
        return error if math.isfinite(error) else 0.0


# ---- the parts -------------------------------------------------------------------------------------------------------


def _embedded(model: PretrainedModel, taps: frozenset[str], ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    positions = position_ids_from(ids, model.config.pad_token_id)
    with model.capture("embeddings.**") as seen:
        hidden = encoder_of(model).embeddings(ids, torch.zeros_like(ids), positions)
    return {tap: tensor for tap, tensor in seen.items() if tap in taps}, hidden


def _through_layer(
    model: PretrainedModel, taps: frozenset[str], layer: int, hidden: Tensor, mask: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    with model.capture(f"layers.{layer}.**") as seen:
        hidden = encoder_of(model).layers[layer](hidden, batch_of(mask, None))
    return {tap: one_mask(tap, tensor) for tap, tensor in seen.items() if tap in taps}, hidden


def _above(
    model: PretrainedModel,
    taps: frozenset[str],
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    top_ids: Tensor | None,
    pool: Any,
) -> dict[str, Tensor]:
    wanted = taps | {LOGITS} if taps & {TOP, LOGSUMEXP} else taps
    names = [tap.name for tap in model.taps() if tap.name in wanted]
    names = [name for name in names if not name.startswith(("embeddings.", "layers."))]
    with _given(encoder_of(model), hidden), model.capture(*names) as seen:
        _, last = run_on_texts(model, ids, mask)
    found = {tap: tensor for tap, tensor in with_reduced_logits(seen, top_ids).items() if tap in taps}
    if SENTENCE in taps:
        found[SENTENCE] = pool(last, mask)
    return found


class _Given(nn.Module):
    """Stands in for the embeddings and gives what the last layer gave."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_ids: Tensor) -> Tensor:
        return self.hidden


@contextmanager
def _given(encoder: XLMRobertaModel, hidden: Tensor) -> Generator[None, None, None]:
    """The encoder takes `hidden` for the output of its last layer while the context is open."""
    embeddings, layers = encoder.embeddings, encoder.layers
    encoder.embeddings, encoder.layers = _Given(hidden), nn.ModuleList()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        encoder.embeddings, encoder.layers = embeddings, layers
