"""How far the numbers of a model are below the largest of float16, 65504, and what happens where they are not.

The model runs in float32 on one text after the other, and of each tap only its largest absolute value is kept. Then the
same text runs in float16, where the processor can, and the first tap with NaN or infinity is kept. Queries times keys
are counted before they are scaled, too: they are sqrt(head_dim) times larger than the scores.

    report = measure_headroom(model, tokenizer, ["The cat sees the dog.", "Two cats sleep."])
    print(report)             # a table in reading order, then what does not fit
    report.must_stay_float32  # taps that are infinite in float16
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.formatting import aligned, json_number
from xlmr_core.kernels import PaddedBatch
from xlmr_core.model import position_ids_from
from xlmr_core.parity.faults import Fault
from xlmr_core.parity.faults.operations import scores_replaced
from xlmr_core.parity.tap_values import is_per_sequence, shape_of
from xlmr_core.parity.variants import variant
from xlmr_core.parts import encoder_of
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick
from xlmr_core.tokenizer import XLMRobertaTokenizer

LARGEST = 65504.0  # of float16
OVERFLOW = 65520.0  # and above: half a step further, what is rounded to infinity
NEAR = 1.0  # bits of margin, below which another text may overflow


@dataclass(frozen=True)
class Row:
    """The largest absolute value at a tap, over all texts."""

    tap: str
    largest: float
    inside: float  # the same of the numbers inside the operation: scores before they are scaled
    text: int  # the number of the line, from 1
    position: int | None  # of the token in its row, `<s>` being 0; None at a tap with one vector for a text
    token: str

    @property
    def bits(self) -> float:
        """How many times the value may double below the largest of float16; negative: it is above it."""
        return math.log2(LARGEST / self.inside) if self.inside else math.inf

    @property
    def fits(self) -> bool:
        """Whether it is finite in float16."""
        return self.inside < OVERFLOW


@dataclass(frozen=True)
class Overflow:
    """The first tap with NaN or infinity in a run in float16."""

    tap: str
    text: int
    position: int | None
    token: str
    why: str


@dataclass(frozen=True)
class Headroom:
    """What `measure_headroom` found. Prints as a table."""

    rows: tuple[Row, ...]  # in reading order
    observed: Overflow | None  # in float16; None: everything was finite, or float16 was not run
    ran_float16: bool
    weights: tuple[str, ...]  # that are infinite in float16
    half_faults: tuple[tuple[str, str], ...]  # fault, and where it gives NaN with this model
    texts: int

    @property
    def ok(self) -> bool:
        """Whether everything is finite in float16."""
        return not self.weights and not self.must_stay_float32 and self.observed is None

    @property
    def first(self) -> Row | None:
        """The first tap that float16 cannot hold, by its value in float32."""
        return next((row for row in self.rows if not row.fits), None)

    @property
    def must_stay_float32(self) -> tuple[str, ...]:
        """The taps that float16 cannot hold for these texts."""
        return tuple(row.tap for row in self.rows if not row.fits)

    def __str__(self) -> str:
        cells = [("tap", "largest", "bits left", "text", "token")]
        cells += [(row.tap, f"{row.largest:.4g}", f"{row.bits:.1f}", str(row.text), _at(row)) for row in self.rows]
        return "\n".join([*aligned(cells), *self._findings()])

    def _findings(self) -> list[str]:
        tightest = min(self.rows, key=lambda row: row.bits)
        lines = [f"{self.texts} texts; least margin: {tightest.bits:.1f} bits at {tightest.tap} (text {tightest.text})"]
        lines += [f"the weight {name} is infinite in float16" for name in self.weights]
        if self.first:
            lines.append(f"first overflow by the values in float32: {self.first.tap}, {_why(self.first)}")
            lines.append(f"must stay in float32: {', '.join(self.must_stay_float32)}")
        near = [row.tap for row in self.rows if row.fits and row.bits < NEAR]
        if near:
            lines.append(f"less than {NEAR:.0f} bit left: {', '.join(near)}")
        if not self.ran_float16:
            lines.append("float16 was not run: this processor cannot")
        elif self.observed:
            found = self.observed
            lines.append(f"first non-finite tap in float16: {found.tap}, {found.why} (text {found.text}, {_at(found)})")
        else:
            lines.append("in float16, every tap was finite")
        return lines + [f"a port with the fault {name}: {where}" for name, where in self.half_faults]

    def to_json(self) -> str:
        """The same for programs; infinity, which JSON lacks, is null."""
        rows = [{key: json_number(value) for key, value in asdict(row).items()} for row in self.rows]
        for found, row in zip(rows, self.rows, strict=True):
            found["bits"] = json_number(row.bits)
        report = {
            "ok": self.ok,
            "texts": self.texts,
            "first": self.first.tap if self.first else None,
            "observed": asdict(self.observed) if self.observed else None,
            "ran_float16": self.ran_float16,
            "must_stay_float32": self.must_stay_float32,
            "weights": self.weights,
            "half_faults": dict(self.half_faults),
            "rows": rows,
        }
        return json.dumps(report, indent=1, ensure_ascii=False)


def _at(found: Row | Overflow) -> str:
    return "-" if found.position is None else f"{found.position} {found.token}"


def _why(row: Row | None) -> str:
    if row is None or row.fits:
        return "where a sum inside the operation is larger than its result"
    if row.largest < OVERFLOW:
        return f"where queries times keys reach {row.inside:.4g} before they are scaled: scale the queries first"
    return f"whose largest value is {row.largest:.4g}, above {LARGEST:.0f}"


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure_headroom(
    model: PretrainedModel,
    tokenizer: XLMRobertaTokenizer,
    texts: Iterable[str],
    *,
    max_tokens: int = 512,
    tick: Tick = no_tick,
) -> Headroom:
    """Measures the largest value at every tap, and runs the model in float16.

    Args:
        model: In any dtype. Copies of it are run, on the CPU.
        tokenizer: Of the model.
        texts: Are read one by one. The memory that is used depends on the longest only.
        max_tokens: Longer texts are cut.
        tick: Is called with 1 after each text.

    Returns:
        A row for each tap, the first tap that is not finite in float16, and what two faults of half precision do.

    Raises:
        ValueError: There is no text, or it is not UTF-8.
    """
    exact, half = (variant(model, dtype, "eager", "cpu") for dtype in (torch.float32, torch.float16))
    weights = tuple(name for name, weight in half.named_parameters() if not weight.isfinite().all())
    can_run, count = _runs_float16(half), 0
    largest: dict[str, Row] = {}
    observed: Overflow | None = None
    ids = torch.empty(1, 0, dtype=torch.long)
    for count, text in enumerate(texts, start=1):
        batch = tokenizer(text, truncation=True, max_tokens=max_tokens)
        ids = batch.input_ids
        tokens = [tokenizer.id_to_token(id) for id in ids[0].tolist()]
        with torch.no_grad(), _watched(exact, partial(_keep_largest, largest, tokens, count, model.config)):
            exact(**batch)
        if can_run and observed is None:
            found: list[tuple[str, int | None]] = []
            with torch.no_grad(), _watched(half, partial(_keep_first, found)):
                half(**batch)
            if found:
                tap, position = found[0]
                token = "" if position is None else tokens[position]
                observed = Overflow(tap, count, position, token, _why(largest.get(tap)))
        tick(1)
    if count == 0:
        raise ValueError("there is no text to measure: the file of texts must have at least one line")
    rows = tuple(largest[tap.name] for tap in model.taps() if tap.name in largest)
    half_faults = _half_faults(half, ids) if can_run else ()
    return Headroom(rows, observed, can_run, weights, half_faults, count)


def _runs_float16(half: PretrainedModel) -> bool:
    """Whether this processor multiplies matrices of float16."""
    try:
        with torch.no_grad():
            half(torch.tensor([[half.config.bos_token_id, half.config.eos_token_id]]))
    except RuntimeError:
        return False
    return True


@contextmanager
def _watched(model: PretrainedModel, look: Callable[[str, Tensor], None]) -> Generator[None, None, None]:
    """Each tensor at a tap is looked at, and not kept."""

    def unchanged(name: str) -> Callable[[Tensor], Tensor]:
        def change(tensor: Tensor) -> Tensor:
            look(name, tensor)
            return tensor

        return change

    with model.intervene({tap.name: unchanged(tap.name) for tap in model.taps()}):
        yield


def _keep_largest(
    rows: dict[str, Row], tokens: list[str], text: int, config: XLMRobertaConfig, tap: str, tensor: Tensor
) -> None:
    values = tensor.abs()
    flat = int(values.argmax())
    largest = float(values.flatten()[flat])
    if tap in rows and largest <= rows[tap].largest:
        return
    position = _position(tap, tensor, flat)
    inside = largest * config.head_dim**0.5 if tap.endswith("attention.scores") else largest
    rows[tap] = Row(tap, largest, inside, text, position, "" if position is None else tokens[position])


def _keep_first(found: list[tuple[str, int | None]], tap: str, tensor: Tensor) -> None:
    odd = ~tensor.isfinite()
    if not found and odd.any():
        found.append((tap, _position(tap, tensor, int(odd.flatten().long().argmax()))))


def _position(tap: str, tensor: Tensor, flat: int) -> int | None:
    """The token that a value of a single row belongs to: of scores and probs, the query."""
    letters = shape_of(tap)
    if is_per_sequence(letters):
        return None
    axis = 2 if letters == "(B, N, S, S)" else 1
    return int(torch.unravel_index(torch.tensor(flat), tensor.shape)[axis])


# ---- faults of half precision ----------------------------------------------------------------------------------------


def _minus_1e9_times(product: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    assert mask is not None
    return product * scale + (~mask).to(product) * torch.tensor(-1e9).to(product)


def _minus_infinity(product: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    assert mask is not None
    return (product * scale).masked_fill(~mask, -math.inf)


SCORES = "layers.0.attention.scores"
HALF_FAULTS = (
    Fault(
        "mask_of_minus_1e9",
        cause="the mask is (1 - mask) times -1e9, which is -infinity in float16",
        symptom="0 times infinity is NaN: every score of a real token is NaN",
        tap=SCORES,
        patch=scores_replaced(_minus_1e9_times),
    ),
    Fault(
        "row_of_padding",
        cause="masked scores are -infinity, and a row of the batch has padding only, as from an empty text",
        symptom="softmax over -infinity only is NaN: the vectors of that row are NaN, in every precision",
        tap="layers.0.attention.probs",
        patch=scores_replaced(_minus_infinity),
    ),
)


@torch.no_grad()
def _half_faults(half: PretrainedModel, ids: Tensor) -> tuple[tuple[str, str], ...]:
    """What the faults do in the first layer, with a text (1, S) and a row of padding as the batch."""
    pad = half.config.pad_token_id
    batch = torch.cat([ids, torch.full_like(ids, pad)])
    encoder = encoder_of(half)
    hidden = encoder.embeddings(batch, torch.zeros_like(batch), position_ids_from(batch, pad))
    mask = PaddedBatch((batch != pad)[:, None, None, :])
    found: list[tuple[str, str]] = []
    for fault in HALF_FAULTS:
        with fault.applied(half), half.capture("layers.0.**") as seen:
            encoder.layers[0](hidden, mask)
        wrong = next(((tap, tensor) for tap, tensor in seen.items() if tensor.isnan().any()), None)
        found.append((fault.name, _where(*wrong) if wrong else "no NaN"))
    return tuple(found)


def _where(tap: str, tensor: Tensor) -> str:
    text, padding = tensor.isnan().flatten(1).any(dim=1).tolist()
    return f"NaN at {tap} in {'the row of the text' if text else ''}{' and ' if text and padding else ''}" + (
        "the row of padding" if padding else ""
    )
