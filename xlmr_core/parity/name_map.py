"""The map of names that a matching gives, as `--names` reads it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xlmr_core.parity.axes import LAYERS, PART, layer_of, our_letters
from xlmr_core.parity.likeness import as_pattern, looks_like_another
from xlmr_core.parity.matching import Match, Matching

SHOWN = 6  # taps that a message names
ABSENT = "Not in the dump, but proved right by later taps"
UNKNOWN = "Not recognised: not in the dump, or wrong"


def as_names(matching: Matching) -> dict[str, Any]:
    """The map of names: tap -> name, or a table of `name`, `axes`, `part` and `first`."""
    return {match.tap: _entry(match) for match in matching.matches}


def _entry(match: Match) -> str | dict[str, Any]:
    found = match.found
    letters = found.reading.letters
    ours = our_letters(match.tap)
    axes = found.reading.axes
    if axes == " ".join(ours).replace("N D", "H"):
        return found.name
    entry: dict[str, Any] = {"name": found.name, "axes": axes}
    if PART in letters:
        entry["part"] = found.part
    if LAYERS in letters:
        entry["first"] = found.layer - layer_of(match.tap)
    return entry


def to_toml(matching: Matching, about: str) -> str:
    """The map of names as a TOML file, with comments that say how each tensor was recognised.

    Args:
        matching: What was recognised.
        about: The files that it is made for, in words.

    Returns:
        The text.
    """
    lines = [
        f"# A map of names for `xlmr parity check --names` and `diagnose --names`: {about}.",
        "# On the left our taps, on the right the port's names. {i} is the number of a layer, from 0.",
        "# By numbers: they are ours, or near. By shape and name, or order: the numbers are not ours; look at these.",
        "",
        "[names]",
    ]
    left = [*matching.absent, *matching.unknown]
    names, written = as_names(matching), set[str]()
    by_tap = {match.tap: match for match in matching.matches}
    for tap, match in by_tap.items():
        if tap in written:
            continue
        taps = _like_it(tap, [*by_tap, *left])
        pattern = _one_entry([names[other] for other in taps]) if all(other in by_tap for other in taps) else None
        if pattern is not None and len(taps) > 1:
            kind = ".".join(["layers", "{i}", *tap.split(".")[2:]])
            lines.append(f"{_quoted(kind)} = {_value(pattern)}  # {_certainty([by_tap[other] for other in taps])}")
            written |= {*taps}
        else:
            lines.append(f"{_quoted(tap)} = {_value(names[tap])}  # {_certainty([match])}")
    for why, taps in (
        ("Not in the dump, but proved right by later taps", matching.absent),
        (UNKNOWN, matching.unknown),
    ):
        if taps:
            lines += ["", f"# {why}:", *(f'# {_quoted(tap)} = ""' for tap in taps)]
    return "\n".join(lines) + "\n"


def summary(matching: Matching) -> str:
    """One line: how many taps were recognised, how, and which were not."""
    count, absent, unknown = len(matching.matches), matching.absent, matching.unknown
    guessed = [match.tap for match in matching.matches if match.how != "by numbers"]
    parts = [
        f"no map of names: {count} of {count + len(absent) + len(unknown)} taps were recognised, "
        f"{count - len(guessed)} of them by numbers"
    ]
    if guessed:
        parts[0] += f", the others by shape and name or order ({_some(guessed)})"
    if absent:
        parts.append(f"not in the dump, but proved right by later taps: {_some(absent)}")
    if unknown:
        parts.append(f"not recognised, so not in the dump, or wrong: {_some(unknown)}")
    return "; ".join(parts)


def _like_it(tap: str, taps: Sequence[str]) -> list[str]:
    """The same tap of every layer, in order; only itself if some layer before the last has no such tap."""
    if not tap.startswith("layers."):
        return [tap]
    same = [other for other in taps if other.startswith("layers.") and other.split(".")[2:] == tap.split(".")[2:]]
    same.sort(key=layer_of)
    return same if layer_of(same[-1]) + 1 == len(same) else [tap]


def _one_entry(entries: Sequence[str | Mapping[str, Any]]) -> str | dict[str, Any] | None:
    """One entry for all layers, with {i} in its name; None if they differ in more than the layer."""
    tables = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
    pattern = as_pattern([table.pop("name") for table in tables])
    if pattern is None or any(table != tables[0] for table in tables):
        return None
    return {"name": pattern, **tables[0]} if tables[0] else pattern


def _value(entry: str | Mapping[str, Any]) -> str:
    if isinstance(entry, str):
        return _quoted(entry)
    pairs = (f"{key} = {_quoted(value) if isinstance(value, str) else value}" for key, value in entry.items())
    return f"{{ {', '.join(pairs)} }}"


def _certainty(matches: Sequence[Match]) -> str:
    """How the tap was recognised in each layer, and how far the numbers are from ours."""
    parts: list[str] = []
    for how in dict.fromkeys(match.how for match in matches):
        its = [match for match in matches if match.how == how]
        where = "" if len(its) == len(matches) else f" in layers {', '.join(str(layer_of(m.tap)) for m in its)}"
        parts.append(f"{how}{where}, {max(match.error for match in its):.0e} from ours")
    meant = [other for match in matches if (other := looks_like_another(match.tap, match.found.name))]
    return "; ".join([*parts, *([f"but its name looks like {meant[0]}"] if meant else [])])


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")  # a string of JSON is one of TOML


def _some(taps: Sequence[str]) -> str:
    return ", ".join(taps[:SHOWN]) + (", ..." if len(taps) > SHOWN else "")
