"""How a text became ids, as a table on a terminal. A reader of the tokenizer may skip this file."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xlmr_core import notebook
from xlmr_core.formatting import aligned

if TYPE_CHECKING:
    from xlmr_core.tokenizer import Token


@dataclass(frozen=True)
class Explanation:
    """How a text becomes ids. `str()` of it is a table.

    Args:
        text: the text.
        normalized: the text as SentencePiece sees it: NFKC, single spaces, each spelled "▁".
        tokens: the tokens, `<s>` and `</s>` included.
    """

    text: str
    normalized: str
    tokens: list[Token]

    def __str__(self) -> str:
        rows = [[_printable(cell) for cell in row] for row in self._rows()]
        lines = [f"text        {_printable(self.text)}", f"normalised  {_printable(self.normalized)}", ""]
        return "\n".join(lines + aligned(rows, _display_width))

    def _repr_html_(self) -> str:
        """In a notebook."""
        lines = notebook.paragraph(f"text: {self.text}", f"normalised: {self.normalized}")
        return lines + notebook.table(self._rows())

    def _rows(self) -> list[list[str]]:
        rows = [["piece", "SentencePiece id", "id", "start", "end", "text"]]
        for piece, spm_id, number, start, end in self.tokens:
            spm_number = "-" if spm_id is None else str(spm_id)
            rows.append([piece, spm_number, str(number), str(start), str(end), self.text[start:end]])
        return rows


def _printable(text: str) -> str:
    """The text on one line: control characters and line ends become their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _display_width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining marks none."""
    widths = {"W": 2, "F": 2}
    marks = ("Mn", "Me")
    return sum(0 if unicodedata.category(c) in marks else widths.get(unicodedata.east_asian_width(c), 1) for c in text)
