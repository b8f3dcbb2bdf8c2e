"""What an error looks like: the simple relations that wrong numbers may have to right ones.

A pattern is a hint for the reader, found in the numbers of one tap and said in one line. It is no diagnosis: for that
the fault must be made and must give the foreign numbers (diagnose.py).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.tap_values import UNDERFLOW, elements, is_per_sequence, shape_of

# The unit of rounding of each narrow format: the largest relative error of one rounding.
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A softmax multiplies the relative errors of its scores by their size, which is seldom more.
LARGEST_SCORE = 64


@dataclass(frozen=True)
class TensorPair:
    """One tensor as it should be and as it is, with what is needed to look at it."""

    name: str
    raw_expected: Tensor  # as captured, float64
    raw_actual: Tensor
    real: Tensor  # (B, S), boolean
    heads: int
    allowed: float  # what rounding explains
    dtype: torch.dtype = torch.float64  # of the tensor as it is

    @property
    def expected(self) -> Tensor:
        """Values that count, tokens (or rows) first."""
        return elements(self.name, self.raw_expected, self.real)

    @property
    def actual(self) -> Tensor:
        return elements(self.name, self.raw_actual, self.real)

    @property
    def error(self) -> Tensor:
        return self.actual - self.expected

    @property
    def letters(self) -> str:
        return shape_of(self.name) or ""

    def near(self, a: Tensor, b: Tensor, scale: float = 1.0) -> bool:
        return bool(((a - b).abs() <= max(self.allowed * scale, 1e-12)).all())


def describe(
    name: str, expected: Tensor, actual: Tensor, real: Tensor, *, heads: int, allowed: float | None
) -> tuple[str, ...]:
    """What the error at this tap looks like: where it is, and how wrong values come from right ones.

    expected and actual: the tensors at the tap, batch first. allowed: the largest difference that rounding explains.
    """
    pair = TensorPair(
        name, expected.double().cpu(), actual.double().cpu(), real.cpu(), heads, allowed or 0.0, actual.dtype
    )
    if not pair.actual.isfinite().all():
        odd = int((~pair.actual.isfinite()).sum())
        return (f"{odd} of {pair.actual.numel()} values are NaN or infinite",)
    places = [line for line in (_rows(pair), _positions(pair)) if line]
    for relation in RELATIONS:
        line = relation(pair)
        if line:
            return (*places, line)
    a, b = pair.actual.flatten(), pair.expected.flatten()
    cosine = float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))
    unrelated = "unrelated to what they should be" if abs(cosine) < 0.5 else "no simple relation"
    return (*places, f"{unrelated}: cosine {cosine:.2f}")


def growth(errors: Mapping[int, float]) -> str | None:
    """How the relative error of the layers' outputs goes with depth; None where fewer than two layers are wrong."""
    wrong = {layer: error for layer, error in errors.items() if error > 0}
    if len(wrong) < 2:
        return None
    (first, low), (last, high) = min(wrong.items()), max(wrong.items())
    trend = "grows" if high > 1.5 * low else "shrinks" if high < low / 1.5 else "stays"
    return f"{trend} with depth: relative error {low:.1e} after layer {first}, {high:.1e} after layer {last}"


# ---- where the error is ----------------------------------------------------------------------------------------------


def _wrong_tokens(pair: TensorPair) -> Tensor | None:  # (B, S)
    """Which real tokens are wrong; None for a tensor without a token axis."""
    if is_per_sequence(pair.letters) or not pair.letters:
        return None
    wrong = torch.zeros_like(pair.real)
    wrong[pair.real] = pair.error.flatten(1).abs().amax(dim=1) > pair.allowed
    return wrong


def _rows(pair: TensorPair) -> str | None:
    tokens = _wrong_tokens(pair)
    if tokens is None or len(tokens) < 2:
        return None
    wrong, padded = tokens.any(dim=1), ~pair.real.all(dim=1)
    if wrong.all():
        return None
    if torch.equal(wrong, padded):
        return "only rows with padding are wrong"
    if not wrong[0] and wrong[1:].all():
        return "the first row is right, all others are wrong"
    return f"only rows {', '.join(map(str, wrong.nonzero()[:, 0].tolist()))} are wrong"


def _positions(pair: TensorPair) -> str | None:
    tokens = _wrong_tokens(pair)
    if tokens is None:
        return None
    count, total = int(tokens.sum()), int(pair.real.sum())
    # Of the rows that are wrong at all, where the right tokens stand.
    right = (pair.real & ~tokens)[tokens.any(dim=1)]
    if not right.any():
        return None
    if set(right.nonzero()[:, 1].tolist()) == {0}:
        return "the first token is right, others are wrong"
    return f"only some positions: {count} of {total} real tokens are wrong"


# ---- how wrong values come from right ones ---------------------------------------------------------------------------


def _masking(pair: TensorPair) -> str | None:
    """Scores that are right but for which keys are masked."""
    if not pair.name.endswith("attention.scores"):
        return None
    wrong = pair.error.abs() > pair.allowed
    padding = ~pair.real[pair.real.nonzero()[:, 0]][:, None, :].expand_as(wrong)
    masked = pair.actual < 2 * pair.expected.min() - UNDERFLOW
    if not wrong.any() or (wrong & ~padding & ~masked).any():
        return None
    seen, hidden = bool((wrong & padding).any()), bool((wrong & ~padding).any())
    if seen and not hidden and (pair.actual[wrong] > 2 * UNDERFLOW).all():  # UNDERFLOW: as high as a real token
        return "scores are right, but padding is raised, not lowered: the mask has the wrong sign"
    what = ["padding is not masked"] * seen + ["real tokens are masked"] * hidden
    return f"scores are right, but {' and '.join(what)}"


def _scaled(pair: TensorPair) -> str | None:
    e, a = pair.expected, pair.actual
    factor = float((a * e).sum() / (e * e).sum().clamp(min=1e-300))
    if not pair.near(a, e * factor, max(1.0, abs(factor))):
        return None
    return "everything is 0" if factor == 0 else f"every value is {factor:.4g} times what it should be"


def _dropped(pair: TensorPair) -> str | None:
    kept = pair.actual != 0
    if kept.all() or not kept.any() or (pair.expected == 0).any():
        return None
    factor = float((pair.actual[kept] * pair.expected[kept]).sum() / pair.expected[kept].square().sum())
    if not pair.near(pair.actual, pair.expected * kept * factor, max(1.0, abs(factor))):
        return None
    zeros = f"{1 - float(kept.double().mean()):.0%} of the values are exactly 0"
    if pair.near(pair.actual, pair.expected * kept):
        return f"{zeros}, the others are right{_where_zero(pair, kept)}"
    scaled = f"{zeros}, the others {factor:.4g} times what they should be"
    # Dropout keeps each value with probability 1 / factor; 5 standard deviations are beyond chance.
    dropped, chance = 1 - 1 / factor, 5 * math.sqrt(abs(factor - 1) / factor**2 / kept.numel())
    is_dropout = factor > 1 and abs(1 - float(kept.double().mean()) - dropped) <= chance
    return f"{scaled}: dropout of {dropped:.2g} is on" if is_dropout else scaled


def _where_zero(pair: TensorPair, kept: Tensor) -> str:
    """Which tokens or features the zeros are, where they are whole ones."""
    each = "row" if is_per_sequence(pair.letters) else "token"
    per_token = kept.flatten(1).any(dim=1)
    if not (kept.flatten(1) ^ per_token[:, None]).any():
        return f": {int((~per_token).sum())} of {len(per_token)} {each}s are all 0"
    per_feature = kept.any(dim=0)
    if kept.dim() == 2 and not (kept ^ per_feature).any():
        return f": {int((~per_feature).sum())} of {len(per_feature)} features are 0 at every {each}"
    return ""


def _offset(pair: TensorPair) -> str | None:
    error = pair.error
    if pair.near(error, error.mean().expand_as(error)):
        return f"the same number, {float(error.mean()):.4g}, is added everywhere"
    if pair.letters == "(B, N, S, S)" or len(error) < 2:
        per_query = error.mean(dim=-1, keepdim=True).expand_as(error)
        if pair.letters == "(B, N, S, S)" and pair.real.all() and pair.near(error, per_query):
            return "one number for each query is added to its scores: softmax takes it out"
        return None
    if pair.near(error, error.mean(dim=0, keepdim=True).expand_as(error)):
        each = "row" if is_per_sequence(pair.letters) else "token"
        return f"the same vector is added at every {each} (largest entry {float(error.abs().max()):.3g})"
    return None


def _heads_permuted(pair: TensorPair) -> str | None:
    if pair.letters == "(B, N, S, S)":
        e, a = pair.expected, pair.actual
    elif pair.letters == "(B, S, H)" and pair.name.rpartition(".")[2] in ("q", "k", "v", "context"):
        e, a = (x.unflatten(1, (pair.heads, -1)) for x in (pair.expected, pair.actual))
        mixed = pair.expected.unflatten(1, (-1, pair.heads)).transpose(1, 2).flatten(1)
        if pair.near(pair.actual, mixed):
            return "features of the heads are interleaved"
    else:
        return None
    order = [next((j for j in range(pair.heads) if pair.near(a[:, i], e[:, j])), None) for i in range(pair.heads)]
    if None in order or order == list(range(pair.heads)):
        return None
    return f"heads are permuted: {', '.join(map(str, order))} stand where 0 to {pair.heads - 1} should"


def _transposed(pair: TensorPair) -> str | None:
    if pair.letters != "(B, N, S, S)":
        return None
    pairs = (pair.real[:, :, None] & pair.real[:, None, :])[:, None].expand_as(pair.raw_expected)
    turned, seen = pair.raw_expected.transpose(2, 3)[pairs], pair.raw_actual[pairs]
    is_turned = pair.near(seen, turned) and not pair.near(seen, pair.raw_expected[pairs])
    return "queries and keys are transposed" if is_turned else None


def _reordered(pair: TensorPair) -> str | None:
    e, a = (x.flatten().sort().values for x in (pair.raw_expected, pair.raw_actual))
    if not pair.letters or not pair.near(e, a):
        return None
    return "the right values in the wrong order: a reshape without its transpose, or exchanged parts"


def _from_another_token(pair: TensorPair) -> str | None:
    """The tokens moved by the same number of places, at least in rows without padding."""
    full = pair.real.all(dim=1)
    if pair.letters != "(B, S, H)" or not full.any():
        return None
    expected, actual = pair.raw_expected[full], pair.raw_actual[full]
    length = expected.shape[1]
    where = "" if full.all() else "in rows without padding, "
    for places in (1, 2):
        if length < places + 3:
            continue
        if pair.near(actual[:, places:], expected[:, :-places]):
            return f"{where}each token holds what belongs to the token {places} before it"
        if pair.near(actual[:, :-places], expected[:, places:]):
            return f"{where}each token holds what belongs to the token {places} after it"
    return None


def _scaled_by_token(pair: TensorPair) -> str | None:
    if pair.letters != "(B, S, H)":
        return None
    e, a = pair.expected, pair.actual
    factors = (a * e).sum(dim=1, keepdim=True) / (e * e).sum(dim=1, keepdim=True).clamp(min=1e-300)
    if not pair.near(a, e * factors, float(factors.abs().max().clamp(min=1))):
        return None
    return f"each token is scaled by a number of its own, {float(factors.min()):.4g} to {float(factors.max()):.4g}"


def _rounded(pair: TensorPair) -> str | None:
    counted = pair.expected.abs() > 1e-3 * pair.expected.abs().max()
    relative = (pair.error / pair.expected)[counted].abs()
    if not relative.numel():
        return None
    largest = f"relative errors of up to {float(relative.max()):.1e} without a pattern"
    for name, unit in reversed(UNITS.items()):  # most numbers of bfloat16 are numbers of float16, too
        wider = torch.finfo(pair.dtype).eps < unit
        if wider and torch.equal(pair.actual.to(DTYPES[name]).double(), pair.actual):
            return f"{largest}: rounding to {name}" if relative.max() <= LARGEST_SCORE * unit else None
    for name, unit in UNITS.items():
        if relative.max() <= 1.01 * unit and relative.median() > unit / 16:
            scores = " or, of its scores, to float16" if pair.name.endswith("probs") and name == "bfloat16" else ""
            return f"{largest}: rounding to {name}{scores}"
    return None


def _small(pair: TensorPair) -> str | None:
    scale = float(pair.expected.abs().max())
    largest = float(pair.error.abs().max())
    if largest > 0.01 * scale:
        return None
    if pair.name.endswith("feed_forward.post") or pair.name.endswith("lm_head.norm"):
        return f"small errors, up to {largest:.1e}, none far from 0: another approximation"
    return f"small errors, up to {largest / scale:.1e} of the largest value"


RELATIONS: tuple[Callable[[TensorPair], str | None], ...] = (
    _masking,
    _scaled,
    _dropped,
    _offset,
    _heads_permuted,
    _transposed,
    _from_another_token,
    _reordered,
    _scaled_by_token,
    _rounded,
    _small,
)
