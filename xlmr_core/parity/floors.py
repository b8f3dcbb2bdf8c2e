"""Noise floors: the rounding error of a right implementation at each tap, measured.

The error is the distance from our own model in float64. The same model runs in lower precision in every run
configuration that works here: eager and fused attention, padded and packed, compiled, on the CPU and on a GPU, and with
every feature in reverse order, which sums the same numbers in another order, as another implementation does. The
largest error at a tap is its noise floor.

Where a model amplifies rounding, the error of one run is a single draw, and another processor may draw a much larger
one. So the model also runs several times with values moved at random by as much as one rounding (`perturbed`): each run
is another draw. `diagnose` measures the models with faults in the same run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import FailFast, Field, TypeAdapter, with_config
from torch import Tensor

from xlmr_core.atomic import written_as
from xlmr_core.formatting import aligned, dtype_name
from xlmr_core.parity.adapters import Batch, dump_of
from xlmr_core.parity.compare import FACTOR, Floors
from xlmr_core.parity.formats import (
    MOST_NAMES,
    STRICT,
    Error,
    Factor,
    Name,
    parsed,
    read_limited,
)
from xlmr_core.parity.int8 import INT8, quantise
from xlmr_core.parity.tap_values import TOP_IDS, Dump, elements, with_reduced_logits
from xlmr_core.parity.variants import (
    compiled_taps,
    packed_taps,
    perturbed,
    run_taps,
    threads_by_size,
    unreversed,
    variant,
    with_features_reversed,
)
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick

FORMAT, VERSION = "xlmr-core floors", 2
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Perturbed runs. With seven beside the plain one, an error that hangs on one direction of the weights lies above three
# times the largest in one case of a thousand; with the plain run only, in one of five.
REPEATS = 7
SAME = 1e-6  # relative: far above what rounding does in float64, far below any other order of labels
FLOAT64_RATIO = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps  # rounding errors scale with eps


@with_config(STRICT)
@dataclass(frozen=True)
class RunConfiguration:
    """How the model is run once."""

    dtype: Name  # "float32", ... or a kind of int8 (int8.py)
    attention: Name  # "eager" or "sdpa"
    device: Name
    layout: Name  # "padded" or "packed"
    order: Name  # of the features: "given" or "reversed"; "perturbed 1" and so on: given, with values moved at random
    compiled: bool

    @property
    def seed(self) -> int:
        """Of the perturbation; 0 where there is none."""
        return int(self.order.removeprefix("perturbed ")) if self.order.startswith("perturbed ") else 0

    @property
    def name(self) -> str:
        """It in words, without the dtype and without what is usual."""
        unusual = ("packed" * (self.layout == "packed"), self.order * (self.order != "given"))
        return " ".join(filter(None, (self.attention, self.device, *unusual, "compiled" * self.compiled)))


@with_config(STRICT)
@dataclass(frozen=True)
class Measurement(RunConfiguration):
    """A run configuration, and its largest error at each tap over real tokens."""

    errors: Annotated[Mapping[str, Error], Field(max_length=MOST_NAMES)]


@with_config(STRICT)
@dataclass(frozen=True)
class _File:
    """The JSON of a table."""

    format: Literal["xlmr-core floors"]
    version: Literal[2]
    factor: Factor
    about: Mapping[str, str]
    measurements: Annotated[tuple[Measurement, ...], Field(max_length=MOST_NAMES), FailFast()]


FILE = TypeAdapter(_File)


@dataclass(frozen=True)
class FloorTable:
    """All measurements of one model on one input. Prints as a table; `floors` is what `compare` judges by."""

    measurements: tuple[Measurement, ...]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])  # which weights, which input, which versions
    factor: float = FACTOR

    @property
    def floors(self) -> Floors:
        """The largest error of each dtype at each tap. That of float64 is float32's, scaled by their eps."""
        errors: dict[str, dict[str, float]] = {}
        for measurement in self.measurements:
            worst = errors.setdefault(measurement.dtype, {})
            for tap, error in measurement.errors.items():
                worst[tap] = max(error, worst.get(tap, 0.0))
        errors["float64"] = {tap: error * FLOAT64_RATIO for tap, error in errors.get("float32", {}).items()}
        return Floors(errors, self.factor)

    def __str__(self) -> str:
        dtypes = list(dict.fromkeys(measurement.dtype for measurement in self.measurements))
        names = list(dict.fromkeys(measurement.name for measurement in self.measurements))
        taps = list(dict.fromkeys(tap for measurement in self.measurements for tap in measurement.errors))
        rows = [("tap", *dtypes), *((tap, *(self._range(tap, dtype) for dtype in dtypes)) for tap in taps)]
        about = f"smallest and largest error in {len(names)} run configurations: {', '.join(names)}"
        return "\n".join([about, *aligned(rows)])

    def _range(self, tap: str, dtype: str) -> str:
        errors = [m.errors[tap] for m in self.measurements if m.dtype == dtype and tap in m.errors]
        return f"{min(errors):.2e} {max(errors):.2e}" if errors else "-"

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        measurements = [vars(measurement) for measurement in self.measurements]
        content = {"format": FORMAT, "version": VERSION, "factor": self.factor, "about": dict(self.about)}
        text = json.dumps(content | {"measurements": measurements}, indent=1, sort_keys=True)
        with written_as(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "FloorTable":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Returns:
            The table. Every error in it is finite and not negative, and the factor is between 1 and MOST_FACTOR.

        Raises:
            TraceError: The file is anything else. The message names the file and the field.
        """
        file = parsed(path, f"a table of floors, version {VERSION}", FILE, read_limited(path))
        return cls(file.measurements, file.about, file.factor)


def measure_floors(model: PretrainedModel, batch: Batch, **options: Any) -> Floors:
    """The floors alone, for a batch as a tokenizer returns it or a mapping; options as for `measure`."""
    return measure(model, batch, **options).floors


def measure(
    model: PretrainedModel,
    batch: Batch,
    *,
    taps: Sequence[str] = ("**",),
    top_ids: Tensor | None = None,
    grad: bool = False,
    steps: int = 0,
    dtypes: Sequence[torch.dtype | str] = DTYPES,
    devices: Sequence[str] | None = None,
    compiled: bool = False,
    tick: Tick = no_tick,
) -> FloorTable:
    """Runs `model` in float64, and in every run configuration that works here, and notes the errors.

    Gradients are measured on padded batches only, and so is everything where padding is attended to.

    Args:
        model: In any dtype. Copies of it are run.
        batch: input_ids and attention_mask, both (B, S): a mapping, or what a tokenizer returns.
        taps: Patterns of the taps to measure.
        top_ids: (B, S, K). The logits are measured there, as a trace has them, and not all.
        grad: Also the gradients; not in int8.
        steps: Also the losses of that many steps of training; not in int8.
        dtypes: Or their names. Those of int8 are simulated in float32 (see int8.py).
        devices: By default the CPU, and a GPU if there is one.
        compiled: Also what torch.compile makes of it, which takes a C++ compiler and some 10 seconds a dtype and more.
        tick: Is called with 1 after each run.

    Returns:
        The largest error of each run at each tap.

    Raises:
        ValueError: A pattern matches nothing, the model cannot be compiled here, or its spec is wrong.
    """
    batch = {name: tensor.cpu() for name, tensor in dict(batch).items()}
    real = batch["attention_mask"].bool()
    devices = devices_here() if devices is None else devices
    attended = batch["input_ids"][real]
    exact = variant(model, torch.float64, "eager", "cpu")
    measurements: list[Measurement] = []
    with threads_by_size(model, batch["input_ids"].numel()):
        names = list(dump_of(exact, batch, taps=taps)) if taps else []
        can_pack = bool(names) and not (attended == model.config.pad_token_id).any()
        truth = run_taps(exact, batch, names, grad=grad, steps=steps)
        _check_spec(model, batch, truth)
        truth = with_reduced_logits(truth, top_ids)
        for run in run_configurations(dtypes, devices, packed=can_pack, compiled=compiled and bool(names)):
            is_int8 = run.dtype in INT8
            dtype = torch.float32 if is_int8 else getattr(torch, run.dtype)
            copied = variant(model, dtype, run.attention, run.device)
            if run.order == "reversed":
                copied = with_features_reversed(copied)
            if is_int8:
                quantise(copied, run.dtype)
            if run.compiled:
                found = compiled_taps(copied, batch, names)
            elif run.layout == "packed":
                found = packed_taps(copied, batch, names)
            else:
                with perturbed(copied, seed=run.seed) if run.seed else nullcontext():
                    found = run_taps(copied, batch, names, grad=grad and not is_int8, steps=0 if is_int8 else steps)
            found = with_reduced_logits(unreversed(found, model.spec) if run.order == "reversed" else found, top_ids)
            measurements.append(Measurement(**vars(run), errors=_errors(truth, found, real)))
            tick(1)
    return FloorTable(tuple(measurements))


def run_configurations(
    dtypes: Sequence[torch.dtype | str], devices: Sequence[str], *, packed: bool, compiled: bool
) -> list[RunConfiguration]:
    """The configurations in which `measure` runs a model."""
    found: list[RunConfiguration] = []
    for dtype, device, attention in product(map(dtype_name, dtypes), devices, ("eager", "sdpa")):
        for layout in ("padded", "packed") if packed else ("padded",):
            found += [
                RunConfiguration(dtype, attention, device, layout, order, False) for order in ("given", "reversed")
            ]
        if attention == "eager" and dtype not in INT8:  # the errors of int8 are far larger
            orders = [f"perturbed {number}" for number in range(1, REPEATS + 1)]
            found += [RunConfiguration(dtype, attention, device, "padded", order, False) for order in orders]
        if compiled:
            found.append(RunConfiguration(dtype, attention, device, "padded", "given", True))
    return found


def devices_here() -> tuple[str, ...]:
    """The CPU, and a GPU if there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _errors(truth: Dump, found: Dump, real: Tensor) -> dict[str, float]:
    errors: dict[str, float] = {}
    for tap, tensor in found.items():
        if tap != TOP_IDS:
            difference = elements(tap, tensor, real) - elements(tap, truth[tap], real)
            error = float(difference.abs().max())
            if math.isfinite(error):  # float16 may overflow, and infinity is no floor
                errors[tap] = error
    return errors


def _check_spec(model: PretrainedModel, batch: Batch, truth: Dump) -> None:
    """Raises ValueError if reversing the features changes what the head computes: its floor would be of that size."""
    names = [tap.name for tap in model.spec.taps if tap.name in truth]
    if not names:
        return
    found = unreversed(
        run_taps(with_features_reversed(variant(model, torch.float64, "eager", "cpu")), batch, names), model.spec
    )
    for tap, tensor in found.items():
        if not torch.allclose(tensor, truth[tap], rtol=SAME, atol=SAME * float(truth[tap].abs().max())):
            raise ValueError(
                f"{tap} changes when the order of the features does. Rows that belong to labels or tokens must be "
                f"named in row_parameters of the spec of {type(model).__name__}"
            )
