"""Texts that come back in another order are said to be that, and what else is wrong is found behind it."""

import copy

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import Diagnosis, diagnose
from xlmr_core.parity.tap_values import Dump

LENGTHS = (5, 9, 3, 7, 4)
SORTED = (1, 3, 0, 4, 2)  # the longest first


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


@pytest.fixture(scope="module")
def batch(pair: reference.Pair) -> dict[str, Tensor]:
    torch.manual_seed(0)
    mask = torch.tensor([[place < length for place in range(max(LENGTHS))] for length in LENGTHS]).long()
    ids = torch.randint(4, pair.ours.config.vocab_size, mask.shape)
    return {"input_ids": torch.where(mask.bool(), ids, pair.ours.config.pad_token_id), "attention_mask": mask}


def packed(dump: Dump, mask: Tensor, order: tuple[int, ...]) -> dict[str, Tensor]:
    """The dump of a port that packs sorted texts, and cuts the result by the lengths of those that are not sorted."""
    real = mask.bool()
    found: dict[str, Tensor] = {}
    for tap, x in dump.items():
        found[tap] = x[list(order)]
        if x.dim() == 3:
            found[tap] = torch.zeros_like(x)
            found[tap][real] = torch.cat([x[text][real[text]] for text in order])
    return found


def found_in(pair: reference.Pair, batch: dict[str, Tensor], dump: Dump) -> Diagnosis:
    return diagnose(pair.ours, batch, dump, seconds=5)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (SORTED, "sorted by length, the longest first, and were not put back"),
        ((2, 4, 0, 3, 1), "sorted by length, the shortest first, and were not put back"),
        ((4, 3, 2, 1, 0), "backwards, and were not put back"),
        ((3, 4, 1, 2, 0), "sorted by length, the longest first, and put back by that order, not by its inverse"),
        ((2, 0, 1, 4, 3), "in the order 2, 0, 1, 4, 3"),
    ],
)
@pytest.mark.parametrize("taps", [("layers.0.output", "layers.1.output"), ("layers.2.output",)])
def test_packed_texts(
    pair: reference.Pair, batch: dict[str, Tensor], order: tuple[int, ...], words: str, taps: tuple[str, ...]
) -> None:
    right = dump_of(pair.ours, batch)
    found = found_in(pair, batch, packed({tap: right[tap] for tap in taps}, batch["attention_mask"], order))
    assert found.faults == (f"{taps[0]}: the texts are {words}",)
    assert found.explained


def test_rows_of_a_padded_batch_with_all_taps(pair: reference.Pair, batch: dict[str, Tensor]) -> None:
    dump = {tap: tensor[list(SORTED)] for tap, tensor in dump_of(pair.ours, batch).items()}
    found = found_in(pair, batch, dump)
    assert found.faults == (
        "embeddings.word: the texts are sorted by length, the longest first, and were not put back",
    )
    assert found.explained


def test_what_else_is_wrong_is_found_behind_it(pair: reference.Pair, batch: dict[str, Tensor]) -> None:
    port = copy.deepcopy(pair.ours)
    port.encoder.layers[1].feed_forward.down_proj.bias.data.zero_()
    right = dump_of(port, batch)
    dump = {tap: right[tap] for tap in ("layers.0.output", "layers.1.output", "layers.2.output")}
    found = found_in(pair, batch, packed(dump, batch["attention_mask"], SORTED))
    order, bias = found.faults
    assert "sorted by length" in order
    assert bias == "down_bias_missing in layer 1 only"
    assert found.explained


def test_ids_of_other_texts_under_the_right_mask_are_no_order_of_texts(
    pair: reference.Pair, batch: dict[str, Tensor]
) -> None:
    wrong = {**batch, "input_ids": batch["input_ids"][list(SORTED)]}
    found = found_in(pair, batch, dump_of(pair.ours, wrong))
    assert not any("the texts are" in name for name in found.faults)
