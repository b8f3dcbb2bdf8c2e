"""Rows of an embedding table that a dump shows were read, token by token, where no rule of indices.py gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.indices import rows_of
from xlmr_core.parity.grammar.target import TABLES, Target
from xlmr_core.parity.grammar.terms import Term

COST = 2.45
MOST_SHOWN = 4


@dataclass(frozen=True)
class RowsRead:
    """Other rows for some tokens.

    Attributes:
        what: "id" or "position".
        rows: (text, token, the row that is read, the row that should be read).
        shape: Of the batch, (B, S).
    """

    what: str
    rows: tuple[tuple[int, int, int, int], ...]
    shape: tuple[int, int]

    def of(self, index: Tensor, rows: int) -> Tensor:
        """The index (B, S) with these rows; of another batch, as it is."""
        if (rows, index.shape[1]) != self.shape:
            return index
        new = index.clone()
        for text, token, read, _ in self.rows:
            new[text::rows, token] = read
        return new

    def __str__(self) -> str:
        words = [
            f"{read} in place of {right} at token {token} of text {text}" for text, token, read, right in self.rows
        ]
        more = len(words) - MOST_SHOWN
        return f"the {self.what}s are {', '.join(words[:MOST_SHOWN])}" + (f", and {more} more" if more > 0 else "")


def other_rows(target: Target, scene: Recorded) -> Iterator[Edit]:
    """The rows that the dump has at the tap of a table, if all tokens have one.

    Args:
        target: The wrong tap.
        scene: The run.
    """
    term, op = scene.terms[target.tap], TABLES.get(target.tap)
    if op is None or term.op != "rows":
        return
    found = rows_of(scene.evaluate(term.args[0]), target.values, target.allowed)
    if found is None:
        return
    right = scene.evaluate(term.args[1])
    rows = tuple(
        (text, token, int(row), int(right[text, token]))
        for (text, token), row in zip(scene.real.nonzero().tolist(), found, strict=True)
        if int(row) != int(right[text, token])
    )
    if rows:
        read = RowsRead(op.removesuffix("s"), rows, (scene.rows, right.shape[1]))
        yield Edit((1,), Term("read", (term.args[1],), read), COST, str(read))
