"""What a checkpoint contains, by its headers. No tensor is loaded unless its values are requested."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from xlmr_core.checkpoint.files import Files, notes_on_config, open_beside, open_weights, read_config
from xlmr_core.checkpoint.loading import (
    build_on_meta,
    find_checkpoint,
    header_problems,
    notes_on,
    notes_on_files,
    plan_for,
    value_problems,
)
from xlmr_core.checkpoint.mapping import KeyStatus, Plan
from xlmr_core.checkpoint.sentence_transformers import MODULES, read_sentence_config
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.errors import CheckpointError
from xlmr_core.formatting import dtype_name
from xlmr_core.heads import model_classes
from xlmr_core.hub_options import HubOptions
from xlmr_core.paths import StrPath
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.spec import files_beside, spec_of

PART = 2**22  # elements read at a time


@dataclass(frozen=True)
class Values:
    """What the numbers of one tensor look like."""

    nan: int
    inf: int
    norm: float  # Euclidean, of the finite numbers


@dataclass(frozen=True)
class KeyInfo:
    """One key of a file. `status` is None for a key that the nearest key layout does not have."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    num_bytes: int
    status: KeyStatus | None
    values: Values | None


@dataclass(frozen=True)
class Inspection:
    """What `inspect_checkpoint` found. Prints as a table."""

    config_file: Path
    weights_file: Path
    config: XLMRobertaConfig
    model: str  # the class that takes in most of the file
    layout: str  # the nearest one, if there are problems
    tied: bool | None  # decoder and word table are one tensor; None without an LM head
    keys: tuple[KeyInfo, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]  # why it would not load; empty if it would

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together; a tensor under two keys counts twice."""
        return sum(info.num_bytes for info in self.keys)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """The keys that hold NaN or Inf. Empty, too, where the values were not requested."""
        return tuple(info.key for info in self.keys if info.values is not None and info.values.nan + info.values.inf)

    def __str__(self) -> str:
        tied = {None: "no LM head", True: "decoder tied to the word table", False: "decoder not tied"}[self.tied]
        lines = [
            f"weights  {self.weights_file}",
            f"config   {self.config}",
            f"layout   {self.layout}, as {self.model}, {tied}",
            f"size     {len(self.keys)} tensors, {self.num_bytes:,} bytes",
            *self.notes,
        ]
        names = [info.key if info.key.isprintable() else repr(info.key) for info in self.keys]
        width = max(map(len, names), default=0)
        for name, info in zip(names, self.keys, strict=True):
            shape = "x".join(map(str, info.shape)) or "scalar"
            dtype = dtype_name(info.dtype)
            line = f"{name:{width}}  {dtype:8}  {shape:14}  {info.num_bytes:>13,}"
            if info.values is not None:
                line += f"  norm {info.values.norm:<10.4g}  nan {info.values.nan}  inf {info.values.inf}"
            lines.append(f"{line}  {info.status or 'UNKNOWN'}")
        if self.not_finite:
            lines.append(f"NOT FINITE: {', '.join(self.not_finite)}")
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


def inspect_checkpoint(
    source: StrPath,
    *,
    values: bool = False,
    **hub: Unpack[HubOptions],
) -> Inspection:
    """Reports the config, the key layout and the status of every key of a checkpoint.

    Args:
        source: As for `load_pretrained`.
        values: Also count NaN and Inf, compute norms, and compare tensors that should be equal. This reads the whole
            file, one tensor at a time.
        **hub: How to reach the hub. See `HubOptions`.

    Returns:
        The report. Its `problems` say why the checkpoint would not load.

    Raises:
        CheckpointError: The checkpoint cannot be found, or is not a weights file.
    """
    files = find_checkpoint(source, **hub)
    config = read_config(files.config)
    apart = open_beside(files.weights, headers_only=not values)
    weights = open_weights(files.weights, headers_only=not values) | apart
    cls, plan = best_class(config, weights, files)
    problems = plan.problems + header_problems(plan, build_on_meta(cls, plan, "eager"), weights)
    if values:
        problems += value_problems(plan, weights)
    keys = [
        KeyInfo(
            key,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
            plan.statuses.get(key),
            _values(tensor) if values else None,
        )
        for key, tensor in weights.items()
    ]
    return Inspection(
        config_file=files.config,
        weights_file=files.weights,
        config=plan.config,
        model=cls.__name__,
        layout=plan.layout.name,
        tied=config.tie_word_embeddings if "lm_head" in plan.groups else None,
        keys=tuple(keys),
        notes=(
            *notes_on_config(files.config),
            *notes_on(plan, config),
            *_note_on_files(apart),
            *_note_on_sentence(files),
            *notes_on_files(files),
        ),
        problems=tuple(problems),
    )


def best_class(
    config: XLMRobertaConfig, weights: dict[str, Tensor], files: Files
) -> tuple[type[PretrainedModel], Plan]:
    """Of the classes whose head is in the file, the one that takes in most of it."""
    classifier = weights.get("classifier.weight")
    one_row = classifier is not None and len(classifier) == 1  # a tagger beside a pooler has the same keys, and more
    classes = [cls for cls in model_classes() if one_row or not spec_of(cls).has_choices]
    plans = {cls: plan_for(cls, config, weights, files) for cls in classes}
    # The encoder comes last: a head goes before a pooler.
    return min(plans.items(), key=lambda item: (len(item[1].absent), -len(item[1].sources), item[1].spec.is_encoder))


def _note_on_files(apart: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = dict.fromkeys(files_beside()[key.partition(".")[0]] for key in apart)
    return (f"beside   {', '.join(names)}",) if names else ()


def _note_on_sentence(files: Files) -> tuple[str, ...]:
    if not (files.root / MODULES).is_file():
        return ()
    try:
        return (f"sentence {read_sentence_config(files.root)}",)
    except CheckpointError as error:
        return (f"note: as a sentence-transformers folder it is not understood: {error}",)


def _values(tensor: Tensor) -> Values:
    nan, inf, squares = 0, 0, 0.0
    for part in tensor.flatten().split(PART):  # in parts: a word table of 1 GB would be copied as a whole
        numbers = part.double()
        if not numbers.sum().isfinite():  # rare, so only then is each number looked at
            nan += int(numbers.isnan().sum())
            inf += int(numbers.isinf().sum())
            numbers = numbers[numbers.isfinite()]
        squares += float(numbers.square().sum())
    return Values(nan, inf, squares**0.5)
