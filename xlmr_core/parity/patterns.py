"""What an error looks like: the simple relations that wrong numbers may have to right ones.

A pattern is a hint for the reader, found in the numbers of one site and said in one line. It is no diagnosis: for that
the fault must be made and must give the foreign numbers (diagnose.py).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.compare import UNDERFLOW, elements, is_per_sequence, shape_of

# The unit of rounding of each narrow format: the largest relative error of one rounding.
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A softmax multiplies the relative errors of its scores by their size, which is seldom more.
LARGEST_SCORE = 64


@dataclass(frozen=True)
class Site:
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
    """What the error at this site looks like: where it is, and how wrong values come from right ones.

    expected and actual: the tensors at the tap, batch first. allowed: the largest difference that rounding explains.
    """
    site = Site(name, expected.double().cpu(), actual.double().cpu(), real.cpu(), heads, allowed or 0.0, actual.dtype)
    if not site.actual.isfinite().all():
        odd = int((~site.actual.isfinite()).sum())
        return (f"{odd} of {site.actual.numel()} values are NaN or infinite",)
    places = [line for line in (_rows(site), _positions(site)) if line]
    for relation in RELATIONS:
        line = relation(site)
        if line:
            return (*places, line)
    a, b = site.actual.flatten(), site.expected.flatten()
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


def _wrong_tokens(site: Site) -> Tensor | None:  # (B, S)
    """Which real tokens are wrong; None for a tensor without a token axis."""
    if is_per_sequence(site.letters) or not site.letters:
        return None
    wrong = torch.zeros_like(site.real)
    wrong[site.real] = site.error.flatten(1).abs().amax(dim=1) > site.allowed
    return wrong


def _rows(site: Site) -> str | None:
    tokens = _wrong_tokens(site)
    if tokens is None or len(tokens) < 2:
        return None
    wrong, padded = tokens.any(dim=1), ~site.real.all(dim=1)
    if wrong.all():
        return None
    if torch.equal(wrong, padded):
        return "only rows with padding are wrong"
    if not wrong[0] and wrong[1:].all():
        return "the first row is right, all others are wrong"
    return f"only rows {', '.join(map(str, wrong.nonzero()[:, 0].tolist()))} are wrong"


def _positions(site: Site) -> str | None:
    tokens = _wrong_tokens(site)
    if tokens is None:
        return None
    count, total = int(tokens.sum()), int(site.real.sum())
    # Of the rows that are wrong at all, where the right tokens stand.
    right = (site.real & ~tokens)[tokens.any(dim=1)]
    if not right.any():
        return None
    if set(right.nonzero()[:, 1].tolist()) == {0}:
        return "the first token is right, others are wrong"
    return f"only some positions: {count} of {total} real tokens are wrong"


# ---- how wrong values come from right ones ---------------------------------------------------------------------------


def _masking(site: Site) -> str | None:
    """Scores that are right but for which keys are masked."""
    if not site.name.endswith("attention.scores"):
        return None
    wrong = site.error.abs() > site.allowed
    padding = ~site.real[site.real.nonzero()[:, 0]][:, None, :].expand_as(wrong)
    masked = site.actual < 2 * site.expected.min() - UNDERFLOW
    if not wrong.any() or (wrong & ~padding & ~masked).any():
        return None
    seen, hidden = bool((wrong & padding).any()), bool((wrong & ~padding).any())
    if seen and not hidden and (site.actual[wrong] > 2 * UNDERFLOW).all():  # UNDERFLOW: as high as a real token
        return "scores are right, but padding is raised, not lowered: the mask has the wrong sign"
    what = ["padding is not masked"] * seen + ["real tokens are masked"] * hidden
    return f"scores are right, but {' and '.join(what)}"


def _scaled(site: Site) -> str | None:
    e, a = site.expected, site.actual
    factor = float((a * e).sum() / (e * e).sum().clamp(min=1e-300))
    if not site.near(a, e * factor, max(1.0, abs(factor))):
        return None
    return "everything is 0" if factor == 0 else f"every value is {factor:.4g} times what it should be"


def _dropped(site: Site) -> str | None:
    kept = site.actual != 0
    if kept.all() or not kept.any() or (site.expected == 0).any():
        return None
    factor = float((site.actual[kept] * site.expected[kept]).sum() / site.expected[kept].square().sum())
    if not site.near(site.actual, site.expected * kept * factor, max(1.0, abs(factor))):
        return None
    zeros = f"{1 - float(kept.double().mean()):.0%} of the values are exactly 0"
    if site.near(site.actual, site.expected * kept):
        return f"{zeros}, the others are right{_where_zero(site, kept)}"
    scaled = f"{zeros}, the others {factor:.4g} times what they should be"
    # Dropout keeps each value with probability 1 / factor; 5 standard deviations are beyond chance.
    dropped, chance = 1 - 1 / factor, 5 * math.sqrt(abs(factor - 1) / factor**2 / kept.numel())
    is_dropout = factor > 1 and abs(1 - float(kept.double().mean()) - dropped) <= chance
    return f"{scaled}: dropout of {dropped:.2g} is on" if is_dropout else scaled


def _where_zero(site: Site, kept: Tensor) -> str:
    """Which tokens or features the zeros are, where they are whole ones."""
    each = "row" if is_per_sequence(site.letters) else "token"
    per_token = kept.flatten(1).any(dim=1)
    if not (kept.flatten(1) ^ per_token[:, None]).any():
        return f": {int((~per_token).sum())} of {len(per_token)} {each}s are all 0"
    per_feature = kept.any(dim=0)
    if kept.dim() == 2 and not (kept ^ per_feature).any():
        return f": {int((~per_feature).sum())} of {len(per_feature)} features are 0 at every {each}"
    return ""


def _offset(site: Site) -> str | None:
    error = site.error
    if site.near(error, error.mean().expand_as(error)):
        return f"the same number, {float(error.mean()):.4g}, is added everywhere"
    if site.letters == "(B, N, S, S)" or len(error) < 2:
        per_query = error.mean(dim=-1, keepdim=True).expand_as(error)
        if site.letters == "(B, N, S, S)" and site.real.all() and site.near(error, per_query):
            return "one number for each query is added to its scores: softmax takes it out"
        return None
    if site.near(error, error.mean(dim=0, keepdim=True).expand_as(error)):
        each = "row" if is_per_sequence(site.letters) else "token"
        return f"the same vector is added at every {each} (largest entry {float(error.abs().max()):.3g})"
    return None


def _heads_permuted(site: Site) -> str | None:
    if site.letters == "(B, N, S, S)":
        e, a = site.expected, site.actual
    elif site.letters == "(B, S, H)" and site.name.rpartition(".")[2] in ("q", "k", "v", "context"):
        e, a = (x.unflatten(1, (site.heads, -1)) for x in (site.expected, site.actual))
        mixed = site.expected.unflatten(1, (-1, site.heads)).transpose(1, 2).flatten(1)
        if site.near(site.actual, mixed):
            return "features of the heads are interleaved"
    else:
        return None
    order = [next((j for j in range(site.heads) if site.near(a[:, i], e[:, j])), None) for i in range(site.heads)]
    if None in order or order == list(range(site.heads)):
        return None
    return f"heads are permuted: {', '.join(map(str, order))} stand where 0 to {site.heads - 1} should"


def _transposed(site: Site) -> str | None:
    if site.letters != "(B, N, S, S)":
        return None
    pairs = (site.real[:, :, None] & site.real[:, None, :])[:, None].expand_as(site.raw_expected)
    turned, seen = site.raw_expected.transpose(2, 3)[pairs], site.raw_actual[pairs]
    is_turned = site.near(seen, turned) and not site.near(seen, site.raw_expected[pairs])
    return "queries and keys are transposed" if is_turned else None


def _reordered(site: Site) -> str | None:
    e, a = (x.flatten().sort().values for x in (site.raw_expected, site.raw_actual))
    if not site.letters or not site.near(e, a):
        return None
    return "the right values in the wrong order: a reshape without its transpose, or exchanged parts"


def _from_another_token(site: Site) -> str | None:
    """The tokens moved by the same number of places, at least in rows without padding."""
    full = site.real.all(dim=1)
    if site.letters != "(B, S, H)" or not full.any():
        return None
    expected, actual = site.raw_expected[full], site.raw_actual[full]
    length = expected.shape[1]
    where = "" if full.all() else "in rows without padding, "
    for places in (1, 2):
        if length < places + 3:
            continue
        if site.near(actual[:, places:], expected[:, :-places]):
            return f"{where}each token holds what belongs to the token {places} before it"
        if site.near(actual[:, :-places], expected[:, places:]):
            return f"{where}each token holds what belongs to the token {places} after it"
    return None


def _scaled_by_token(site: Site) -> str | None:
    if site.letters != "(B, S, H)":
        return None
    e, a = site.expected, site.actual
    factors = (a * e).sum(dim=1, keepdim=True) / (e * e).sum(dim=1, keepdim=True).clamp(min=1e-300)
    if not site.near(a, e * factors, float(factors.abs().max().clamp(min=1))):
        return None
    return f"each token is scaled by a number of its own, {float(factors.min()):.4g} to {float(factors.max()):.4g}"


def _rounded(site: Site) -> str | None:
    counted = site.expected.abs() > 1e-3 * site.expected.abs().max()
    relative = (site.error / site.expected)[counted].abs()
    if not relative.numel():
        return None
    largest = f"relative errors of up to {float(relative.max()):.1e} without a pattern"
    for name, unit in reversed(UNITS.items()):  # most numbers of bfloat16 are numbers of float16, too
        wider = torch.finfo(site.dtype).eps < unit
        if wider and torch.equal(site.actual.to(DTYPES[name]).double(), site.actual):
            return f"{largest}: rounding to {name}" if relative.max() <= LARGEST_SCORE * unit else None
    for name, unit in UNITS.items():
        if relative.max() <= 1.01 * unit and relative.median() > unit / 16:
            scores = " or, of its scores, to float16" if site.name.endswith("probs") and name == "bfloat16" else ""
            return f"{largest}: rounding to {name}{scores}"
    return None


def _small(site: Site) -> str | None:
    scale = float(site.expected.abs().max())
    largest = float(site.error.abs().max())
    if largest > 0.01 * scale:
        return None
    if site.name.endswith("feed_forward.post") or site.name.endswith("lm_head.norm"):
        return f"small errors, up to {largest:.1e}, none far from 0: another approximation"
    return f"small errors, up to {largest / scale:.1e} of the largest value"


RELATIONS: tuple[Callable[[Site], str | None], ...] = (
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
