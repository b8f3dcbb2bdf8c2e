"""Golden traces: what a checkpoint computes for an input, in one file that any language can read.

docs/trace-format.md describes the file; recording.py makes traces. The same run gives the same bytes.

    trace = record("xlmr-tiny", ["Hello <mask>!"])
    trace.save(Path("trace.safetensors"))
    trace = Trace.load(Path("trace.safetensors"))
    trace.tensors["layers.3.attention.probs"]  # (B, N, S, S)
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import FailFast, Field, TypeAdapter, with_config
from torch import Tensor

from xlmr_core import notebook
from xlmr_core.atomic import written_as
from xlmr_core.checkpoint.writing import write_safetensors_to
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.formatting import dtype_name
from xlmr_core.heads import model_classes
from xlmr_core.parity.formats import (
    INPUTS,
    MOST_LAYERS,
    MOST_NAMES,
    MOST_STEPS,
    STRICT,
    FloatName,
    Name,
    Sha256,
    TraceError,
    check_shapes,
    checked_inputs,
    open_safetensors,
    parsed,
    shortened,
)
from xlmr_core.parity.gradients import GRADIENT, LOSS, LOSSES
from xlmr_core.parity.tap_values import LOGITS, LOGSUMEXP, TOP, TOP_IDS, shape_of
from xlmr_core.pretrained import PretrainedModel

KEY = "xlmr_trace"  # of the one entry in the file's metadata: with several, their order would be random
VERSION: Literal[2] = 2
SHOWN = ("checkpoint", "revision", "model", "texts", "pairs", "dtype", "attention", "device", "threads", "steps")
DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


@with_config(STRICT)
@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a trace come from."""

    checkpoint: Name  # a hub id, or the name of a folder
    revision: Name | None
    model: Name  # the class
    weights_sha256: Sha256  # of the tensors, whatever the file's layout: see `hash_of_weights`
    config: Mapping[str, Any]
    texts: tuple[str, ...]  # empty where ids were given
    pairs: tuple[str, ...]  # the second text of each; empty where there is none
    dtype: FloatName  # of the run
    attention: Literal["eager", "sdpa"]
    device: Name
    cpu: str
    threads: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0, le=MOST_STEPS)]  # of training, for the losses
    logits_sha256: Sha256 | None  # of all logits, little-endian, as computed: equal if a run was the same bit for bit
    versions: Mapping[str, str]  # of what computed it; not ours, since each of our versions must give the same

    @property
    def machine(self) -> tuple[object, ...]:
        """What must be the same for two runs to agree bit for bit."""
        return self.dtype, self.attention, self.device, self.cpu, self.threads, self.versions["torch"]


@dataclass(frozen=True)
class Trace:
    """Inputs, tensors by tap in reading order (also gradients and losses), and where they come from."""

    inputs: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    provenance: Provenance

    def _repr_html_(self) -> str:
        """In a notebook: where the numbers come from, and the tensors folded."""
        origin = asdict(self.provenance)
        facts = [("recorded", ""), *((name, origin[name]) for name in SHOWN), ("versions", origin["versions"])]
        tensors = {**self.inputs, **self.tensors}
        rows = [("tensor", "shape", "dtype")]
        rows += [(name, "x".join(map(str, t.shape)), dtype_name(t.dtype)) for name, t in tensors.items()]
        return notebook.table(facts) + notebook.folded(f"{len(tensors)} tensors", notebook.table(rows))

    @property
    def real(self) -> Tensor:
        """(B, S): True for real tokens."""
        return self.inputs["attention_mask"].bool()

    @cached_property
    def config(self) -> XLMRobertaConfig:
        """Of the checkpoint."""
        return XLMRobertaConfig.from_dict(self.provenance.config)

    @property
    def taps(self) -> list[str]:
        """The taps to capture for the same taps: the reduced logits come from `lm_head.logits`."""
        reduced = {TOP_IDS: LOGITS, TOP: LOGITS, LOGSUMEXP: LOGITS}
        names = dict.fromkeys(reduced.get(tap, tap) for tap in self.tensors)
        return [name for name in names if shape_of(name) and name != LOSS]

    @property
    def top_ids(self) -> Tensor | None:
        """(B, S, K): which logits are kept; None where all are."""
        return self.tensors.get(TOP_IDS)

    @property
    def has_gradients(self) -> bool:
        """Whether it was recorded with gradients."""
        return any(tap.startswith(GRADIENT) for tap in self.tensors)

    def to_bytes(self) -> bytes:
        """The file: the same trace gives the same bytes."""
        listed = [{"name": name, "axes": shape_of(name)} for name in self.tensors]
        content = {"version": VERSION, "provenance": asdict(self.provenance), "sites": listed}
        tensors = {**self.inputs, **self.tensors}
        # numpy has no bfloat16: such numbers are kept as the float32 they equal, and `dtype` tells what they were
        plain = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
        file = io.BytesIO()
        write_safetensors_to(file, plain, {KEY: json.dumps(content, sort_keys=True)})
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        with written_as(path) as temporary:
            temporary.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Returns:
            The trace: every field and every shape is what the config and the ids make it, and some token is real.

        Raises:
            TraceError: The file is not a trace, is damaged or is of another version. The message names what is wrong.
        """
        with open_safetensors(path) as file:
            content = _content_of(path, file.metadata() or {})
            provenance = content.provenance
            config = _config_of(path, provenance)
            names = [*INPUTS, *(entry.name for entry in content.sites)]
            _check_taps(path, names, list(file.keys()), provenance)
            stored = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(header.get_shape()) for name, header in stored.items()}
            check_shapes(path, shapes, config, provenance.steps)
            for name, header in stored.items():
                expected = _stored_dtype(name, provenance)
                if header.get_dtype() != expected:
                    raise TraceError(f"{path}: {name} holds {header.get_dtype()}; expected {expected}")
            tensors = {name: file.get_tensor(name) for name in names}
        inputs = checked_inputs(path, {name: tensors.pop(name) for name in INPUTS}, config)
        if TOP_IDS in tensors:
            low, high = int(tensors[TOP_IDS].min()), int(tensors[TOP_IDS].max())
            if low < 0 or high >= config.vocab_size:
                raise TraceError(f"{path}: {TOP_IDS} holds {low} to {high}; expected 0 to {config.vocab_size - 1}")
        dtype = DTYPES[provenance.dtype]
        found = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        return cls(inputs, found, provenance)


@with_config(STRICT)
@dataclass(frozen=True)
class _Entry:
    name: Annotated[str, Field(min_length=1, max_length=300)]
    axes: str | None


@with_config(STRICT)
@dataclass(frozen=True)
class _Content:
    """The metadata of a trace."""

    version: Literal[2]
    provenance: Provenance
    sites: Annotated[tuple[_Entry, ...], Field(min_length=1, max_length=MOST_NAMES), FailFast()]


CONTENT = TypeAdapter(_Content)


def is_trace(path: Path) -> bool:
    """Whether a file says that it is a trace."""
    try:
        with open_safetensors(path) as file:
            return KEY in (file.metadata() or {})
    except TraceError:
        return False


def _content_of(path: Path, metadata: Mapping[str, str]) -> _Content:
    if KEY not in metadata:
        raise TraceError(f"{path} is not a trace: its metadata has no {KEY!r}. `xlmr parity record` writes one")
    return parsed(path, "a trace that this program reads", CONTENT, metadata[KEY])


def _config_of(path: Path, provenance: Provenance) -> XLMRobertaConfig:
    """The config in the metadata, which holds the keys that `to_dict` writes and no others."""
    try:
        config = XLMRobertaConfig.from_dict(provenance.config)
    except (ValueError, TypeError) as error:
        raise TraceError(f"{path}: provenance.config: {str(error)[:300]}") from error
    unknown = provenance.config.keys() - config.to_dict().keys() - {"id2label", "label2id"}
    if unknown:
        raise TraceError(f"{path}: provenance.config has the unknown key {shortened(min(unknown))}")
    if config.num_hidden_layers > MOST_LAYERS:
        layers = shortened(config.num_hidden_layers)
        raise TraceError(f"{path}: provenance.config.num_hidden_layers is {layers}; expected at most {MOST_LAYERS}")
    return config


def _check_taps(path: Path, names: Sequence[str], stored: Sequence[str], provenance: Provenance) -> None:
    """Raises TraceError unless the file has the tensors that its metadata lists, and those belong together."""
    if sorted(names) != sorted(stored):
        odd = min(set(names) ^ set(stored), default="a name twice")
        raise TraceError(f"{path}: the metadata and the file do not list the same tensors: {shortened(odd)} differs")
    reduced = [name for name in (TOP_IDS, TOP, LOGSUMEXP) if name in names]
    if len(reduced) not in (0, 3):
        raise TraceError(f"{path} has {', '.join(reduced)}; expected {TOP_IDS}, {TOP} and {LOGSUMEXP} together")
    if (LOSSES in names) != bool(provenance.steps):
        raise TraceError(f"{path}: provenance.steps is {provenance.steps}; expected the number of steps of {LOSSES}")
    if provenance.model not in recordable():
        models = ", ".join(recordable())
        raise TraceError(f"{path}: provenance.model is {provenance.model!r}; expected one of {models}")
    if "torch" not in provenance.versions:
        raise TraceError(f"{path}: provenance.versions has no torch")


def _stored_dtype(name: str, provenance: Provenance) -> str:
    """The type of a tensor in the file, as safetensors calls it."""
    if name in (*INPUTS, TOP_IDS):
        return "I64"
    return {"float64": "F64", "float16": "F16"}.get(provenance.dtype, "F32")  # numpy has no bfloat16


def recordable() -> dict[str, type[PretrainedModel]]:
    """The classes of which traces are recorded, by name: of multiple choice, the encoder with its pooler is."""
    return {cls.__name__: cls for cls in model_classes() if not cls.spec.has_choices}
