"""Values as text: tables, names of dtypes, numbers in JSON."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def aligned(rows: Sequence[Sequence[str]], width_of: Callable[[str], int] = len) -> list[str]:
    """The rows of a table as lines, their columns padded to one width and two spaces apart.

    Args:
        rows: The cells of each row. All rows have the same number of cells.
        width_of: The columns that a cell takes on a terminal. Default: one for each character.

    Returns:
        One line for each row, without spaces at its end.
    """
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell + " " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def dtype_name(dtype: "torch.dtype | str") -> str:
    """The name of a dtype as config.json has it: "float32". A name stays as it is."""
    return str(dtype).removeprefix("torch.")


def json_number(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
