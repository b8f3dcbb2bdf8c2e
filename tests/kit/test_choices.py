"""The kit on multiple choice: its logits have a term, and a change there is found, carried and named."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.terms import scaled, terms_of, weights_of
from xlmr_core.parity.variants import variant

TAP = "choice.logits"


@pytest.fixture(scope="module", params=["post-norm", pytest.param("pre-norm", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> reference.Pair:
    return reference.build_head_pair(reference.CONFIGS[request.param], "ForMultipleChoice")


def dump_with(pair: reference.Pair, change: Any) -> dict[str, Tensor]:
    """What a port has that computes the logits so."""
    with pair.ours.intervene({TAP: change}):
        return dump_of(pair.ours, pair.batch)


def test_the_term_of_the_logits_gives_the_logits(pair: reference.Pair) -> None:
    model = variant(pair.ours, torch.float64, "eager", "cpu")
    taps, terms = dump_of(model, pair.batch), terms_of(model)
    ids = pair.batch["input_ids"].flatten(0, 1)
    heads, pad = pair.config.num_attention_heads, pair.config.pad_token_id
    scene = Recorded(terms, taps, weights=weights_of(model), heads=heads, pad=pad, rows=len(ids))
    scene.choices = 3
    found = scene.evaluate(terms[TAP])
    assert found.shape == taps[TAP].shape == (2, 3, 1)
    assert torch.allclose(found, taps[TAP], rtol=0, atol=1e-12)


def test_a_right_port_has_no_fault(pair: reference.Pair) -> None:
    assert diagnose(pair.ours, pair.batch, dump_of(pair.ours, pair.batch)).ok


@pytest.mark.parametrize("only", [False, True], ids=["every tap", "the logits only"])
def test_a_planted_change_of_the_logits_is_named(pair: reference.Pair, only: bool) -> None:
    bias = pair.ours.classifier.bias.detach()
    dump = dump_with(pair, lambda logits: logits - bias)
    diagnosis = diagnose(
        pair.ours, pair.batch, {TAP: dump[TAP], "pooler.output": dump["pooler.output"]} if only else dump
    )
    assert diagnosis.explained, str(diagnosis)
    assert diagnosis.first_tap == TAP
    assert "classifier.bias is not added" in diagnosis.faults[0], str(diagnosis)


def test_a_fault_of_the_catalogue_is_named(pair: reference.Pair) -> None:
    with find_fault("pooler_tanh_missing").applied(pair.ours):
        dump = dump_of(pair.ours, pair.batch)
    assert diagnose(pair.ours, pair.batch, dump).faults == ("pooler_tanh_missing",)


def test_noise_has_no_name(pair: reference.Pair) -> None:
    noise = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(pair, lambda logits: logits + noise), seconds=1)
    assert (diagnosis.faults, diagnosis.first_tap) == ((), TAP)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tap", [TAP, "layers.1.attention.scores"])
def test_a_change_is_carried_where_questions_have_several_choices(
    pair: reference.Pair, tap: str, attention: str
) -> None:
    eager, model = (variant(pair.ours, torch.float64, kind, "cpu") for kind in ("eager", attention))
    change = fault_of(Change({tap: scaled(terms_of(model)[tap], 2.0)}, "twice", "", 1.0))
    with torch.no_grad(), eager.intervene({tap: lambda x: torch.where(x > -1e300, 2 * x, x)}):
        expected = eager(**pair.batch).logits
    with torch.no_grad(), change.applied(model):
        found = model(**pair.batch).logits
    assert found.shape == (2, 3)
    assert reference.gap(found, expected) <= reference.ORACLE_TOLERANCE


def test_ids_without_an_axis_of_choices_are_refused(pair: reference.Pair) -> None:
    rows = {name: tensor.flatten(0, 1) for name, tensor in pair.batch.items()}
    with pytest.raises(ValueError, match=r"must have the shape \(batch, choices, sequence\), got"):
        diagnose(pair.ours, rows, dump_of(pair.ours, pair.batch))
