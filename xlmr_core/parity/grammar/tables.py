"""Embedding tables that are read otherwise: split over devices by rows, or interpolated to another length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from torch import Tensor
from torch.nn import functional as F

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.terms import Term, add

DEVICES = (2, 4, 8)
FACTORS = (0.5, 2, 4, 8, 16)


OTHERS = {  # of ids that a device does not have
    "from {} to below {}, the first of these for others": "its first row",
    "from {} to below {}, the nearest of these for others": "its nearest row",
}


def split_tables(path: tuple[int, ...], rows: Term, size: int) -> Iterator[Edit]:
    """Each device has some rows of the table, and adds one of them for every id that it does not have.

    Args:
        path: Of the term that reads the rows.
        rows: That term.
        size: The number of rows.
    """
    table, ids = rows.args
    for count in DEVICES:
        for most in sorted({size // count, -(-size // count)}):
            bounds = [min(most * device, size) for device in range(count)] + [size]
            for kind, words in OTHERS.items():
                parts = [replace(rows, args=(table, replace(ids, value=(kind, *pair)))) for pair in pairwise(bounds)]
                says = (
                    f"{table.value} is split over {count} devices, and each adds {words} for ids that it does not have"
                )
                yield Edit(path, add(*parts), 1.6, says)


def stretched_tables(path: tuple[int, ...], rows: Term) -> Iterator[Edit]:
    """The table is interpolated to another length."""
    table, places = rows.args
    for factor in FACTORS:
        for aligned in (False, True):
            new = replace(rows, args=(Term("stretched", (table,), (factor, aligned)), places))
            ends = "first and last rows kept" if aligned else "centres of rows aligned"
            yield Edit(path, new, 1.6, f"{table.value} is interpolated to {factor:g} times its length, {ends}")


def stretched(table: Tensor, factor: float, aligned: bool) -> Tensor:
    """A table (V, H) with `factor` times as many rows, by linear interpolation."""
    rows = int(len(table) * factor)
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=aligned)[0].T
