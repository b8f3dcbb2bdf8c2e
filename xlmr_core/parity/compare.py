"""Two sets of named tensors side by side: how far apart they are at each tap, and where they part first.

A dump maps the name of a tap to its tensor, batch first, as `model.capture` fills it. Only real tokens count: padding
holds junk that differs between implementations that are both right. A difference is judged by measured noise floors
(floors.py), never by a tolerance that somebody guessed.

    comparison = compare(expected, actual, real=batch.attention_mask.bool(), floors=floors)
    print(comparison)            # a table in reading order, the first divergent tap marked
    comparison.first_divergence  # the Row, or None
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from xlmr_core import notebook
from xlmr_core.formatting import aligned, dtype_name, json_number
from xlmr_core.heads import model_classes
from xlmr_core.spec import Tap
from xlmr_core.taps import EMBEDDINGS, FINAL_NORM, POOLER, POST_NORM_LAYER

Dump = Mapping[str, Tensor]
Verdict = Literal[
    "equal", "ok", "DIVERGES", "missing", "extra", "misshapen", "not finite", "wrong dtype", "no floor", "no values"
]

# Equally right implementations sum in different orders, and the largest of many rounding errors varies with the order:
# at one tap, by up to 2.5 times between the runs that `xlmr parity floor` makes (docs/trace-format.md has the figures).
FACTOR = 3.0
# exp of it is 0 in float32: a score that far below the row's largest gets no attention, however the mask is written.
UNDERFLOW = 104.0
# No product of queries and keys is so low: a score below it is a mask's, written as -inf, finfo.min, -1e9 or -1e4.
HIDDEN = -5e3
# The logits of 250,002 tokens are kept as their largest, and as one number that depends on all.
LOGITS, TOP_IDS, TOP, LOGSUMEXP = (f"lm_head.logits{part}" for part in ("", ".top_ids", ".top_values", ".logsumexp"))
HEAD = ("tap", "shape", "max abs", "relative", "cosine", "allowed", "verdict")
SHOWN = 8  # wrong rows that a notebook shows unfolded
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def elements(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """The values that count at a tap, float64 on the CPU: those of real tokens, tokens first.

    Per token (B, S, ...) -> (T, ...); maps (B, N, S, S) -> (T, N, S), by query; per sequence (B, ...) -> (rows whose
    first token is real, ...); anything else, such as a gradient, whole. A score of a key that must not be seen reads as
    how far it rises above getting no attention, so that -inf, finfo.min and -1e4 are all 0.
    """
    tensor, real = tensor.detach().cpu().double(), real.cpu()
    letters = shape_of(tap)
    if letters == "(B, N, S, S)":
        by_query = tensor.transpose(1, 2)[real]
        return _over_nothing(by_query, real) if tap.endswith("scores") else by_query
    if is_per_sequence(letters):
        return tensor[real[:, 0]]
    return tensor[real] if letters else tensor


def _over_nothing(scores: Tensor, real: Tensor) -> Tensor:  # (T, N, S), (B, S) -> (T, N, S)
    hidden = ~real[real.nonzero()[:, 0]][:, None, :]  # (T, 1, S): the keys that each token must not see
    top = scores.masked_fill(hidden, -math.inf).amax(dim=-1, keepdim=True)
    return torch.where(hidden, (scores - top + UNDERFLOW).relu(), scores)


def unpacked(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """A tap of a packed batch in the shape that it has for the padded one, with zeros at padding.

    real: (B, S), which tokens of the padded batch the packed one has. Of scores and probs, whose rows have the real
    tokens of a sequence at their beginning, what belongs to padding is as the model has it: no attention.
    """
    letters = shape_of(tap)
    if letters == "(B, N, S, S)":
        nothing = torch.finfo(tensor.dtype).min if tap.endswith("scores") else 0.0
        rows = tensor.new_full((len(real), tensor.shape[1], *real.shape[1:] * 2), nothing)
        for row, its, own in zip(rows, tensor, real, strict=True):
            places = own.nonzero()[:, 0]
            row[:, places[:, None], places] = its[:, : len(places), : len(places)]
        return rows
    if letters is None or is_per_sequence(letters):
        return tensor
    rows = tensor.new_zeros(*real.shape, *tensor.shape[1:])
    rows[real] = tensor
    return rows


# ---- names ----------------------------------------------------------------------------------------------------------

LAYER_TAPS = {tap.name for tap in POST_NORM_LAYER}
OTHER_SHAPES = {TOP: "(B, S, K)", LOGSUMEXP: "(B, S)", "loss": "(B, S)"}


def is_per_sequence(letters: str | None) -> bool:
    """Whether a tap of this shape has one vector for all tokens of a text, such as "(B, H)"."""
    return letters is not None and letters.startswith("(B, ") and "S" not in letters


def taps_above() -> tuple[Tap, ...]:
    """The taps above the layers, of every model class."""
    return (FINAL_NORM, *POOLER, *(tap for cls in model_classes() for tap in cls.spec.taps))


def tap_shapes() -> dict[str, str]:
    """The letters of the shape of every tap; of a layer's, by its name in the layer."""
    return {tap.name: tap.shape for tap in (*EMBEDDINGS, *POST_NORM_LAYER, *taps_above())} | OTHER_SHAPES


def shape_of(tap: str) -> str | None:
    """The letters of a tap's shape, as in the tap table; None for a name that is no tap."""
    parts = tap.split(".", 2)
    if parts[0] == "layers" and len(parts) == 3 and parts[1].isdecimal():
        return tap_shapes().get(parts[2]) if parts[2] in LAYER_TAPS else None
    return tap_shapes().get(tap) if tap not in LAYER_TAPS else None


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Taps from ids to logits, then all other names as they come."""
    return sorted(names, key=_place)


def _place(tap: str) -> tuple[int, int, int]:
    parts = tap.split(".", 2)
    if parts[0] == "layers" and shape_of(tap):
        return 1, int(parts[1]), _index(POST_NORM_LAYER, parts[2])
    for section, taps in ((0, EMBEDDINGS), (2, taps_above())):
        if any(known.name == tap for known in taps):
            return section, 0, _index(taps, tap)
    return 3 if tap in (TOP_IDS, TOP, LOGSUMEXP) else 4, 0, 0


def _index(taps: tuple[Tap, ...], name: str) -> int:
    return [tap.name for tap in taps].index(name)


# ---- logits by their top k -------------------------------------------------------------------------------------------


def with_reduced_logits(dump: Dump, ids: Tensor | None, values: Tensor | None = None) -> Dump:
    """The dump with the logits at `ids` (B, S, K) and their logsumexp in place of all logits.

    Whole logits (B, S, V) are looked up. Of logits that are themselves a top k, one that is not among them lies
    somewhere below the last: it counts as that one, or as the expected of `values` if that is lower still, so that no
    difference is reported larger than it is. `ids` None changes nothing.
    """
    if ids is None:
        return dump
    reduced = {name: tensor for name, tensor in dump.items() if name not in (LOGITS, TOP_IDS, TOP)}
    if LOGITS in dump and _fits(dump[LOGITS], ids):
        reduced[TOP] = dump[LOGITS].gather(-1, ids.to(dump[LOGITS].device))
        reduced[LOGSUMEXP] = logsumexp(dump[LOGITS])
    elif LOGITS in dump:
        reduced[TOP] = dump[LOGITS]  # of another shape: the row will say so
    elif TOP in dump:
        reduced[TOP] = dump[TOP]
        theirs = dump.get(TOP_IDS)
        if theirs is not None and values is not None and theirs.shape == ids.shape == dump[TOP].shape:
            reduced[TOP] = _looked_up(theirs, dump[TOP], ids, values)
    return reduced


def _fits(logits: Tensor, ids: Tensor) -> bool:
    return logits.shape[:-1] == ids.shape[:-1] and int(ids.max()) < logits.shape[-1]


def _looked_up(
    their_ids: Tensor, theirs: Tensor, ids: Tensor, values: Tensor
) -> Tensor:  # (B, S, K), (B, S, K), (B, S, K), (B, S, K) -> (B, S, K)
    same = ids[..., :, None] == their_ids[..., None, :]  # (B, S, K, K)
    found = theirs.gather(-1, same.long().argmax(dim=-1))
    at_most = torch.minimum(theirs.amin(dim=-1, keepdim=True), values.to(theirs.dtype))
    return torch.where(same.any(dim=-1), found, at_most)


def narrowest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest of the floating-point types of the tensors. float64 counts as float32."""
    kinds = (tensor.dtype for tensor in tensors if tensor.dtype in FLOATS)
    return max((torch.float32, *kinds), key=lambda kind: torch.finfo(kind).eps)


def logsumexp(logits: Tensor) -> Tensor:  # (B, S, V) -> (B, S)
    """One number a token that depends on every logit. Taken in float64, given in the dtype of the logits."""
    return logits.double().logsumexp(dim=-1).to(logits.dtype)


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
