"""A picture of a comparison: the largest error at each tap, in reading order. Needs matplotlib (the extra `plot`)."""

import math
from collections.abc import Sequence
from pathlib import Path

from xlmr_core.parity.compare import Comparison, Row
from xlmr_core.parity.gradients import LOSS

AGREES, DIFFERS, ALLOWED = "#1f6feb", "#c62828", "#777777"
FORMATS = (".svg", ".png", ".pdf")


def plot_error_by_depth(comparison: Comparison, path: Path, *, format: str) -> None:
    """Draws the largest error at each tap on a logarithmic scale, beside what rounding explains, and writes it.

    An error of zero is a hollow dot at the lower edge. A tensor that is missing, misshapen or not finite is a cross at
    the upper edge. The first divergent tap is named.

    Args:
        comparison: What `compare` found.
        path: The file to write.
        format: "svg", "png" or "pdf".

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a plot needs matplotlib: pip install 'xlmr-core[plot]'") from error

    rows = [row for row in comparison.rows if row.verdict != "extra"]
    bottom, top = _limits(rows)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot(yscale="log", ylim=(bottom, top), xlim=(-1, len(rows)), ylabel="largest absolute error")
    for ok, colour, label in ((True, AGREES, "agrees to rounding"), (False, DIFFERS, "differs")):
        chosen = [(i, row.max_abs) for i, row in enumerate(rows) if row.ok == ok]
        finite = [(i, error) for i, error in chosen if 0 < error < math.inf]
        axes.scatter(*_columns(finite), s=14, color=colour, label=label, zorder=3)
        zero, other = [(i, bottom) for i, e in chosen if e == 0], [(i, top) for i, e in chosen if not e < math.inf]
        axes.scatter(*_columns(zero), s=18, facecolors="white", edgecolors=colour, clip_on=False, zorder=3)
        axes.scatter(*_columns(other), s=24, color=colour, marker="x", clip_on=False, zorder=3)
    allowed = [(i, row.allowed) for i, row in enumerate(rows) if row.allowed]
    axes.plot(*_columns(allowed), color=ALLOWED, linewidth=1, drawstyle="steps-mid", label="explained by rounding")
    first = comparison.first_divergence
    if first is not None:
        height = first.max_abs if 0 < first.max_abs < math.inf else top
        place = (rows.index(first), height)
        axes.annotate(
            first.tap,
            place,
            xytext=(0, 28 if height < top / 10 else -28),
            textcoords="offset points",
            color=DIFFERS,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": DIFFERS},
        )
    starts = [i for i, row in enumerate(rows) if not i or _section(row.tap) != _section(rows[i - 1].tap)]
    for start in starts:
        axes.axvline(start - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    axes.set_xticks(starts, [_section(rows[i].tap) for i in starts], rotation=35, ha="right", fontsize=8)
    axes.set_title(comparison.summary, loc="left", fontsize=10)
    axes.legend(loc="best", fontsize=8, frameon=False)
    figure.savefig(path, format=format, dpi=150)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _section(tap: str) -> str:
    """ "layer 3", or the part of the model below or above the layers."""
    parts = tap.split(".")
    if parts[0] == "layers" and len(parts) > 1:
        return f"layer {parts[1]}"
    return "lm_head" if tap == LOSS else parts[0]


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Powers of ten below and above every error and every allowance."""
    values = [value for row in rows for value in (row.max_abs, row.allowed or 0.0) if 0 < value < math.inf]
    if not values:
        return 1e-9, 1.0
    return 10.0 ** (math.floor(math.log10(min(values))) - 1), 10.0 ** (math.ceil(math.log10(max(values))) + 1)
