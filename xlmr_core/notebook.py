"""Parts of HTML for notebooks: `_repr_html_` of results is made of them.

They have no colour, style sheet, script or address of their own: the light or dark theme of the notebook applies, and
nothing is loaded. Every text is escaped, because names and notes come from files that anybody may have written.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence


def text(value: object) -> str:
    """The value as escaped text. What UTF-8 cannot have, and what does not print, becomes its escape, such as \\x00."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return html.escape(shown, quote=True)


def paragraph(*lines: object) -> str:
    """Lines of text."""
    return f"<p>{'<br>'.join(map(text, lines))}</p>"


def heading(value: object) -> str:
    """One bold line."""
    return f"<p><b>{text(value)}</b></p>"


def table(rows: Sequence[Sequence[object]], bold: Collection[int] = ()) -> str:
    """A table.

    Args:
        rows: the cells of each row. The first row is the head.
        bold: the numbers of the rows to be set in bold; the head is 0.
    """
    head, *body = rows
    lines = ["<tr>" + "".join(f'<th style="text-align: left">{text(cell)}</th>' for cell in head) + "</tr>"]
    for number, row in enumerate(body, 1):
        weight = "; font-weight: bold" if number in bold else ""
        cells = "".join(f'<td style="text-align: left{weight}">{text(cell)}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "<table>" + "".join(lines) + "</table>"


def folded(title: object, content: str) -> str:
    """Content that a click opens.

    Args:
        title: text.
        content: HTML made by this module.
    """
    return f"<details><summary>{text(title)}</summary>{content}</details>"
