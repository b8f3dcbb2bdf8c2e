"""Rows of an embedding table that a dump shows were read: for the rules of indices.py, and token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.indices import Read, indices, rows_of
from xlmr_core.parity.grammar.rows_behind import rows_behind
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.local import WITHIN

COST = 2.41  # less than an arrangement of the tokens, which gives the same rows
MOST_SHOWN = 4
TABLES = {"embeddings.word": "ids", "embeddings.position": "positions"}


@dataclass(frozen=True)
class RowsRead:
    """Other rows for some tokens.

    Attributes:
        what: "id" or "position".
        rows: (text, token, the row that is read, the row that should be read).
        shape: Of the batch, (B, S).
        kept: The rows that are read as they should be.
    """

    what: str
    rows: tuple[tuple[int, int, int, int], ...]
    shape: tuple[int, int]
    kept: tuple[int, ...]

    def of(self, index: Tensor, rows: int) -> Tensor:
        """The index (B, S) with these rows; of another batch, as it is."""
        if (rows, index.shape[1]) != self.shape:
            return index
        new = index.clone()
        for text, token, read, _ in self.rows:
            new[text::rows, token] = read
        return new

    def __str__(self) -> str:
        runs = self._runs()
        if runs:
            words = [f"{abs(by)} too {'high' if by > 0 else 'low'} from {first} {to}" for first, to, by in runs]
            return f"the {self.what}s are {', '.join(words)}"
        words = [
            f"{read} in place of {right} at token {token} of text {text}" for text, token, read, right in self.rows
        ]
        more = len(words) - MOST_SHOWN
        return f"the {self.what}s are {', '.join(words[:MOST_SHOWN])}" + (f", and {more} more" if more > 0 else "")

    def _runs(self) -> list[tuple[int, str, int]]:
        """Neighbouring numbers that are off by as much: the first, to where, and how far. Few runs, or none."""
        off = sorted({(right, read - right) for _, _, read, right in self.rows} | {(right, 0) for right in self.kept})
        runs = [(by, [right for right, _ in its]) for by, its in groupby(off, key=lambda each: each[1])]
        moved = [(rights[0], "on" if rights is runs[-1][1] else f"to {rights[-1]}", by) for by, rights in runs if by]
        many = len(moved) > MOST_SHOWN or any(len(rights) == 1 for by, rights in runs if by)
        return [] if many else moved


def rows_read(target: Target, scene: Recorded) -> dict[str, Read]:
    """What the dump says of the rows that were read, for "ids" and "positions"."""
    if not target.tap.startswith("embeddings.") or target.tap not in scene.values:
        return {}
    right = {op: indices(op, None, scene.ids, scene.pad)[scene.real] for op in TABLES.values()}
    before = target.compared(scene.values[target.tap])
    if before is None:
        return {}
    moved = ((before - target.values).abs() > target.allowed).flatten(1).any(dim=1)
    if target.tap in TABLES:
        op, found = TABLES[target.tap], _found(target, scene, target.tap)
        return {op: Read(right[op], found, moved if found is None else found != right[op])}
    read = {"positions": Read(right["positions"], None, moved)}
    for name, op in TABLES.items():
        found = _found(target, scene, name)
        if found is not None:
            read[op] = Read(right[op], found, found != right[op])
    return read


def other_rows(target: Target, scene: Recorded, name: str) -> Iterator[Edit]:
    """The rows of a table that the dump shows, if all tokens have one.

    Args:
        target: The wrong tap.
        scene: The run.
        name: The tap of the table: the wrong one, or one before it.
    """
    term = scene.terms[name]
    found = _found(target, scene, name) if term.op == "rows" else None
    if found is None:
        return
    right = scene.evaluate(term.args[1])
    rows = tuple(
        (text, token, int(row), int(right[text, token]))
        for (text, token), row in zip(scene.real.nonzero().tolist(), found, strict=True)
        if int(row) != int(right[text, token])
    )
    if rows:
        moved = {(text, token) for text, token, _, _ in rows}
        kept = [int(right[text, token]) for text, token in scene.real.nonzero().tolist() if (text, token) not in moved]
        what = TABLES[name].removesuffix("s")
        read = RowsRead(what, rows, (scene.rows, right.shape[1]), tuple(sorted({*kept})))
        yield Edit((1,), Term("read", (term.args[1],), read), COST, str(read))


def _found(target: Target, scene: Recorded, name: str) -> Tensor | None:
    """The row that each token read, (T,)."""
    if name == target.tap:
        return rows_of(scene.weights[f"{name}_embeddings.weight"], target.values, WITHIN * target.allowed)
    return rows_behind(target, scene, name)
