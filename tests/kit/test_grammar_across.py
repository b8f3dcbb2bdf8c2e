"""Attention to other texts of a packed batch is named, planted in `step_port`."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import reference
import torch
from kit import step_port as port
from torch import Tensor

from xlmr_core.parity.diagnose import Diagnosis, diagnose
from xlmr_core.parity.grammar.across import KEYS
from xlmr_core.parity.grammar.terms import weights_of

LENGTHS = (5, 9, 3, 11, 6)
STARTS = (0, 5, 14, 17, 28)
TOKENS = sum(LENGTHS)
SCORES, PROBS, CONTEXT = (f"layers.0.attention.{name}" for name in ("scores", "probs", "context"))
FOLLOW = "each text also attends to the texts that follow it in the packed batch, up to the length of the longest"
LEFT = "each text also attends to what longer texts before it left in the buffers of keys and values"
ALL = "each text also attends to all other texts of the packed batch"
# The tokens of other texts that each text reads, by their numbers in the packed batch, in any order.
READS: dict[str, list[list[int]]] = {
    FOLLOW: [
        [*range(start + own, min(start + 11, TOKENS))] for start, own in zip(STARTS, LENGTHS, strict=True)
    ],
    LEFT: [[], [], [8, 9, 10, 11, 12, 13], [], [23, 24, 25, 26, 27]],
    ALL: [
        [token for token in range(TOKENS) if not start <= token < start + own]
        for start, own in zip(STARTS, LENGTHS, strict=True)
    ],
    "each text also attends to all texts before it in the packed batch": [[*range(start)] for start in STARTS],
    "each text also attends to all texts after it in the packed batch": [
        [*range(start + own, TOKENS)] for start, own in zip(STARTS, LENGTHS, strict=True)
    ],
    "each text also attends to the text before it in the packed batch": [
        [], *([*range(start, start + own)] for start, own in zip(STARTS[:-1], LENGTHS[:-1], strict=True))
    ],
    "each text also attends to the text after it in the packed batch": [
        *([*range(start, start + own)] for start, own in zip(STARTS[1:], LENGTHS[1:], strict=True)), []
    ],
    "each text also attends to the tokens that follow it in the packed batch, up to whole blocks of 8 keys": [
        [*range(start + own, min(start + -(-own // 8) * 8, TOKENS))] for start, own in zip(STARTS, LENGTHS, strict=True)
    ],
}  # fmt: skip
SHOWN = {"scores": SCORES, "probs": PROBS, "context": CONTEXT}  # what a dump shows of it -> the first wrong tap
IN_BRIEF = {("probs", FOLLOW), ("scores", LEFT)}
CASES = [
    pytest.param(shown, says, marks=[] if (shown, says) in IN_BRIEF else [pytest.mark.slow])
    for shown in SHOWN
    for says in READS
    if shown != "scores" or says in (FOLLOW, LEFT)
]


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


def batch(*, left: bool = False) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 40, (len(LENGTHS), max(LENGTHS)), generator=random)
    places = torch.arange(max(LENGTHS)).flip(0) if left else torch.arange(max(LENGTHS))
    mask = (places < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


class Across:
    """The steps of attention in which each text also reads tokens of other texts.

    Attributes:
        reads: As in `READS`.
        real: Which tokens are real.
        shown: The first tap that shows it.
        layers: Those that do it.
    """

    def __init__(self, reads: list[list[int]], real: Tensor, shown: str, layers: tuple[int, ...]) -> None:
        self.reads, self.real, self.shown, self.layers = reads, real, shown, layers
        self.layer = -1

    def steps(self) -> Mapping[str, Callable[..., Any]]:
        return {"scaled": self.scaled, "hidden": self.hidden, "probs": self.probs, "mixed": self.mixed}

    def scaled(self, q: Tensor, k: Tensor) -> Tensor:
        self.layer += 1
        scores = port.scaled(q, k)
        packed = k.transpose(1, 2)[self.real]
        self.others = [port.scaled(q[t], packed[its].transpose(0, 1)) for t, its in enumerate(self.reads)]
        return scores

    def hidden(self, scores: Tensor, real: Tensor, ids: Tensor) -> Tensor:
        scores = self.own = port.hidden(scores, real, ids)
        if self.layer in self.layers and self.shown == "scores":
            scores = scores.clone()
            for t, others in enumerate(self.others):
                end = int(self.real[t].sum())
                scores[t, :, :, end : end + others.shape[-1]] = others
        return scores

    def probs(self, scores: Tensor, real: Tensor) -> Tensor:
        if self.layer in self.layers and self.shown == "probs":
            return torch.stack([self.of_text(t)[..., : real.shape[1]] for t in range(len(real))])
        return scores.softmax(-1)

    def of_text(self, t: int) -> Tensor:
        return torch.cat([self.own[t], self.others[t]], dim=-1).softmax(-1)

    def mixed(self, scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
        if self.layer not in self.layers:
            return probs @ v
        packed = v.transpose(1, 2)[self.real]
        return torch.stack(
            [
                self.of_text(t) @ torch.cat([v[t], packed[its].transpose(0, 1)], dim=1)
                for t, its in enumerate(self.reads)
            ]
        )


def dump_of(
    pair: reference.Pair, given: dict[str, Tensor], says: str, shown: str, layers: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Tensor]:
    steps = Across(READS[says], given["attention_mask"].bool(), shown, layers).steps()
    return port.dump(weights_of(pair.ours), pair.config, given, **steps)


def named(found: Diagnosis, words: str) -> None:
    assert found.explained, str(found)
    [finding] = found.findings
    assert words in finding.faults[0].name, str(found)
    assert len(finding.faults) <= 3  # on this batch a block of 64 is all that follows


@pytest.mark.parametrize(("shown", "says"), CASES)
def test_attention_to_other_texts_is_named(pair: reference.Pair, shown: str, says: str) -> None:
    given = batch()
    found = diagnose(pair.ours, given, dump_of(pair, given, says, shown), seconds=1)
    named(found, f"{SHOWN[shown]}: {says} (in every layer)")
    assert found.first_tap == SHOWN[shown]


@pytest.mark.slow
def test_padding_on_the_left_is_no_part_of_the_packed_batch(pair: reference.Pair) -> None:
    given = batch(left=True)
    found = diagnose(pair.ours, given, dump_of(pair, given, FOLLOW, "probs"), seconds=1)
    named(found, f"{PROBS}: {FOLLOW} (in every layer)")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        pytest.param((1,), f"layers.1.attention.probs: {ALL} (in layer 1 only)", marks=pytest.mark.slow),
        pytest.param((0, 1), f"{PROBS}: {ALL} (in every layer but 2)", marks=pytest.mark.slow),
        pytest.param((0, 2), f"{PROBS}: {ALL} (in every layer but 1)", marks=pytest.mark.slow),
    ],
)
def test_the_layers_that_have_it_are_named(pair: reference.Pair, layers: tuple[int, ...], words: str) -> None:
    given = batch()
    named(diagnose(pair.ours, given, dump_of(pair, given, ALL, "probs", layers), seconds=1), words)


def test_a_layer_whose_longest_text_is_right_is_no_evidence(pair: reference.Pair) -> None:
    given = batch()  # the longest text, the only one without padding, reads nothing more
    found = diagnose(pair.ours, given, dump_of(pair, given, FOLLOW, "probs", (0, 1)), seconds=1)
    named(found, f"{PROBS}: {FOLLOW} (in every layer but 2)")


@pytest.mark.parametrize("says", [pytest.param(FOLLOW, marks=pytest.mark.slow), ALL])
def test_outputs_of_layers_are_enough(pair: reference.Pair, says: str) -> None:
    given = batch()
    dump = dump_of(pair, given, says, "context")
    dump = {tap: x for tap, x in dump.items() if tap.count(".") == 2 and tap.endswith(".output")}
    named(diagnose(pair.ours, given, dump, seconds=1), f"{CONTEXT}: {says} (in every layer)")


@pytest.mark.slow
@pytest.mark.parametrize("says", [FOLLOW, LEFT, ALL])
def test_the_last_hidden_state_is_enough(pair: reference.Pair, says: str) -> None:
    given = batch()
    dump = {"layers.2.output": dump_of(pair, given, says, "context")["layers.2.output"]}
    named(diagnose(pair.ours, given, dump, seconds=1), f"{CONTEXT}: {says} (in every layer)")


def test_what_gives_the_same_numbers_is_named_together(pair: reference.Pair) -> None:
    given = {name: x[3:] for name, x in batch().items()}  # two texts, the longer one first
    real = given["attention_mask"].bool()
    reads = [[], [*range(LENGTHS[3])]]
    steps = Across(reads, real, "probs", (0, 1, 2)).steps()
    found = diagnose(pair.ours, given, port.dump(weights_of(pair.ours), pair.config, given, **steps), seconds=1)
    [finding] = found.findings
    names = [f"{PROBS}: each text also attends to {words} before it in the packed batch (in every layer)" for words in
             ("all texts", "the text")]  # fmt: skip
    assert [fault.name for fault in finding.faults] == names
    assert None not in finding.told_apart_by[1:]


# ---- what is no attention to other texts -----------------------------------------------------------------------------


def test_probs_that_are_too_small_are_not_enough(pair: reference.Pair) -> None:
    """The context has the values of the text's own keys only."""

    def of_own_keys(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
        return probs @ v

    given = batch()
    steps = {**Across(READS[ALL], given["attention_mask"].bool(), "probs", (0, 1, 2)).steps(), "mixed": of_own_keys}
    found = diagnose(pair.ours, given, port.dump(weights_of(pair.ours), pair.config, given, **steps), seconds=1)
    assert found.first_tap == PROBS
    assert "attends to" not in str(found)


@pytest.mark.parametrize("factor", ["of each query", pytest.param("of all", marks=pytest.mark.slow)])
def test_a_factor_of_probs_is_not_enough(pair: reference.Pair, factor: str) -> None:
    random = torch.Generator().manual_seed(7)
    numbers = torch.rand(len(LENGTHS), 4, max(LENGTHS), 1, generator=random) if factor == "of each query" else 0.5

    def smaller(scores: Tensor, real: Tensor) -> Tensor:
        return scores.softmax(-1) * numbers

    given = batch()
    found = diagnose(pair.ours, given, port.dump(weights_of(pair.ours), pair.config, given, probs=smaller), seconds=1)
    assert found.first_tap == PROBS
    assert "attends to" not in str(found)


def test_a_batch_of_one_text_has_no_other_texts() -> None:
    real = torch.tensor([[True, True, False]])
    assert all(set(keys(real).flatten().tolist()) == {0, 1, -1} for keys in KEYS.values())
