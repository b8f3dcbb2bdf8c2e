"""Two sets of named tensors side by side: how far apart they are at each tap, and where they part first.

Only real tokens count (tap_values.py). A difference is judged by measured noise floors (floors.py), never by a
tolerance that somebody guessed.

    comparison = compare(expected, actual, real=batch.attention_mask.bool(), floors=floors)
    print(comparison)            # a table in reading order, the first divergent tap marked
    comparison.first_divergence  # the Row, or None
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from xlmr_core import notebook
from xlmr_core.formatting import aligned, dtype_name, json_number
from xlmr_core.parity.tap_values import FLOATS, TOP, TOP_IDS, Dump, elements, in_reading_order, with_reduced_logits

Verdict = Literal[
    "equal", "ok", "DIVERGES", "missing", "extra", "misshapen", "not finite", "wrong dtype", "no floor", "no values"
]

# Equally right implementations sum in different orders, and the largest of many rounding errors varies with the order:
# at one tap, by up to 2.5 times between the runs that `xlmr parity floor` makes (docs/trace-format.md has the figures).
FACTOR = 3.0
HEAD = ("tap", "shape", "max abs", "relative", "cosine", "allowed", "verdict")
SHOWN = 8  # wrong rows that a notebook shows unfolded


@dataclass(frozen=True)
class Floors:
    """What rounding alone does: for a dtype, the largest error against float64 at each tap, over real tokens.

    A floor holds for one model and one input. `factor` is how far above it a right implementation may lie.
    """

    errors: Mapping[str, Mapping[str, float]]  # "float32" -> tap -> error
    factor: float = FACTOR
    computed_in: str | None = None  # what the actual side computes in, where its dtype does not say it: "int8"

    def precisions(self, expected: torch.dtype, actual: torch.dtype) -> tuple[str, str]:
        """What the two sides compute in."""
        return dtype_name(expected), self.computed_in or dtype_name(actual)

    def allowed(self, tap: str, expected: torch.dtype, actual: torch.dtype) -> float | None:
        """How far apart two right runs in these dtypes may be: each errs on its own. None: nothing was measured."""
        floors = [self.errors.get(name, {}).get(tap) for name in self.precisions(expected, actual)]
        return None if None in floors else self.factor * sum(floor for floor in floors if floor is not None)


@dataclass(frozen=True)
class Row:
    """One tap. Numbers are over real tokens, and NaN where there is nothing to compare."""

    tap: str
    verdict: Verdict
    shape: tuple[int, ...] = ()
    max_abs: float = math.nan  # largest absolute difference
    relative: float = math.nan  # max_abs, in units of the largest expected value
    cosine: float = math.nan  # of all values as one vector
    allowed: float | None = None  # the largest difference that rounding explains; None: only equal bits pass
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong here. A tensor that nobody expected does no harm."""
        return self.verdict in ("equal", "ok", "extra")


@dataclass(frozen=True)
class Leaning:
    """A fault or a quantisation whose effect is in a dump, below the noise floors (leaning.py). Prints as a line."""

    name: str
    size: float  # of its effect: 0 none of it, 1 all
    error: float  # standard error of the size
    sigmas: float  # how far the size is from 0: as unlikely as so many standard deviations of a normal distribution
    candidates: int = 1  # that were tried
    ties: tuple[str, ...] = ()  # those that explain the dump nearly as well
    is_quantisation: bool = False

    def __str__(self) -> str:
        names = " or ".join((self.name, *self.ties))
        about = f"size {self.size:.3f} +- {self.error:.3f}, {self.sigmas:.0f} sigma among {self.candidates} candidates"
        return f"within noise, {'quantised:' if self.is_quantisation else 'but leaning towards'} {names} ({about})"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, in reading order. Prints as a table."""

    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()  # taps that were let go because the other model has no such module
    leanings: tuple[Leaning, ...] = ()  # of a dump that is within the floors everywhere

    @property
    def ok(self) -> bool:
        """Whether every expected tensor is there and within what rounding explains."""
        return all(row.ok for row in self.rows)

    @property
    def leans(self) -> bool:
        """Whether it leans towards a fault: a quantisation is none."""
        return any(not leaning.is_quantisation for leaning in self.leanings)

    @property
    def first_divergence(self) -> Row | None:
        """The first tap in reading order whose tensor is there and wrong."""
        return next((row for row in self.rows if not row.ok and row.verdict != "missing"), None)

    def __str__(self) -> str:
        first = self.first_divergence
        cells = [HEAD, *(_cells(row) for row in self.rows)]
        marks = ["  ", *("->" if row is first else "  " for row in self.rows)]
        lines = [f"{mark} {line}".rstrip() for mark, line in zip(marks, aligned(cells), strict=True)]
        skipped = [f"skipped, because the other model lacks their modules: {', '.join(self.skipped)}"]
        return "\n".join([*lines, *(skipped if self.skipped else []), self.summary, *map(str, self.leanings)])

    def _repr_html_(self) -> str:
        """In a notebook: the wrong rows, and all rows folded."""
        cells = [_cells(row) for row in self.rows]
        wrong = [row for row, shown in zip(cells, self.rows, strict=True) if not shown.ok]
        parts = [notebook.heading(self.summary)]
        if wrong:
            parts.append(notebook.table([HEAD, *wrong[:SHOWN]]))
        if len(wrong) > SHOWN:
            parts.append(notebook.paragraph(f"and {len(wrong) - SHOWN} more"))
        if self.skipped:
            parts.append(notebook.paragraph(f"skipped: {', '.join(self.skipped)}"))
        parts += [notebook.paragraph(leaning) for leaning in self.leanings]
        bold = [number for number, row in enumerate(self.rows, 1) if not row.ok]
        return "".join([*parts, notebook.folded(f"all {len(cells)} taps", notebook.table([HEAD, *cells], bold))])

    @property
    def summary(self) -> str:
        """One line: all is well, or where it first is not."""
        first = self.first_divergence
        missing = sum(row.verdict == "missing" for row in self.rows)
        also = f"; {missing} expected tensors are missing" if missing else ""
        if first is None:
            compared = sum(row.verdict in ("equal", "ok") for row in self.rows)
            return f"{'parity' if self.ok else 'incomplete'}: {compared} of {self._expected} taps agree{also}"
        wrong = sum(not row.ok and row.verdict != "missing" for row in self.rows)
        note = f" ({first.note})" if first.note else ""
        return f"first divergence: {first.tap}: {first.verdict}{note}; {wrong} of {self._expected} taps differ{also}"

    @property
    def _expected(self) -> int:
        return sum(row.verdict != "extra" for row in self.rows)

    def to_json(self) -> str:
        """The same for programs: ok, first_divergence, rows, skipped, leanings. NaN and infinity are null."""
        rows = [{key: json_number(value) for key, value in asdict(row).items()} for row in self.rows]
        first = self.first_divergence
        found = {"ok": self.ok, "first_divergence": first.tap if first else None, "rows": rows}
        found |= {"skipped": self.skipped, "leanings": [asdict(leaning) for leaning in self.leanings]}
        return json.dumps(found, indent=1)


def compare(expected: Dump, actual: Dump, *, real: Tensor, floors: Floors | None = None) -> Comparison:
    """Compares `actual` with `expected`, tap by tap.

    Args:
        expected: Tap -> tensor, batch first. Logits may be there as their top k.
        actual: The same of the other side. Whole logits, or their top k, are looked up at the ids that are expected.
        real: Boolean (B, S), True for real tokens. Padding is not compared.
        floors: What differences are judged by. Without them only equal values pass.

    Returns:
        A row for each tap in reading order. A tensor that is missing, extra, misshapen, not finite or not of a
        floating-point type has a row that says so.

    Raises:
        ValueError: `real` is not a boolean (B, S) or is False everywhere, or nothing is expected.
    """
    if real.dtype != torch.bool or real.dim() != 2:
        raise ValueError(f"real must be boolean with shape (batch, sequence), not {real.dtype} {tuple(real.shape)}")
    if not real.any():
        raise ValueError("real is False everywhere: no value would be compared. It must be True for some token")
    if not expected.keys() - {TOP_IDS}:
        raise ValueError("nothing is expected: there is no tensor to compare with")
    actual = with_reduced_logits(actual, expected.get(TOP_IDS), expected.get(TOP))
    rows: list[Row] = []
    for tap in in_reading_order([*expected, *(name for name in actual if name not in expected)]):
        if tap == TOP_IDS:
            continue
        if tap not in expected:
            rows.append(Row(tap, "extra", tuple(actual[tap].shape)))
        elif tap not in actual:
            rows.append(Row(tap, "missing", tuple(expected[tap].shape)))
        else:
            rows.append(_row(tap, expected[tap], actual[tap], real, floors))
    return Comparison(tuple(rows))


def _row(tap: str, expected: Tensor, actual: Tensor, real: Tensor, floors: Floors | None) -> Row:
    shape = tuple(expected.shape)
    if actual.shape != expected.shape:
        return Row(tap, "misshapen", shape, note=f"expected {shape}, got {tuple(actual.shape)}")
    if actual.dtype not in FLOATS:
        return Row(
            tap, "wrong dtype", shape, note=f"expected {dtype_name(expected.dtype)}, got {dtype_name(actual.dtype)}"
        )
    theirs, ours = elements(tap, actual, real), elements(tap, expected, real)
    allowed = floors.allowed(tap, expected.dtype, actual.dtype) if floors else None
    difference = (theirs - ours).masked_fill(theirs == ours, 0)  # infinity equals itself
    if difference.numel() == 0:
        return Row(tap, "no values", shape, note="no value of it belongs to a real token")
    odd = int((~difference.isfinite()).sum())
    if odd:
        note = f"{odd} of {difference.numel()} values are NaN or infinite"
        return Row(tap, "not finite", shape, math.inf, math.inf, math.nan, allowed, note)
    max_abs = _largest(difference)
    scale = _largest(ours)
    relative = max_abs / scale if scale else (math.inf if max_abs else 0.0)
    cosine = _cosine(theirs, ours)
    if max_abs == 0:
        return Row(tap, "equal", shape, 0.0, 0.0, cosine, allowed)
    if floors and allowed is None:
        note = f"no floor was measured here for {' and '.join(floors.precisions(expected.dtype, actual.dtype))}"
        return Row(tap, "no floor", shape, max_abs, relative, cosine, None, note)
    verdict = "ok" if allowed is not None and max_abs <= allowed else "DIVERGES"
    return Row(tap, verdict, shape, max_abs, relative, cosine, allowed)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms else math.nan


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.tap,
        "x".join(map(str, row.shape)) or "-",
        *_numbers(row),
        row.verdict + (f": {row.note}" if row.note else ""),
    )


def _numbers(row: Row) -> Iterator[str]:
    for value in (row.max_abs, row.relative):
        yield "-" if math.isnan(value) else f"{value:.2e}"
    yield "-" if math.isnan(row.cosine) else f"{row.cosine:.6f}"
    yield "-" if row.allowed is None else f"{row.allowed:.2e}"
