"""How far rounding alone takes a right implementation from the truth, measured site by site.

The truth is our own model in float64. Beside it runs the same model in lower precision, in every way it can run here:
eager and fused attention, on the CPU and on a GPU, and with every feature in reverse order, which is the same
mathematics summed in another order, as a foreign port would. The largest error at a site is its floor.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core.checkpoint.files import written_as
from xlmr_core.model import PretrainedModel, SelfAttention
from xlmr_core.parity.adapters import NEEDS_EAGER, Batch, dump_of, is_fused
from xlmr_core.parity.compare import (
    FACTOR,
    TOP_IDS,
    Dump,
    Floors,
    elements,
    name_of,
    shape_of,
    with_reduced_logits,
)
from xlmr_core.parity.gradients import COLUMN_SUMS, GRADIENT, LOSSES, gradients, training_losses

FORMAT, VERSION = "xlmr-core floors", 1
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT64_RATIO = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps  # rounding errors scale with eps


@dataclass(frozen=True)
class Measurement:
    """One way to run the model, and its largest error at each site over real tokens."""

    dtype: str
    attention: str
    device: str
    order: str  # "given" or "reversed": of the features
    errors: Mapping[str, float]


@dataclass(frozen=True)
class FloorTable:
    """All measurements of one model on one input. Prints as a table; `floors` is what `compare` judges by."""

    measurements: tuple[Measurement, ...]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])  # which weights, which input, which versions
    factor: float = FACTOR

    @property
    def floors(self) -> Floors:
        """The largest error of each dtype at each site. That of float64 is float32's, scaled by their eps."""
        errors: dict[str, dict[str, float]] = {}
        for measurement in self.measurements:
            worst = errors.setdefault(measurement.dtype, {})
            for site, error in measurement.errors.items():
                worst[site] = max(error, worst.get(site, 0.0))
        errors["float64"] = {site: error * FLOAT64_RATIO for site, error in errors.get("float32", {}).items()}
        return Floors(errors, self.factor)

    @property
    def spread(self) -> float:
        """How many times the smallest error of a dtype at a site its largest is: the most over all sites."""
        ratios = [1.0]
        for dtype in {measurement.dtype for measurement in self.measurements}:
            runs = [measurement.errors for measurement in self.measurements if measurement.dtype == dtype]
            for site in runs[0]:
                found = [run[site] for run in runs if run.get(site)]
                ratios += [max(found) / min(found)] if found else []
        return max(ratios)

    def __str__(self) -> str:
        names = [
            f"{m.dtype} {m.attention} {m.device}{' reversed' * (m.order == 'reversed')}" for m in self.measurements
        ]
        sites = list(dict.fromkeys(site for m in self.measurements for site in m.errors))
        width = max(map(len, ("site", *sites)))
        lines = ["  ".join([f"{'site':{width}}", *names])]
        for site in sites:
            cells = [f"{m.errors[site]:.2e}" if site in m.errors else "-" for m in self.measurements]
            padded = [cell.ljust(len(name)) for cell, name in zip(cells, names, strict=True)]
            lines.append("  ".join([f"{site:{width}}", *padded]).rstrip())
        return "\n".join([*lines, f"at one site, the largest error is at most {self.spread:.1f} times the smallest"])

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        measurements = [vars(measurement) for measurement in self.measurements]
        content = {"format": FORMAT, "version": VERSION, "factor": self.factor, "about": dict(self.about)}
        text = json.dumps(content | {"measurements": measurements}, indent=1, sort_keys=True)
        with written_as(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "FloorTable":
        """Reads what `save` wrote. Raises ValueError, naming the file, for anything else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {content['format']!r}, version {content['version']}")
            measurements = tuple(Measurement(**row) for row in content["measurements"])
            return cls(measurements, content["about"], content["factor"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a table of floors, version {VERSION} ({error})") from error


def measure_floors(model: PretrainedModel, batch: Batch, **options: Any) -> Floors:
    """The floors alone; options as for `measure`."""
    return measure(model, batch, **options).floors


def measure(
    model: PretrainedModel,
    batch: Batch,
    *,
    taps: Sequence[str] = ("**",),
    top_ids: Tensor | None = None,
    grad: bool = False,
    steps: int = 0,
    dtypes: Sequence[torch.dtype] = DTYPES,
    devices: Sequence[str] | None = None,
) -> FloorTable:
    """Runs `model` in float64, and in every way that it can run here, and notes the errors.

    taps: patterns of the sites to measure. top_ids: measures the logits there, as a trace has them, and not all.
    grad, steps: also gradients, and the losses of some steps of training. devices: by default the CPU, and a GPU if
    there is one. Works on copies: `model`, in whatever dtype, is not touched.
    """
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    real = batch["attention_mask"].bool()
    names = list(dump_of(_variant(model, torch.float64, "eager", "cpu"), batch, taps=taps)) if taps else []
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def run(variant: PretrainedModel) -> Dump:
        return run_sites(variant, batch, names, grad=grad, steps=steps)

    truth = with_reduced_logits(run(_variant(model, torch.float64, "eager", "cpu")), top_ids)
    measurements: list[Measurement] = []
    for dtype, attention, device in _ways(dtypes, devices):
        variant = _variant(model, dtype, attention, device)
        found = with_reduced_logits(run(variant), top_ids)
        measurements.append(Measurement(name_of(dtype), attention, device, "given", _errors(truth, found, real)))
        found = with_reduced_logits(_unreversed(run(_reversed(variant))), top_ids)
        measurements.append(Measurement(name_of(dtype), attention, device, "reversed", _errors(truth, found, real)))
    return FloorTable(tuple(measurements))


def run_sites(
    model: PretrainedModel, batch: Batch, taps: Sequence[str], *, grad: bool = False, steps: int = 0
) -> dict[str, Tensor]:
    """The taps, and where asked for the gradients and losses, of one run. Fused attention leaves out what it hides."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if is_fused(model):
        taps = [tap for tap in taps if not tap.endswith(NEEDS_EAGER)]
    found = dump_of(model, batch, taps=taps) if taps else {}
    if grad:
        found |= gradients(model, batch)
    if steps:
        found[LOSSES] = training_losses(model, batch, steps)
    return found


def _ways(dtypes: Sequence[torch.dtype], devices: Sequence[str]) -> Iterator[tuple[torch.dtype, str, str]]:
    for dtype in dtypes:
        for device in devices:
            for attention in ("eager", "sdpa"):
                yield dtype, attention, device


def _variant(model: PretrainedModel, dtype: torch.dtype, attention: str, device: str) -> PretrainedModel:
    variant = copy.deepcopy(model).to(device, dtype).eval()
    for module in variant.modules():
        if isinstance(module, SelfAttention):
            module.fused = attention == "sdpa"
    return variant


def _errors(truth: Dump, found: Dump, real: Tensor) -> dict[str, float]:
    errors: dict[str, float] = {}
    for site, tensor in found.items():
        if site != TOP_IDS:
            difference = elements(site, tensor, real) - elements(site, truth[site], real)
            error = float(difference.abs().max())
            if math.isfinite(error):  # float16 may overflow, and infinity is no floor
                errors[site] = error
    return errors


# ---- the same mathematics in another order ---------------------------------------------------------------------------


def _reversed(model: PretrainedModel) -> PretrainedModel:
    """The model with all features (hidden, heads, within a head, intermediate) in reverse order. Changes `model`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            axes = _feature_axes(name, parameter)
            parameter.copy_(parameter.flip(axes) if axes else parameter.clone())
    return model


def _feature_axes(parameter: str, tensor: Tensor) -> list[int]:
    """Axes that are features. Rows of a table, and of a decoder with its bias, are words, positions or types."""
    axes = list(range(tensor.dim()))
    return axes[1:] if "_embeddings." in parameter or ".decoder." in parameter else axes


def _unreversed(dump: Dump) -> dict[str, Tensor]:
    """The tensors of a reversed model, in the order of the given one."""
    restored: dict[str, Tensor] = {}
    for site, tensor in dump.items():
        shape = shape_of(site)
        if site.startswith(GRADIENT):
            axes = [0] if site.endswith(COLUMN_SUMS) else _feature_axes(site, tensor)
        elif shape == "(B, N, S, S)":
            axes = [1]
        else:
            axes = [-1] if shape and shape.endswith((" H)", " F)")) else []
        restored[site] = tensor.flip(axes) if axes else tensor
    return restored
