"""What a dump calls our taps: a map of names to fill in, and hints where names or axes do not fit.

Only the names and the shapes in a file are read, not the numbers.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from itertools import permutations
from typing import Any

import torch

from xlmr_core.parity.axes import AXES
from xlmr_core.parity.compare import Comparison
from xlmr_core.parity.dump_files import Shape
from xlmr_core.parity.foreign import fitted
from xlmr_core.parity.formats import NEAR_LENGTH, shortened
from xlmr_core.parity.tap_values import LOGITS, TOP_IDS, shape_of
from xlmr_core.parity.trace import INPUTS, Trace

MOST_CANDIDATES = 8
SHOWN = 3  # names in a hint


# ---- axes ------------------------------------------------------------------------------------------------------------


def axes_that_fit(tap: str, shape: Shape, trace: Trace) -> list[str]:
    """The orders of axes in which a tensor of this shape can be the tap: "B N S D". The nearest to ours comes first.

    Args:
        tap: A tap of the trace.
        shape: Of the tensor in the dump.
        trace: Says how many texts, tokens, heads and features there are.

    Returns:
        The letters of the axes, as a map of names has them.
    """
    letters = shape_of(tap)
    if letters is None:
        return []
    ours = AXES.get(letters, letters.strip("()").replace(",", "").replace("*", "B S")).split()
    sizes = _sizes(tap, ours, trace)
    forms = [ours, [*ours[:-2], "H"]] if ours[-2:] == ["N", "D"] else [ours]
    forms += [["T", *form[2:]] for form in forms if form[:2] == ["B", "S"]]
    forms += [form[1:] for form in forms if form[0] == "B" and sizes["B"] == 1]
    fitting = [
        " ".join(order)
        for form in forms
        if len(form) == len(shape)
        for order in permutations(form)
        if all(sizes[letter] == size for letter, size in zip(order, shape, strict=True))
    ]
    return list(dict.fromkeys(fitting))


def _sizes(tap: str, ours: list[str], trace: Trace) -> dict[str, int]:
    texts, tokens = trace.real.shape
    config = trace.config
    known = {"B": texts, "S": tokens, "Q": tokens, "K": tokens, "T": int(trace.real.sum())}
    known |= {"N": config.num_attention_heads, "D": config.head_dim, "H": config.hidden_size}
    return dict(zip(ours, _shape(tap, trace), strict=False)) | {ours[-1]: _shape(tap, trace)[-1]} | known


def _shape(tap: str, trace: Trace) -> Shape:
    if tap == LOGITS and TOP_IDS in trace.tensors:
        return (*trace.real.shape, trace.config.vocab_size)
    return tuple(trace.tensors[tap].shape)


def _needs_no_axes(tap: str, shape: Shape, trace: Trace) -> bool:
    """Whether `fitted` reads a tensor of this shape as it is."""
    wanted = _shape(tap, trace)
    per_token = math.prod(wanted[2:])
    if math.prod(shape) not in (math.prod(wanted), int(trace.real.sum()) * per_token):
        return False
    return fitted({tap: torch.empty(shape)}, trace.tensors, trace.config, trace.real)[tap].shape == wanted


# ---- a map to fill in ------------------------------------------------------------------------------------------------


def template(trace: Trace, shapes: Mapping[str, Shape], about: str) -> str:
    """A map of names in TOML, every entry of it in a comment.

    Args:
        trace: What a dump is to be compared with.
        shapes: The tensors of the dump; none where there is no dump yet.
        about: The files that it is made for, in words.

    Returns:
        The text: for each tap its shape, and an entry for each tensor of the dump that could be it by its shape, the
        likeliest name first.
    """
    config, (texts, tokens) = trace.config, trace.real.shape
    lines = [
        f"# A map of names for `xlmr parity check --names` and `diagnose --names`: {about}.",
        "# On the left our taps, on the right the port's names. {i} is the number of a layer, from 0.",
        '# Take the "#" from one line of each tap that the port has. A tap without a line counts as missing, unless',
        "# the dump has it under our name, or the check is --partial.",
        f"# B = {texts} texts, S = {tokens} tokens (T = {int(trace.real.sum())} without padding), H = N x D = "
        f"{config.hidden_size}, N = {config.num_attention_heads} heads, D = {config.head_dim}",
        "",
        "[names]",
    ]
    layers = config.num_hidden_layers
    named = {name: shape for name, shape in shapes.items() if name not in (*INPUTS, *trace.taps)}
    patterns = _patterns(named, layers)
    for tap in _patterns({tap: _shape(tap, trace) for tap in trace.taps}, layers, ours=True):
        first = tap.replace("{i}", "0")
        shape = _shape(first, trace)
        lines += ["", f"# {tap}: {shape_of(first)}, {_times(shape)}"]
        if first in shapes:
            lines.append("# is in the dump under this name")
            continue
        entries = [
            _entry(tap, pattern, found, trace)
            for pattern, found in sorted(patterns.items(), key=lambda item: -_likeness(tap, item[0]))
            if ("{i}" in tap) == ("{i}" in pattern)
        ]
        entries = [entry for entry in entries if entry] or ([] if shapes else [f'# {_quoted(tap)} = ""'])
        lines += entries[:MOST_CANDIDATES]
        if len(entries) > MOST_CANDIDATES:
            lines.append(f"# ... and {len(entries) - MOST_CANDIDATES} more tensors of these sizes")
        if not entries:
            lines.append("# nothing in the dump has such a shape")
    return "\n".join(lines) + "\n"


def _entry(tap: str, name: str, shape: Shape, trace: Trace) -> str | None:
    first = tap.replace("{i}", "0")
    if _needs_no_axes(first, shape, trace):
        return f"# {_quoted(tap)} = {_quoted(name)}  # {_times(shape)}"
    axes = axes_that_fit(first, shape, trace)
    if not axes:
        return None
    others = f", or {' or '.join(axes[1:SHOWN])}" if axes[1:] else ""
    return f'# {_quoted(tap)} = {{ name = {_quoted(name)}, axes = "{axes[0]}" }}  # {_times(shape)}{others}'


def _patterns(shapes: Mapping[str, Shape], layers: int, *, ours: bool = False) -> dict[str, Shape]:
    """The names, with {i} for the number of a layer where layers have such a tensor, all of one shape.

    A dump may hold some layers only: the first, or any two of them, are enough to see what the number is.
    """
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        numbers = list(re.finditer(r"(?<!\d)\d+(?!\d)", name))[: 1 if ours else None]
        candidates = [f"{name[: n.start()]}{{i}}{name[n.end() :]}" for n in numbers]
        found[next((c for c in candidates if _is_family(c, shape, shapes, layers, ours)), name)] = shape
    return found


def _is_family(pattern: str, shape: Shape, shapes: Mapping[str, Shape], layers: int, every: bool) -> bool:
    names = [pattern.replace("{i}", str(i)) for i in range(layers)]
    there = [name for name in names if name in shapes]
    enough = there == names if every else len(there) > 1 or there == names[:1]
    return enough and all(shapes[name] == shape for name in there)


def _likeness(tap: str, name: str) -> float:
    return SequenceMatcher(None, tap.lower(), name[:NEAR_LENGTH].lower()).ratio()


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")  # a string of JSON is one of TOML


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"


# ---- hints -----------------------------------------------------------------------------------------------------------


def hints(trace: Trace, comparison: Comparison, shapes: Mapping[str, Shape], names: Mapping[str, Any]) -> list[str]:
    """What to do where a dump and the trace have different names or shapes.

    Args:
        trace: What the dump was compared with.
        comparison: Of the two.
        shapes: Every tensor in the file of the dump, by its own name.
        names: The map of names that was used; empty where there is none.

    Returns:
        A sentence or two for each thing to do.
    """
    layers = trace.config.num_hidden_layers
    called = dict(_called(names, layers))
    with_axes = dict(_called({tap: e for tap, e in names.items() if not isinstance(e, str) and e.get("axes")}, layers))
    missing = [row.tap for row in comparison.rows if row.verdict == "missing"]
    unused = [name for name in shapes if name not in (*INPUTS, *trace.tensors, *trace.taps, *called.values())]
    found: list[str] = []
    if missing and unused:
        found.append(
            f"{len(missing)} taps are missing ({_some(missing)}), and {len(unused)} tensors of the dump have no name "
            f"of ours ({_some(unused)}). --names takes a map that says which is which; `xlmr parity names TRACE DUMP "
            "-o names.toml` writes one to fill in"
        )
    for row in [row for row in comparison.rows if row.verdict == "misshapen"][:SHOWN]:
        theirs = called.get(row.tap, row.tap)
        if theirs in shapes:
            axes = axes_that_fit(row.tap, shapes[theirs], trace) if row.tap in trace.tensors else []
            advice = (
                f'say its axes in the map of names: axes = "{axes[0]}"' if axes else "no order of axes makes it fit"
            )
            found.append(f"{row.tap}: {shortened(theirs)} has shape {shapes[theirs]} in the file; {advice}")
    first = comparison.first_divergence
    if first is not None and first.verdict == "DIVERGES" and first.tap in trace.tensors and first.tap not in with_axes:
        theirs = called.get(first.tap, first.tap)
        shape = shapes.get(theirs, first.shape)
        axes = axes_that_fit(first.tap, shape, trace)
        if shape != first.shape and len(axes) > 1:
            found.append(
                f"{first.tap}: {shortened(theirs)} has shape {shape} in the file, which {' and '.join(axes)} fit: "
                "say in the map of names which of these its axes are"
            )
    return found


def _called(names: Mapping[str, Any], layers: int) -> Iterator[tuple[str, str]]:
    for tap, entry in names.items():
        theirs = entry if isinstance(entry, str) else entry["name"]
        for i in range(layers if "{i}" in tap else 1):
            yield tap.replace("{i}", str(i)), theirs.replace("{i}", str(i))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(shortened, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
