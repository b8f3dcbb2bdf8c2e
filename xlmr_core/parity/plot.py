"""A picture of the error by depth: plain SVG, written by hand, so that no drawing library is needed."""

import math
from html import escape

from xlmr_core.parity.compare import Comparison, Row
from xlmr_core.parity.gradients import LOSS

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 90  # margins
LABEL_ROOM = 14
COLOURS = {True: "#1f6feb", False: "#c62828"}  # right, wrong


def error_by_depth(comparison: Comparison) -> str:
    """An SVG: a dot for the largest error at each site, in reading order, on a logarithmic scale.

    The grey line is what rounding explains. A dot at the lower edge is an error of zero, one at the upper edge a tensor
    that is missing, misshapen or not finite.
    """
    rows = [row for row in comparison.rows if row.verdict != "extra"]
    low, high = _decades(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20">{escape(comparison.summary)}</text>',
    ]
    for decade in range(low, high + 1):
        y = _y(10.0**decade, low, high)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
    parts += _section_marks(rows)
    floor = [f"{_x(i, rows):.1f},{_y(row.allowed, low, high):.1f}" for i, row in enumerate(rows) if row.allowed]
    parts.append(f'<polyline points="{" ".join(floor)}" fill="none" stroke="#888" stroke-width="1.5"/>')
    for i, row in enumerate(rows):
        title = escape(f"{row.site}: {row.max_abs:.3g} ({row.verdict})")
        x, y = _x(i, rows), _y(row.max_abs, low, high)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[row.ok]}"><title>{title}</title></circle>'
        )
    first = comparison.first_divergence
    if first is not None:
        x, y = _x(rows.index(first), rows), _y(first.max_abs, low, high)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{COLOURS[False]}" stroke-width="2"/>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">largest error</text>')
    legend = "blue: within rounding; red: not; grey line: what rounding explains; ring: the first to differ"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}" fill="#555">{legend}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _section_marks(rows: list[Row]) -> list[str]:
    """A line where each layer, or what stands around the layers, begins, and a label where there is room."""
    parts: list[str] = []
    sections = [_section(row.site) for row in rows]
    last_label = -math.inf
    for i, section in enumerate(sections):
        x = _x(i, rows)
        if i and section == sections[i - 1]:
            continue
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        if x - last_label >= LABEL_ROOM:
            last_label = x
            turn = f"translate({x + 4:.1f} {HEIGHT - BOTTOM + 14}) rotate(-35)"
            parts.append(f'<text transform="{turn}" text-anchor="end">{escape(section)}</text>')
    return parts


def _section(site: str) -> str:
    """ "layer 3", or what stands around the layers."""
    parts = site.split(".")
    if parts[0] == "layers" and len(parts) > 1:
        return f"layer {parts[1]}"
    return "lm_head" if site == LOSS else parts[0]


def _decades(rows: list[Row]) -> tuple[int, int]:
    """The powers of ten that hold every error and every floor."""
    values = [value for row in rows for value in (row.max_abs, row.allowed or 0.0) if 0 < value < math.inf]
    if not values:
        return -9, 0
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1


def _x(index: int, rows: list[Row]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / len(rows)


def _y(value: float, low: int, high: int) -> float:
    bottom = HEIGHT - BOTTOM
    if value == 0:
        return bottom
    if not math.isfinite(value):
        return TOP
    return bottom - (bottom - TOP) * (math.log10(value) - low) / (high - low)
