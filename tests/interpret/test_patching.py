"""Activation patching is what two interventions by hand give, and attribution patching is its first-order term."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.interpret import activation_patching, attribution_patching, head_parts, position_parts
from xlmr_core.pretrained import PretrainedModel

CONTEXTS = "layers.*.attention.context"
CLEAN = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 11, 12, 13, 2, 1, 1]])
CORRUPTED = torch.tensor([[0, 5, 20, 7, 8, 21, 2], [0, 11, 30, 13, 2, 1, 1]])
PAIR = ({"input_ids": CLEAN}, {"input_ids": CORRUPTED})
CONFIGS = pytest.mark.parametrize("norm", reference.CONFIGS)


def build(norm: str = "post-norm", cls: type[PretrainedModel] = XLMRobertaForMaskedLM) -> Any:
    model: Any = cls(reference.CONFIGS[norm]).double().eval()
    reference.randomize(model)
    return model


def score(output: Any) -> Tensor:
    return output.logits[:, 3, 17] - output.logits[:, 3, 18]


@CONFIGS
def test_every_part_is_one_intervention_by_hand(norm: str) -> None:
    model = build(norm)
    effects = activation_patching(model, *PAIR, score, CONTEXTS, head_parts(model.config))
    assert effects.shape == (3, 4, 2)
    with torch.no_grad():
        with model.capture(CONTEXTS) as clean:
            model(CLEAN)
        before = score(model(CORRUPTED))
        for layer in range(3):
            for head in range(4):
                name, own = f"layers.{layer}.attention.context", slice(6 * head, 6 * head + 6)

                def change(old: Tensor, name: str = name, own: slice = own) -> Tensor:
                    new = old.clone()
                    new[:, :, own] = clean[name][:, :, own]
                    return new

                with model.intervene({name: change}):
                    expected = score(model(CORRUPTED)) - before
                assert (effects[layer, head] - expected).abs().max() < 1e-12


def test_the_rows_of_a_batch_are_patched_each_with_its_own() -> None:
    model = build()
    both = activation_patching(model, *PAIR, score, CONTEXTS, head_parts(model.config))
    for row in range(2):
        pair = ({"input_ids": ids[row : row + 1]} for ids in (CLEAN, CORRUPTED))
        one = activation_patching(model, *pair, score, CONTEXTS, head_parts(model.config))
        assert (both[:, :, row : row + 1] - one).abs().max() < 1e-12


def test_no_part_and_all_parts() -> None:
    model = build()
    parts = torch.tensor([False, True])[:, None, None]
    nothing, everything = activation_patching(model, *PAIR, score, "embeddings.output", parts)[0]
    with torch.no_grad():
        difference = score(model(CLEAN)) - score(model(CORRUPTED))
    assert nothing.abs().max() < 1e-12
    assert (everything - difference).abs().max() < 1e-12
    [tokens] = activation_patching(model, *PAIR, score, "embeddings.output", position_parts(7))
    assert tokens.shape == (7, 2)
    unchanged = (CLEAN == CORRUPTED).T
    assert tokens[unchanged].abs().max() < 1e-12
    assert tokens[~unchanged].abs().min() > 1e-3


@CONFIGS
def test_attribution_is_exact_where_the_score_is_linear(norm: str) -> None:
    model = build(norm)
    direction = torch.randn(model.config.hidden_size, dtype=torch.float64)
    tap = "final_norm" if norm == "pre-norm" else "layers.-1.output"
    linear = [*PAIR, lambda output: output.last_hidden_state[:, 2] @ direction, tap, position_parts(7)]
    exact, estimate = activation_patching(model, *linear), attribution_patching(model, *linear)
    assert (exact - estimate).abs().max() < 1e-12
    assert exact.abs().max() > 1e-2


@CONFIGS
def test_attribution_is_the_first_order_term(norm: str) -> None:
    """The error falls with the square of the difference, and the effect with the difference."""
    errors, effects = [], []
    for size in (1e-4, 1e-5):
        model = build(norm)
        table = model.encoder.embeddings.word_embeddings.weight.data
        for clean, corrupted in zip(CLEAN[CLEAN != CORRUPTED], CORRUPTED[CLEAN != CORRUPTED], strict=True):
            table[clean] = table[corrupted] + size * torch.randn(
                24, generator=torch.Generator().manual_seed(int(clean))
            )
        given = (model, *PAIR, score, CONTEXTS, head_parts(model.config))
        exact, estimate = activation_patching(*given), attribution_patching(*given)
        errors.append((exact - estimate).abs().max())
        effects.append(exact.abs().max())
    assert errors[0] < 0.01 * effects[0]
    assert 70 < errors[0] / errors[1] < 140  # ten squared
    assert 9 < effects[0] / effects[1] < 11


def test_attribution_needs_no_trainable_parameter_and_leaves_no_gradient() -> None:
    model = build()
    given = (model, *PAIR, score, "layers.*.mid", position_parts(7))
    expected = attribution_patching(*given)
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(attribution_patching(*given), expected)
    model.requires_grad_(False)
    assert torch.equal(attribution_patching(*given), expected)


def test_a_tap_that_the_score_does_not_read_has_no_effect() -> None:
    model = build()
    given = (model, *PAIR, lambda output: output.last_hidden_state[:, 0, 0], "lm_head.dense", position_parts(7))
    assert not activation_patching(*given).any()
    assert not attribution_patching(*given).any()


@pytest.mark.parametrize("cls", [XLMRobertaModel, XLMRobertaForSequenceClassification])
def test_other_classes(cls: type[PretrainedModel]) -> None:
    model = build(cls=cls)
    found = activation_patching(
        model, *PAIR, lambda output: output.last_hidden_state[:, 0, 0], CONTEXTS, head_parts(model.config)
    )
    assert found.shape == (3, 4, 2)


def test_the_estimate_on_the_bundled_checkpoint() -> None:
    """All heads of xlmr-tiny on four pairs of texts: the correlation that docs/interpretability shows."""
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    clean, corrupted = (
        tokenizer([f"{who} said that {w} was in the <mask>." for w in ("he", "it")]) for who in ("He", "She")
    )
    ids = tokenizer("school").input_ids[0, 1]

    def of_school(output: Any) -> Tensor:
        return output.logits[clean.input_ids == tokenizer.mask_token_id].log_softmax(dim=-1)[:, ids]

    given = (model, clean, corrupted, of_school, CONTEXTS, head_parts(model.config))
    exact, estimate = activation_patching(*given), attribution_patching(*given)
    assert torch.corrcoef(torch.stack([exact.flatten(), estimate.flatten()]))[0, 1] > 0.9


class TestErrors:
    def test_batches_that_do_not_fit(self) -> None:
        model, parts = build(), head_parts(reference.POST_NORM)
        longer = {"input_ids": torch.cat([CLEAN, CLEAN[:, :1]], dim=1)}
        with pytest.raises(ValueError, match=r"the clean batch has the shape \(2, 8\) and the corrupted one \(2, 7\)"):
            activation_patching(model, longer, PAIR[1], score, CONTEXTS, parts)
        padded = {"input_ids": CLEAN, "attention_mask": torch.ones_like(CLEAN)}
        with pytest.raises(ValueError, match="padding lies in other places"):
            attribution_patching(model, padded, PAIR[1], score, CONTEXTS, parts)
        packed = {"input_ids": CLEAN[0], "lengths": torch.tensor([7])}
        with pytest.raises(ValueError, match="needs padded batches"):
            activation_patching(model, packed, packed, score, CONTEXTS, parts)

    @pytest.mark.parametrize("patch", [activation_patching, attribution_patching])
    def test_parts_and_scores_of_another_shape(self, patch: Any) -> None:
        model = build()
        with pytest.raises(ValueError, match=r"shape \(K, 1 or 7, 1 or 24\) for the tap layers.0.mid.*got torch.int64"):
            patch(model, *PAIR, score, "layers.0.mid", torch.ones(4, 1, 24, dtype=torch.long))
        with pytest.raises(ValueError, match=r"got torch.bool \(4, 24\)"):
            patch(model, *PAIR, score, "layers.0.mid", torch.ones(4, 24, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"one number for each of the 2 rows.*got \(\)"):
            patch(model, *PAIR, lambda output: output.logits.sum(), "layers.0.mid", position_parts(7))
        with pytest.raises(ValueError, match="no tap matches"):
            patch(model, *PAIR, score, "layers.9.mid", position_parts(7))

    def test_train_mode(self) -> None:
        with pytest.raises(ValueError, match="train mode"):
            activation_patching(build().train(), *PAIR, score, CONTEXTS, head_parts(reference.POST_NORM))
