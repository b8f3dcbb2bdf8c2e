"""Small pictures as SVG text: strips of cells, heat maps, bars, curves. For pages of the site and for files.

Colours are those of the page around: `currentColor` for text, and the accent of the theme for what is drawn. A file has
no page around it, so `as_file` gives it a white ground.
"""

from collections.abc import Sequence
from html import escape

FONT = "font-family='ui-sans-serif, system-ui, sans-serif'"
INK = "var(--md-accent-fg-color, #526cfe)"
CELL = 24  # height of a cell, and the side of a square one
DASHES = ("", "7 3", "2 3")  # of the lines of a chart, in order
EDGE = 10  # around the picture of a file
LETTER = 7  # width of a letter of 12 pixels, about


def svg(parts: Sequence[str], width: float, height: float, label: str) -> str:
    """A picture of these parts. `label` says in words what it shows."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(label)}" {FONT} font-size="12" fill="currentColor">'
        + "".join(parts)
        + "</svg>"
    )


def as_file(picture: str) -> str:
    """The same picture for a file, which browsers draw without the page's colours."""
    width, height = _size(picture)
    head = picture.partition(">")[0].replace(
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"',
        f'viewBox="{-EDGE} {-EDGE} {width + 2 * EDGE:.0f} {height + 2 * EDGE:.0f}" width="{width + 2 * EDGE:.0f}"',
    )
    ground = f'<rect x="{-EDGE}" y="{-EDGE}" width="100%" height="100%" fill="#fff"/>'
    return f'{head} style="color:#222">{ground}{_inside(picture)}</svg>\n'


def text(x: float, y: float, words: str, *, anchor: str = "middle", size: int = 12, turned: bool = False) -> str:
    """Words at a point: the middle of them, their start or their end. `turned`: upwards."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{turn}>{escape(words)}</text>'


def cell(x: float, y: float, width: float, height: float, weight: float) -> str:
    """A rectangle with as much colour as `weight`, from 0 to 1."""
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{INK}" fill-opacity="{weight:.2f}"/>'


def line(points: Sequence[tuple[float, float]], *, faint: bool = False, dashes: str = "") -> str:
    """A line through points. `dashes` is as in SVG: the lengths of a dash and of the gap after it."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = 'stroke="currentColor" stroke-opacity="0.35"' if faint else f'stroke="{INK}" stroke-width="2"'
    stroke += f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" {stroke}/>'


def moved(part: str, x: float, y: float) -> str:
    """The same at another place."""
    return f'<g transform="translate({x:.1f} {y:.1f})">{part}</g>'


def width_of(words: Sequence[str]) -> float:
    """The width of the longest of several words."""
    return max(map(len, words), default=0) * LETTER


def strip(rows: Sequence[tuple[str, Sequence[str]]], faint: Sequence[bool], label: str) -> str:
    """A table of cells: each row has a name and a word for each column. Faint columns are those without meaning."""
    names = width_of([name for name, _ in rows]) + 10
    widths = [max(CELL, width_of(column) + 8) for column in zip(*(words for _, words in rows), strict=True)]
    parts: list[str] = []
    for number, (name, words) in enumerate(rows):
        y, x = number * (CELL + 2), names
        parts.append(text(names - 6, y + 16, name, anchor="end"))
        for word, width, is_faint in zip(words, widths, faint, strict=True):
            parts.append(cell(x, y, width - 2, CELL, 0.06 if is_faint else 0.2))
            parts.append(text(x + width / 2 - 1, y + 16, word))
            x += width
    return svg(parts, names + sum(widths), len(rows) * (CELL + 2), label)


def heat_map(
    weights: Sequence[Sequence[float]],
    label: str,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    size: float = CELL,
    width: float = 0,
    title: str = "",
) -> str:
    """A square for each weight, from 0 to 1. Names of rows are on the left, those of columns above and turned.

    With a `width` it is a rectangle of that width, `size` high.
    """
    width = width or size
    left, top = width_of(rows) + 6, width_of(columns) + (24 if title else 6)
    parts = [text(0, 12, title, anchor="start")] if title else []
    parts += [text(left - 4, top + (i + 0.5) * size + 4, word, anchor="end") for i, word in enumerate(rows)]
    parts += [
        text(left + (j + 0.5) * width + 4, top - 4, word, anchor="start", turned=True) for j, word in enumerate(columns)
    ]
    for i, row in enumerate(weights):
        y = top + i * size
        parts += [cell(left + j * width, y, width - 1, size - 1, 0.04 + 0.96 * w) for j, w in enumerate(row)]
    return svg(parts, max(left + len(weights[0]) * width, len(title) * LETTER), top + len(weights) * size, label)


def bars(values: Sequence[tuple[str, float, str]], label: str, *, width: float = 200) -> str:
    """A bar for each (name, value, words after it); the longest has the width."""
    names = width_of([name for name, _, _ in values]) + 8
    largest = max(value for _, value, _ in values)
    parts: list[str] = []
    for number, (name, value, words) in enumerate(values):
        y, length = number * CELL, value / largest * width
        parts.append(text(names - 6, y + 15, name, anchor="end"))
        parts.append(cell(names, y + 3, length, CELL - 6, 0.6))
        parts.append(text(names + length + 5, y + 15, words, anchor="start"))
    after = width_of([words for _, _, words in values]) + 10
    return svg(parts, names + width + after, len(values) * CELL, label)


def chart(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    label: str,
    *,
    dots: Sequence[tuple[float, float]] = (),
    across: str = "",
    up: str = "",
    width: float = 320,
    height: float = 180,
) -> str:
    """Lines over numbers. The name of each is at its end; `across` and `up` name the axes."""
    points = [*(point for _, line_of in series for point in line_of), *dots]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    margin = 44

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return margin + (x - left) / (right - left) * width, 10 + (high - y) / (high - low) * height

    foot = 10 + height
    parts = [line([(margin, 10), (margin, foot), (margin + width, foot)], faint=True)]
    parts += [text(margin - 4, place((left, y))[1] + 4, f"{y:.3g}", anchor="end") for y in (low, high)]
    parts += [text(place((x, low))[0], foot + 15, f"{x:.3g}") for x in (left, right)]
    parts += [text(margin + width / 2, foot + 15, across), text(12, 10 + height / 2, up, turned=True)]
    for (_, line_of), dashes in zip(series, DASHES, strict=False):
        parts.append(line([place(point) for point in line_of], dashes=dashes))
    below = 0.0
    for (x, y), name in sorted(((place(line_of[-1]), name) for name, line_of in series), key=lambda end: end[0][1]):
        below = max(y + 4, below + 13)  # names that would lie on one another are moved apart
        parts.append(text(x + 4, below, name, anchor="start"))
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor" fill-opacity="0.5"/>' for x, y in map(place, dots)
    ]
    return svg(parts, margin + width + width_of([name for name, _ in series]) + 12, foot + 22, label)


def side_by_side(pictures: Sequence[str], label: str, *, columns: int, gap: float = 16) -> str:
    """Pictures in a grid, whose cells are as large as the largest of them."""
    sizes = [_size(picture) for picture in pictures]
    width, height = max(w for w, _ in sizes) + gap, max(h for _, h in sizes) + gap
    parts = [moved(_inside(part), i % columns * width, i // columns * height) for i, part in enumerate(pictures)]
    lines = -(-len(pictures) // columns)
    return svg(parts, min(columns, len(pictures)) * width - gap, lines * height - gap, label)


def stacked(pictures: Sequence[str], label: str, *, gap: float = 12) -> str:
    """Pictures below one another."""
    return side_by_side(pictures, label, columns=1, gap=gap)


def _size(picture: str) -> tuple[float, float]:
    _, _, width, height = picture.partition('viewBox="')[2].partition('"')[0].split()
    return float(width), float(height)


def _inside(picture: str) -> str:
    return picture.partition(">")[2].removesuffix("</svg>")
