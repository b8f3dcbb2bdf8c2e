"""Which key of a file becomes which tensor of ours: set algebra on literal names. No tensor is read here.

Every key of the file ends as exactly one of loaded, tied or dropped, every key of the model as loaded or tied.
Whatever is left over is a problem, and a checkpoint with a problem is not loaded.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal

from xlmr_core.checkpoint.layouts import LAYOUTS, Layout, Needs, Slot, expand
from xlmr_core.config import XLMRobertaConfig

LISTED = 12  # keys named in one message: a foreign file has hundreds

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or accounted for. The message names the cause and the way out."""


@dataclass(frozen=True)
class Fate:
    """What became of one key."""

    status: Literal["loaded", "tied", "dropped"]
    why: str  # loaded: the key on the other side; tied: the key it equals; dropped: the reason

    def __str__(self) -> str:
        joint = {"loaded": " <-> ", "tied": " = ", "dropped": ": "}[self.status]
        return f"{self.status}{joint}{self.why}"


@dataclass
class Plan:
    """What to do with each key of a file. It can be carried out if there are no `problems`."""

    layout: Layout
    config: XLMRobertaConfig  # with `norm_first` as the keys have it
    groups: tuple[str, ...]  # of the file, and wanted
    slots: list[Slot]  # every tensor that the layout knows
    sources: dict[str, str] = field(default_factory=dict[str, str])  # our key -> the key to read
    fates: dict[str, Fate] = field(default_factory=dict[str, Fate])  # by key of the file
    twins: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # keys that must hold the same bits
    counters: list[str] = field(default_factory=list[str])  # keys that must hold 0, 1, 2, ...
    problems: list[str] = field(default_factory=list[str])


def make_plan(config: XLMRobertaConfig, keys: Collection[str], needs: Needs, class_name: str) -> Plan:
    """Accounts for every one of `keys`, for a model class that needs `needs`."""
    expansions = {layout.name: expand(layout, config, needs.nested) for layout in LAYOUTS}
    layout, problems = _detect(expansions, keys)
    slots = expansions[layout.name]
    touched = {slot.group for slot in slots if _found(slot, keys)}
    wanted = needs.required + tuple(group for group in needs.optional if group in touched)
    plan = Plan(layout, replace(config, norm_first=layout.norm_first), wanted, slots, problems=problems)

    missing: list[str] = []
    for slot in slots:
        found = _found(slot, keys)
        if found and slot.group in wanted:
            plan.sources[slot.ours] = found[0]
            plan.fates[found[0]] = Fate("loaded", slot.ours)
            for twin in found[1:]:
                if slot.keys[twin] not in wanted:
                    plan.fates[twin] = Fate("dropped", f"{class_name} has no {slot.keys[twin]}")
                elif not config.tie_word_embeddings:
                    plan.fates[twin] = Fate("dropped", f"not in use where the config unties {found[0]}")
                else:
                    plan.twins.append((found[0], twin))
                    plan.fates[twin] = Fate("tied", found[0])
        elif found:
            plan.fates |= {key: Fate("dropped", f"{class_name} has no {slot.group}") for key in found}
        elif slot.group in touched or slot.group == "encoder":
            missing.append(next(iter(slot.keys)))
    plan.counters = [key for key in layout.counters if key in keys]
    plan.fates |= {key: Fate("dropped", "a buffer that counts 0, 1, 2, ...: no weights") for key in plan.counters}

    unexpected = [key for key in keys if key not in plan.fates]
    if missing or unexpected:
        plan.problems.append(_leftovers(layout, missing, unexpected, slots))
    for group in set(needs.required) - touched - {"encoder"}:
        first = next(key for slot in slots if slot.group == group for key in slot.keys)
        plan.problems.append(
            f"{class_name} needs the group {group} ({first}, ...), which is not in this checkpoint. "
            "It may fit XLMRobertaModel, the bare encoder"
        )
    return plan


def shape_problems(plan: Plan, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    """The keys whose shape differs from the one that the config asks for. `expected` goes by our keys."""
    problems: list[str] = []
    for slot in plan.slots:
        for key in slot.keys:
            used = key in plan.fates and plan.fates[key].status != "dropped"
            if used and found[key] != expected[slot.ours]:
                problems.append(f"{key} has shape {found[key]}, but config.json asks for {expected[slot.ours]}")
    if len(problems) > LISTED:
        problems[LISTED:] = [f"and {len(problems) - LISTED} more keys of another shape"]
    return problems


def _found(slot: Slot, keys: Collection[str]) -> list[str]:
    return [key for key in slot.keys if key in keys]


def _detect(expansions: Mapping[str, list[Slot]], keys: Collection[str]) -> tuple[Layout, list[str]]:
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


def _leftovers(layout: Layout, missing: list[str], unexpected: list[str], slots: list[Slot]) -> str:
    known = [key for slot in slots for key in slot.keys]
    lines = [f"the keys are not those of any known layout. Nearest: {layout.name}"]
    lines += _listing("missing", missing, unexpected)
    lines += _listing("unexpected", unexpected, missing or known)
    return "\n".join(lines)


def _listing(title: str, keys: list[str], candidates: list[str]) -> list[str]:
    lines = [f"  {title}: {len(keys)}"]
    for key in keys[:LISTED]:
        near = get_close_matches(key, candidates, n=1)
        lines.append(f"    {key!r}" + (f" (nearest: {near[0]!r})" if near else ""))
    return lines + ([f"    and {len(keys) - LISTED} more"] if len(keys) > LISTED else [])


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a checkpoint and of every key of the model that was loaded from it."""

    model: str
    source: str
    layout: str
    checkpoint_keys: Mapping[str, Fate]
    model_keys: Mapping[str, Fate]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model} from {self.source}", f"layout: {self.layout}", *self.notes]
        for title, fates in (("checkpoint", self.checkpoint_keys), ("model", self.model_keys)):
            counts = {s: sum(fate.status == s for fate in fates.values()) for s in ("loaded", "tied", "dropped")}
            lines.append(f"{title} keys: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
            lines += [f"  {key} {fate}" for key, fate in fates.items() if fate.status != "loaded"]
        return "\n".join(lines)
