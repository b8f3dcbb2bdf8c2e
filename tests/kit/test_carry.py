"""A change of terms made in a model gives the same numbers under every attention kernel, or is refused."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core.parity.faults import Fault, find_fault
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.terms import Term, scaled, terms_of
from xlmr_core.parity.tap_values import elements
from xlmr_core.parity.variants import variant

ATTENTION = "layers.1.attention."
TAPS = [f"{ATTENTION}{name}" for name in ("q", "scores", "probs", "context", "output")]


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM, dtype=torch.float64)


def twice(model: Any, tap: str) -> Fault:
    """The change that a tap is twice what it should be."""
    term: Term = scaled(terms_of(model)[tap], 2.0)
    fault = fault_of(Change({tap: term}, "twice", "", 1.0))
    assert isinstance(fault, Fault)
    return fault


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return elements("lm_head.logits", model(**batch).logits, batch["attention_mask"].bool())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tap", TAPS)
def test_a_change_is_carried_under_every_attention_kernel(pair: reference.Pair, tap: str, attention: str) -> None:
    eager = variant(pair.ours, torch.float64, "eager", "cpu")
    with eager.intervene({tap: lambda x: torch.where(x > -1e300, 2 * x, x)}):  # the number of the mask stays
        expected = logits(eager, pair.batch)
    model = variant(pair.ours, torch.float64, attention, "cpu")
    right = logits(model, pair.batch)
    with twice(model, tap).applied(model):
        found = logits(model, pair.batch)
    assert reference.gap(found, expected) <= reference.ORACLE_TOLERANCE
    assert reference.gap(found, right) > 1e-3
    assert torch.equal(logits(model, pair.batch), right)  # put back, with its kernel


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_change_reads_what_another_fault_left_at_the_probs(pair: reference.Pair, attention: str) -> None:
    """The context is twice what the wrong probs give, not twice what the right ones would."""
    model = variant(pair.ours, torch.float64, attention, "cpu")
    with find_fault("mask_missing").applied(model), model.intervene({f"{ATTENTION}context": lambda x: 2 * x}):
        expected = logits(model, pair.batch)
    with find_fault("mask_missing").applied(model), twice(model, f"{ATTENTION}context").applied(model):
        assert reference.gap(logits(model, pair.batch), expected) <= reference.ORACLE_TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_batch_is_refused(pair: reference.Pair, attention: str) -> None:
    model, real = variant(pair.ours, torch.float64, attention, "cpu"), pair.real
    packed = {"input_ids": pair.batch["input_ids"][real], "lengths": real.sum(dim=1)}
    with (
        twice(model, f"{ATTENTION}q").applied(model),
        pytest.raises(ValueError, match=r"a change at layers\.1\.attention\.q cannot be made in a packed batch"),
    ):
        model(**packed)
