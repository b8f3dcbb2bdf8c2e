"""Arrangements, masks, additions and functions that no table lists are read off the dump, planted in `step_port`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import reference
import torch
from kit import step_port as port
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.parity.diagnose import Diagnosis, diagnose
from xlmr_core.parity.grammar.gather import Gather
from xlmr_core.parity.grammar.index_rules import in_words
from xlmr_core.parity.grammar.matching import arrangements
from xlmr_core.parity.grammar.pieces import Piece, pieces_of
from xlmr_core.parity.grammar.shown import Hidden
from xlmr_core.parity.grammar.terms import weights_of

SIZE, TEXTS = 11, 5  # of the batch
RANDOM = torch.Generator().manual_seed(1)
FEATURES = torch.randperm(24, generator=RANDOM)
TOKENS = torch.randperm(SIZE, generator=RANDOM)
BY_DISTANCE = torch.randn(4, 2 * SIZE - 1, generator=RANDOM)
BY_KEY = torch.randn(SIZE, generator=RANDOM)
KEYS = torch.arange(SIZE)
APART = KEYS - KEYS[:, None]  # of the key after the query
PAIRS = (torch.rand(SIZE, SIZE, generator=RANDOM) < 0.2) & (APART != 0)
IN_BRIEF = (
    "keys read features in any order",
    "keys of the first text",
    "a number by distance and head",
    "a line and gelu",
)


@dataclass(frozen=True)
class Bug:
    """The first wrong tap, words of the name, and other functions for some steps."""

    tap: str
    words: str
    steps: dict[str, Callable[..., Any]]


def bug(tap: str, words: str, **steps: Callable[..., Any]) -> Bug:
    return Bug(tap, words, steps)


def of(module: str, rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another linear map in the modules whose name has this."""
    return lambda x, w, b, name: rule(x, w, b) if module in name else port.linear(x, w, b, name)


def strided(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.unflatten(-1, (-1, rows, columns)).transpose(-1, -2).flatten(-3)


def normed(rule: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, w, b, eps: port.norm(rule(x), torch.ones_like(w), torch.zeros_like(b), eps) * w + b


def hiding(rule: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda scores, real, ids: scores.masked_fill(~rule(real[:, None, None, :]), -1e9)


def softmax_of(rule: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda scores, real: rule(scores).softmax(-1)


Q, K, V, SCORES, PROBS, CONTEXT, RESIDUAL = (
    f"layers.0.attention.{name}" for name in ("q", "k", "v", "scores", "probs", "context", "residual")
)
PRE, POST = "layers.0.feed_forward.pre", "layers.0.feed_forward.post"
OUTPUT = "layers.0.feed_forward.output"
EVERY_LAYER = " (in every layer)"
BUGS = {
    # ---- features
    "queries moved by 5": bug(
        Q, "features moved by 5" + EVERY_LAYER, linear=of("q_proj", lambda x, w, b: (x @ w.T + b).roll(5, -1))
    ),
    "blocks of the product transposed": bug(
        V,
        f"of the product with {V}_proj.weight, features in blocks of 6, each strided: i*3 mod 6 + i//2" + EVERY_LAYER,
        linear=of("v_proj", lambda x, w, b: strided(x @ w.T, 2, 3) + b),
    ),
    "keys read features in any order": bug(
        K,
        "of layers.0.input, features " + ", ".join(map(str, FEATURES[:8].tolist())) + ", ... stand where 0 to 7, ...",
        linear=of("k_proj", lambda x, w, b: x[..., FEATURES] @ w.T + b),
    ),
    "a reshape before the keys": bug(
        K,
        "of layers.0.input, features strided: i*8 mod 24 + i//3" + EVERY_LAYER,
        linear=of("k_proj", lambda x, w, b: strided(x, 3, 8) @ w.T + b),
    ),
    "a bias moved": bug(
        Q,
        f"of {Q}_proj.bias, entries moved by 7" + EVERY_LAYER,
        linear=of("q_proj", lambda x, w, b: x @ w.T + b.roll(7)),
    ),
    "groups of four": bug(
        POST,
        "features in groups of 4, each with its first one" + EVERY_LAYER,
        bent=lambda x: F.gelu(x)[..., torch.arange(40) // 4 * 4],
    ),
    "every fifth feature 0": bug(
        PRE,
        "features 2, 7, 12, ..., 37 0" + EVERY_LAYER,
        linear=of("up_proj", lambda x, w, b: (x @ w.T + b) * (torch.arange(40) % 5 != 2)),
    ),
    "normalised values in another order": bug(
        "embeddings.output",
        "of the normalised value, features up to 5 backwards (everywhere)",
        norm=normed(lambda x: torch.cat([x[..., :6].flip(-1), x[..., 6:]], -1)),
    ),
    "norm weights moved": bug(
        "embeddings.output",
        "of embeddings.norm.weight, entries moved by 5 (of every norm)",
        norm=lambda x, w, b, eps: port.norm(x, w.roll(5), b, eps),
    ),
    "features of one text": bug(
        OUTPUT,
        "features moved by 5, for row 1 only" + EVERY_LAYER,
        linear=of(
            "down_proj",
            lambda x, w, b: torch.stack([y.roll(5, -1) if row == 1 else y for row, y in enumerate(x @ w.T + b)]),
        ),
    ),
    # ---- heads
    "values of other heads": bug(
        CONTEXT,
        f"of {V}, split into heads, heads 2, 2, 0, 1 stand where 0 to 3 should" + EVERY_LAYER,
        mixed=lambda scores, probs, v: probs @ v[:, [2, 2, 0, 1]],
    ),
    "probs of other heads": bug(
        CONTEXT,
        f"of {PROBS}, heads 1, 1, 3, 3 stand where 0 to 3 should" + EVERY_LAYER,
        mixed=lambda scores, probs, v: probs[:, [1, 1, 3, 3]] @ v,
    ),
    "heads of other texts": bug(
        CONTEXT,
        "heads of all texts, counted text by text, moved by 3" + EVERY_LAYER,
        mixed=lambda scores, probs, v: (probs @ v).flatten(0, 1).roll(3, 0).view(TEXTS, 4, SIZE, -1),
    ),
    "a transpose too many": bug(
        CONTEXT,
        "values of each text, counted token by token, strided: i*6 mod 264 + i//44" + EVERY_LAYER,
        mixed=lambda scores, probs, v: (probs @ v).permute(0, 3, 2, 1).reshape(TEXTS, SIZE, 4, 6).transpose(1, 2),
    ),
    "features of queries in another order": bug(
        SCORES,
        f"of {Q}, features in blocks of 6, each 3 and 5 exchanged" + EVERY_LAYER,
        scaled=lambda q, k: port.scaled(q[..., [0, 1, 2, 5, 4, 3]], k),
    ),
    # ---- tokens and rows
    "context moved by three tokens": bug(
        CONTEXT, "tokens moved by 3" + EVERY_LAYER, mixed=lambda scores, probs, v: (probs @ v).roll(3, 2)
    ),
    "values moved from the third token on": bug(
        CONTEXT,
        f"of {V}, tokens from 2 on moved by 1" + EVERY_LAYER,
        mixed=lambda scores, probs, v: probs @ torch.cat([v[:, :, :2], v[:, :, 2:].roll(1, 2)], 2),
    ),
    "keys of the first text": bug(
        SCORES,
        f"of {K}, tokens 0 to 3 of text 0 at tokens 0 to 3 of text 1; tokens 0 to 3 of text 0 at tokens 0 to 3 of",
        scaled=lambda q, k: port.scaled(q, torch.cat([k[:1, :, :4].expand(TEXTS, -1, -1, -1), k[:, :, 4:]], 2)),
    ),
    "a residual of other rows": bug(
        RESIDUAL,
        "of layers.0.input, rows of the batch 0, 2, 1, 4, 3 stand where 0 to 4 should (of both sums of every layer)",
        residual=lambda x, y: x[[0, 2, 1, 4, 3]] + y,
    ),
    "a residual of other tokens": bug(
        RESIDUAL,
        "of layers.0.input, tokens " + ", ".join(map(str, TOKENS[:8].tolist())) + ", ... stand where 0 to 7",
        residual=lambda x, y: x[:, TOKENS] + y,
    ),
    "positions moved by three": bug(
        "embeddings.position",
        "tokens moved by 3, the first 3 0",
        place=lambda x, real: torch.cat([torch.zeros_like(x[:, :3]), x[:, :-3]], 1),
    ),
    # ---- rows of tables
    "some positions": bug(
        "embeddings.position",
        "the positions are 3 in place of 7 at token 5 of text 0, 17 in place of 2 at token 0 of text 1",
        positions=lambda ids, pad: port.positions(ids, pad).index_put(
            (torch.tensor([1, 0]), torch.tensor([0, 5])), torch.tensor([17, 3])
        ),
    ),
    # ---- masks
    "some keys": bug(
        SCORES,
        "the mask hides the keys 2, 5 to 6 of each text, and padding" + EVERY_LAYER,
        hidden=hiding(lambda real: real & ~torch.isin(torch.arange(SIZE), torch.tensor([2, 5, 6]))),
    ),
    "keys at some distances": bug(
        SCORES,
        "the mask hides keys -5 to -4, 2 tokens after the query, and padding" + EVERY_LAYER,
        hidden=hiding(lambda real: real & (APART != 2) & (APART != -4) & (APART != -5)),
    ),
    "a window by head": bug(
        SCORES,
        "the mask hides in head 0: keys -10 to -3, 3 to 10 tokens after the query; in head 1: keys -10 to -4,",
        hidden=hiding(lambda real: real & torch.stack([APART.abs() <= n for n in (2, 3, 5, SIZE)])),
    ),
    "keys by query": bug(
        PROBS, "the mask hides the keys ", probs=softmax_of(lambda scores: scores.masked_fill(PAIRS, -1e9))
    ),
    "keys of later chunks": bug(
        SCORES,
        "the mask hides the keys 4 to 10 from queries 0 to 3, the keys 9 to 10 from queries 4 to 8, and padding",
        hidden=hiding(lambda real: real & (torch.tensor([4, 9, 11])[[0] * 4 + [1] * 5 + [2] * 2][:, None] > KEYS)),
    ),
    "a key of one text": bug(
        PROBS,
        "the mask hides the keys 3 of text 1, and padding" + EVERY_LAYER,
        probs=softmax_of(
            lambda scores: torch.cat([scores[:1], scores[1:2].index_fill(3, torch.tensor([3]), -1e9), scores[2:]])
        ),
    ),
    "the mask of another text": bug(
        SCORES,
        "the mask hides the keys 7 to 10 of text 2 in place of 0 to 2" + EVERY_LAYER,
        hidden=hiding(lambda real: real[[0, 1, 1, 3, 4]]),
    ),
    # ---- numbers that are added to scores
    "a number by distance and head": bug(
        PROBS,
        "a number for each distance and head is added to the scores: in head 0: ",
        probs=softmax_of(lambda scores: scores + BY_DISTANCE[:, APART + SIZE - 1]),
    ),
    "a number by distance": bug(
        SCORES,
        f"a number for each distance is added to the scores: 0 -> {float(BY_DISTANCE[0, SIZE - 1]):.3g}, 1 -> ",
        scaled=lambda q, k: port.scaled(q, k) + BY_DISTANCE[0, APART + SIZE - 1],
    ),
    "a number by key": bug(
        PROBS,
        f"a number for each key is added to the scores: 1 -> {float(BY_KEY[1] - BY_KEY[0]):.3g}, 2 -> ",
        probs=softmax_of(lambda scores: scores + BY_KEY),
    ),
    # ---- functions
    "a line and gelu": bug(
        POST,
        "the activation is 0.02 x below -1.5, gelu from -1.5 to 1.75, x above 1.75" + EVERY_LAYER,
        bent=lambda x: torch.where(x < -1.5, 0.02 * x, torch.where(x > 1.75, x, F.gelu(x))),
    ),
    "a constant below": bug(
        POST,
        "the activation is -0.1 below -1.5, gelu above -1.5" + EVERY_LAYER,
        bent=lambda x: torch.where(x < -1.5, torch.tensor(-0.1), F.gelu(x)),
    ),
    "a line in the middle": bug(
        POST,
        "the activation is gelu below -1, 0.5 x + 0.17 from -1 to 1, gelu above 1" + EVERY_LAYER,
        bent=lambda x: torch.where(x.abs() < 1, 0.5 * x + 0.17, F.gelu(x)),
    ),
}


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


def found_in(pair: reference.Pair, seconds: float, **steps: Any) -> Diagnosis:
    dump = port.dump(weights_of(pair.ours), pair.config, pair.batch, **steps)
    return diagnose(pair.ours, pair.batch, dump, seconds=seconds)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_BRIEF else [pytest.mark.slow]) for name in BUGS]
)
def test_what_the_dump_shows_is_named(pair: reference.Pair, name: str) -> None:
    planted = BUGS[name]
    found = found_in(pair, 60, **planted.steps)
    assert found.explained, str(found)
    [finding] = found.findings
    assert finding.tap == planted.tap
    assert planted.words in finding.faults[0].name, str(found)


@pytest.mark.parametrize("size", [1e-1, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_an_arrangement_with_other_errors_has_no_name(pair: reference.Pair, size: float) -> None:
    noise = size * torch.randn(TEXTS, SIZE, 24, generator=torch.Generator().manual_seed(0))
    found = found_in(pair, 1, linear=of("q_proj", lambda x, w, b: (x @ w.T + b).roll(5, -1) + noise))
    assert (found.faults, found.first_tap) == ((), Q), str(found)


# ---- index maps in words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([7, 6, 5, 4, 3, 2, 1, 0], "heads backwards"),
        ([5, 6, 7, 0, 1, 2, 3, 4], "heads moved by 3"),
        ([2, 2, 2, 2], "heads the same for all: 2"),
        ([0, 2, 1, 3], "heads 1 and 2 exchanged"),
        ([0, 1, 4, 3, 4, 5], "heads 4 in place of 2"),
        ([-1, -1, 0, 1, 2], "heads moved by 2, the first 2 0"),
        ([0, 0, 1, 2, 3], "heads moved by 1, the first one repeated"),
        ([0, 1, 2, 0, 1, 2, 0, 1, 2], "heads 0 to 2 again and again"),
        ([0, 0, 0, 1, 1, 1], "heads 3 times each, from 0 on"),
        ([0, 3, 1, 4, 2, 5], "heads strided: i*3 mod 6 + i//2"),
        ([2, 1, 0, 5, 4, 3, 8, 7, 6], "heads in blocks of 3, each backwards"),
        ([0, 2, 1, 3, 4, 6, 5, 7], "heads in blocks of 4, each transposed"),
        ([0, 1, 2, 3, 4, 7, 5, 6], "heads from 5 on moved by 1"),
        ([0, -1, 2, -1], "heads 1, 3 0"),
        ([3, 0, 0, 1], "heads 3, 0, 0, 1 stand where 0 to 3 should"),
        ([3, 0, 0, 1, 9, 9, 1, 2, 5, 5], "heads 3, 0, 0, 1, 9, 9, 1, 2, ... stand where 0 to 7, ... should"),
    ],
)
def test_the_words_are_the_rule(indices: list[int], words: str) -> None:
    assert in_words(indices, "heads") == words


# ---- chance ----------------------------------------------------------------------------------------------------------


def arranged(wanted: Tensor, source: Tensor, tolerance: float = 1e-6) -> list[Gather]:
    real = torch.ones(wanted.shape[:2], dtype=torch.bool)
    return list(arrangements(wanted, source, torch.ones_like(wanted, dtype=torch.bool), real, 2, tolerance))


def test_a_map_is_found_on_half_of_the_values_and_confirmed_on_the_rest() -> None:
    source = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert arranged(source.roll(3, -1), source)[0] == Gather("feature", (5, 6, 7, 0, 1, 2, 3, 4))
    half = source.roll(3, -1).clone()
    half.view(10, 8)[1::2] = source.view(10, 8)[1::2]
    assert arranged(half, source) == []


def test_slices_that_are_all_alike_show_no_map() -> None:
    random = torch.Generator().manual_seed(0)
    source = 1 + 1e-5 * torch.randn(2, 5, 8, dtype=torch.float64, generator=random)
    assert arranged(source.roll(3, -1), source) == []


def test_noise_is_not_made_of_straight_lines() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, dtype=torch.float64, generator=random)
    assert pieces_of(x, torch.randn(400, dtype=torch.float64, generator=random), 1e-6) is None
    found = pieces_of(x, torch.where(x < 0.5, 2 * x, x), 1e-9)
    assert found is not None
    assert found.pieces == (Piece(None, 2.0, 0.0), Piece(None, 1.0))
    assert str(found) == "2 x below 0.5, x above 0.5"


def test_a_mask_by_distance_is_the_same_in_each_head_of_a_longer_text() -> None:
    near = tuple(abs(place - 3) <= 1 for place in range(7))  # of texts of 4 tokens
    hidden = Hidden("distance", (near, near, near), (1, 4), padding=False, right=())
    found = hidden.of_scores(torch.zeros(1, 3, 6, 6), torch.ones(1, 6, dtype=torch.bool), 1)
    places = torch.arange(6)
    assert torch.equal(found[0], ((places[None] - places[:, None]).abs() <= 1).expand(3, 6, 6))
