"""Which key of a file becomes which tensor of ours, and which of ours becomes which key: set algebra on literal names.

Every key of the file ends as exactly one of loaded, tied or dropped, every key of the model as loaded, tied or filled.
Whatever is left over is a problem, and a checkpoint with a problem is not loaded.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal, get_args

import torch
from torch import Tensor

from xlmr_core.checkpoint.layouts import (
    FAIRSEQ_HEAD,
    FAIRSEQ_HEADS,
    FAMILIES,
    LAYOUTS,
    KeyLayout,
    Slot,
    expand,
    layout_for,
    literal,
    nest,
)
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.errors import CheckpointError
from xlmr_core.parameter_groups import ENCODER
from xlmr_core.spec import ModelSpec, files_beside

LISTED = 12  # keys named in one message: a foreign file has hundreds
SEARCHED = 500  # keys among which the nearest to one of them is looked for: each takes 50 microseconds

Status = Literal["loaded", "tied", "dropped", "filled"]
STATUSES: tuple[Status, ...] = get_args(Status)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class KeyStatus:
    """What became of one key."""

    status: Status
    why: str  # loaded: the key on the other side; tied: the key it equals; dropped, filled: the reason

    def __str__(self) -> str:
        joint = {"loaded": " <-> ", "tied": " = ", "dropped": ": ", "filled": ": "}[self.status]
        return f"{self.status}{joint}{self.why}"


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours lies in a file: under `key`, as one of `parts` equal parts along the first axis."""

    key: str
    part: int = 0
    parts: int = 1

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor, a view into the file's."""
        whole = weights[self.key]
        return whole.tensor_split(self.parts)[self.part] if self.parts > 1 else whole

    def __str__(self) -> str:
        return self.key if self.parts == 1 else f"{self.key}, part {self.part + 1} of {self.parts}"


@dataclass(frozen=True)
class Constant:
    """A tensor that no file holds: the same number everywhere."""

    shape: Shape
    value: float = 0.0

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor, in the dtype of the file, whose tensors of weights all have one; float32 without any."""
        dtype = next((tensor.dtype for tensor in weights.values() if tensor.is_floating_point()), torch.float32)
        return torch.full(self.shape, self.value, dtype=dtype)


@dataclass
class Plan:
    """What to do with each key of a file. It can be carried out if there are no `problems`."""

    layout: KeyLayout
    config: XLMRobertaConfig  # with `norm_first` as the keys have it
    spec: ModelSpec
    class_name: str
    groups: tuple[str, ...]  # of the file, and wanted
    slots: list[Slot]  # every tensor that the layout knows
    absent: tuple[str, ...] = ()  # groups that the class needs and the file does not have
    sources: dict[str, Source] = field(default_factory=dict[str, Source])  # our key -> where to read it
    zeros: dict[str, str] = field(default_factory=dict[str, str])  # our keys that the format fills with 0 -> the reason
    fresh: dict[str, str] = field(default_factory=dict[str, str])  # our keys of a new head -> the reason
    statuses: dict[str, KeyStatus] = field(default_factory=dict[str, KeyStatus])  # by key of the file
    twins: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # keys that must hold the same bits
    counters: list[str] = field(default_factory=list[str])  # keys that must hold 0, 1, 2, ...
    constants: dict[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])  # keys -> may hold
    problems: list[str] = field(default_factory=list[str])


def make_plan(
    config: XLMRobertaConfig, keys: Collection[str], spec: ModelSpec, class_name: str, *, new_head: bool = False
) -> Plan:
    """Accounts for every one of `keys`, for a model class that needs `spec`.

    new_head: a group that the file lacks, the encoder apart, is left to be initialised instead of being a problem.
    """
    heads = sorted({key.split(".")[1] for key in keys if key.startswith(FAIRSEQ_HEADS)}) or [FAIRSEQ_HEAD]
    expansions = {layout.name: expand(layout, config, spec, heads) for layout in LAYOUTS}
    layout, problems = _detect(expansions, keys)
    slots = expansions[layout.name]
    touched = {slot.group for slot in slots if _found(slot, keys)}
    absent = tuple(group for group in spec.required_names if group not in touched and group != ENCODER.name)
    wanted = (*spec.required_names, *(group for group in spec.optional_names if group in touched))
    config = replace(config, norm_first=layout.norm_first)
    plan = Plan(layout, config, spec, class_name, wanted, slots, absent, problems=problems)

    missing: list[str] = []
    for slot in slots:
        found = _found(slot, keys)
        if found and slot.group in wanted:
            _load(plan, slot, found)
        elif found:
            plan.statuses |= {key: KeyStatus("dropped", f"{class_name} has no {slot.group}") for key in found}
        elif slot.group in touched or slot.group == "encoder":
            missing.append(next(iter(slot.keys)))
    plan.zeros = {nest(ours, "encoder", spec): why for ours, why in layout.fills.items()}
    plan.counters = [key for key in layout.counters if key in keys]
    plan.statuses |= {
        key: KeyStatus("dropped", "a buffer that counts 0, 1, 2, ...: no weights") for key in plan.counters
    }
    plan.constants = {key: value for key, value in layout.constants.items() if key in keys}
    plan.statuses |= {key: KeyStatus("dropped", "a version number: no weights") for key in plan.constants}
    for template, why in layout.leftovers.items():
        for _, key in literal(((template, template),), config.num_hidden_layers, heads):
            if key in keys:
                plan.statuses[key] = KeyStatus("dropped", why)

    unexpected = [key for key in keys if key not in plan.statuses]
    if missing or unexpected:
        plan.problems.append(_leftovers(layout, missing, unexpected, slots))
    if "sequence_classifier" in wanted and len(heads) > 1:
        plan.problems.append(f"the file has {len(heads)} classification heads ({', '.join(heads)}): keep one of them")
    if new_head:
        plan.fresh = _own_keys(plan, absent, "initialised: a new head, as the checkpoint has none")
    else:
        plan.problems += [_no_group(plan, group) for group in absent]
    return plan


def _load(plan: Plan, slot: Slot, found: list[str]) -> None:
    """Takes the slot's tensors from the first key that the file has; the other names must agree, or are dropped."""
    first, *twins = found
    plan.sources |= {ours: Source(first, part, len(slot.ours)) for part, ours in enumerate(slot.ours)}
    plan.statuses[first] = KeyStatus("loaded", " + ".join(slot.ours))
    for twin in twins:
        if slot.keys[twin] not in plan.groups:
            plan.statuses[twin] = KeyStatus("dropped", f"{plan.class_name} has no {slot.keys[twin]}")
        elif not plan.config.tie_word_embeddings:
            plan.statuses[twin] = KeyStatus("dropped", f"not in use where the config unties {first}")
        else:
            plan.twins.append((first, twin))
            plan.statuses[twin] = KeyStatus("tied", first)


def _own_keys(plan: Plan, groups: Collection[str], why: str) -> dict[str, str]:
    """Our names of the tensors of `groups`, whether or not the file's layout has them: our own has them all."""
    native = layout_for("native", plan.spec, plan.config.norm_first)
    assert native is not None
    slots = expand(native, plan.config, plan.spec)
    return {ours: why for slot in slots if slot.group in groups for ours in slot.ours}


def _no_group(plan: Plan, group: str) -> str:
    keys = [key for slot in plan.slots if slot.group == group for key in slot.keys]
    example = f"{keys[0]}, ..." if keys else f"none in {plan.layout.name}"
    if group in files_beside():
        example += f"; published as {files_beside()[group]} beside the weights"
    return (
        f"{plan.class_name} needs the group {group} ({example}), which is not in this checkpoint; "
        "`xlmr inspect` lists what is. It may fit XLMRobertaModel, the bare encoder; in Python, new_head=True makes "
        "a fresh one to train"
    )


# ---- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """One tensor to write: `key`, made of the tensors at `sources`, concatenated along the first axis."""

    key: str
    ours: tuple[str, ...]  # what the sources are in our names; empty for a constant of the format
    sources: tuple[Source | Constant, ...]
    again: bool = False  # a second name of a tensor that is written already: a copy, as safetensors shares no memory

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor to write; one source is not copied."""
        tensors = [source.read(weights) for source in self.sources]
        if len(tensors) > 1:
            return torch.cat(tensors)
        return tensors[0].clone() if self.again else tensors[0]


@dataclass(frozen=True)
class ExportPlan:
    """Every tensor to write, in the order of the layout's table, and what must hold before anything is written."""

    layout: KeyLayout
    exports: tuple[Export, ...]
    must_be_zero: Mapping[str, Source | Constant]  # ours that the format has no place for: lossy unless all 0


def export_plan(plan: Plan, family: str) -> ExportPlan:
    """How the file that `plan` (see `make_plan`) accounts for is written in the key layout `family`, one of FAMILIES.

    Each `Export` is read from the opened file by `export.read(weights)`, so that one tensor at a time is in memory,
    and no model is built. Check `lossy(...)` before writing. `family` "fairseq" is the layout of 2019 for post-norm
    and that of XL for pre-norm. Raises CheckpointError for an unknown family, a format that has no such model, or
    tensors that it has no name for.
    """
    shape = (plan.config.type_vocab_size, plan.config.hidden_size)  # of the token types: nothing else is filled with 0
    zeros = {ours: Constant(shape) for ours in plan.zeros}
    return plan_export(family, plan.config, plan.spec, plan.class_name, plan.sources | zeros)


def plan_export(
    family: str,
    config: XLMRobertaConfig,
    spec: ModelSpec,
    class_name: str,
    sources: Mapping[str, Source] | Mapping[str, Source | Constant],
) -> ExportPlan:
    """As `export_plan`, from the places of our tensors instead of a file's plan."""
    if family not in FAMILIES:
        raise CheckpointError(f"there is no key layout {family!r} to write: expected one of {', '.join(FAMILIES)}")
    kind = "pre-norm" if config.norm_first else "post-norm"
    layout = layout_for(family, spec, config.norm_first)
    if layout is None:
        raise CheckpointError(f"the key layout {family} has no {kind} model")
    exports: list[Export] = []
    named: set[str] = set()
    for slot in expand(layout, config, spec):
        present = [ours for ours in slot.ours if ours in sources]
        if len(present) < len(slot.ours):
            continue
        named.update(slot.ours)
        first, *second_names = slot.keys
        exports.append(Export(first, slot.ours, tuple(sources[ours] for ours in slot.ours)))
        for name in second_names:  # transformers ties names when it loads, but untied it expects them all
            spelled_out = layout.writes_second_names or not config.tie_word_embeddings
            if spelled_out and slot.keys[name] in spec.required_names:
                exports.append(replace(exports[-1], key=name, again=True))
    fills = {nest(ours, "encoder", spec) for ours in layout.fills}
    nameless = [ours for ours in sources if ours not in named and ours not in fills]
    if nameless:
        groups = _groups_of(nameless, config, spec)
        way_out = f". Leave {' and '.join(groups)} out on purpose (drop), or choose another layout" if groups else ""
        raise CheckpointError(
            f"the layout {layout.name} has no name for {', '.join(nameless[:LISTED])} of {class_name}: "
            f"writing it would lose them{way_out}"
        )
    exports += [Export(key, (), (Constant((1,), values[0]),)) for key, values in layout.constants.items()]
    return ExportPlan(layout, tuple(exports), {ours: sources[ours] for ours in fills if ours in sources})


def _groups_of(names: Collection[str], config: XLMRobertaConfig, spec: ModelSpec) -> list[str]:
    """The groups that tensors of ours belong to."""
    native = layout_for("native", spec, config.norm_first)
    slots = expand(native, config, spec) if native is not None else []
    return list(dict.fromkeys(slot.group for slot in slots if set(slot.ours) & set(names)))


def lossy(plan: ExportPlan, weights: Mapping[str, Tensor]) -> list[str]:
    """Why writing `plan` would lose something of `weights`; empty if it would not. Reads only what must be 0."""
    return [
        f"{ours} holds numbers other than 0, and {plan.layout.name} has no place for it: writing it would lose them. "
        "The layouts hf and native have one; or add it to the position rows (--fold-token-types), which gives the same "
        "model up to rounding"
        for ours, source in plan.must_be_zero.items()
        if source.read(weights).count_nonzero()
    ]


# ---- checks ---------------------------------------------------------------------------------------------------------


def shape_problems(plan: Plan, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    """The keys whose shape differs from the one that the config asks for. `expected` goes by our keys."""
    problems: list[str] = []
    for slot in plan.slots:
        for key in slot.keys:
            used = key in plan.statuses and plan.statuses[key].status in ("loaded", "tied")
            if used and found[key] != (asked := _whole([expected[ours] for ours in slot.ours])):
                problems.append(f"{key} has shape {found[key]}, but config.json asks for {asked}")
    if len(problems) > LISTED:
        problems[LISTED:] = [f"and {len(problems) - LISTED} more keys of another shape"]
    return problems


def _whole(parts: Sequence[Shape]) -> Shape:
    """The shape of the parts one below the other."""
    return (sum(part[0] for part in parts), *parts[0][1:])


def _found(slot: Slot, keys: Collection[str]) -> list[str]:
    return [key for key in slot.keys if key in keys]


def _detect(expansions: Mapping[str, list[Slot]], keys: Collection[str]) -> tuple[KeyLayout, list[str]]:
    """The one layout whose encoder is in the file as a whole, or the nearest one and what speaks against it."""
    scores: dict[str, float] = {}
    for name, slots in expansions.items():
        encoder = [slot for slot in slots if slot.group == "encoder"]
        scores[name] = sum(bool(_found(slot, keys)) for slot in encoder) / len(encoder)
    layouts = {layout.name: layout for layout in LAYOUTS}
    whole = [name for name, score in scores.items() if score == 1]
    nearest = layouts[max(scores, key=lambda name: scores[name])]
    if len(whole) > 1:
        return nearest, [f"the file holds the encoder {len(whole)} times: as {' and as '.join(whole)}"]
    return nearest, []


def _leftovers(layout: KeyLayout, missing: list[str], unexpected: list[str], slots: list[Slot]) -> str:
    known = [key for slot in slots for key in slot.keys]
    lines = [f"the keys are not those of any known key layout. Nearest: {layout.name}"]
    lines += _listing("missing", missing, unexpected)
    lines += _listing("unexpected", unexpected, missing or known)
    return "\n".join(lines)


def _listing(title: str, keys: list[str], candidates: list[str]) -> list[str]:
    lines = [f"  {title}: {len(keys)}"]
    for key in keys[:LISTED]:
        near = get_close_matches(key, candidates[:SEARCHED], n=1)
        lines.append(f"    {key!r}" + (f" (nearest: {near[0]!r})" if near else ""))
    return lines + ([f"    and {len(keys) - LISTED} more"] if len(keys) > LISTED else [])


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a checkpoint and of every key of the model that was loaded from it."""

    model: str
    source: str
    layout: str
    checkpoint_keys: Mapping[str, KeyStatus]
    model_keys: Mapping[str, KeyStatus]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model} from {self.source}", f"layout: {self.layout}", *self.notes]
        for title, statuses in (("checkpoint", self.checkpoint_keys), ("model", self.model_keys)):
            counts = {s: sum(entry.status == s for entry in statuses.values()) for s in STATUSES}
            lines.append(f"{title} keys: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
            lines += [f"  {key} {entry}" for key, entry in statuses.items() if entry.status != "loaded"]
        return "\n".join(lines)
