"""Gradients and steps of training under names: the loss is as documented, nothing of the model is changed."""

import pytest
import reference
import torch
from reference import CONFIGS, Pair
from torch import nn

from xlmr_core.parity import gradients as module
from xlmr_core.parity.adapters import transformers_parameters
from xlmr_core.parity.compare import compare
from xlmr_core.parity.gradients import LEARNING_RATE, gradients, token_losses, training_losses

NORMS = pytest.mark.parametrize("norm", CONFIGS)


def pair_of(norm: str) -> Pair:
    return reference.build_pair(CONFIGS[norm])


def plain_loss(pair: Pair) -> torch.Tensor:
    """The documented loss, written with torch's own masking."""
    labels = pair.batch["input_ids"].masked_fill(~pair.real, -100)
    return nn.functional.cross_entropy(pair.ours(**pair.batch).logits.flatten(0, 1), labels.flatten())


def test_the_loss_is_that_of_real_tokens() -> None:
    pair = pair_of("post-norm")
    losses = token_losses(pair.ours, pair.batch)
    assert (losses[~pair.real] == 0).all()
    torch.testing.assert_close(losses[pair.real].mean(), plain_loss(pair))


@NORMS
def test_gradients_are_those_of_the_mean_and_run_from_the_head_down(norm: str) -> None:
    pair = pair_of(norm)
    found = gradients(pair.ours, pair.batch)
    assert all(parameter.grad is None for parameter in pair.ours.parameters())
    plain_loss(pair).backward()
    names = [name for name, _ in pair.ours.named_parameters()]
    assert list(found) == ["loss", *(f"gradients.{name}" for name in reversed(names))]
    for name, parameter in pair.ours.named_parameters():
        torch.testing.assert_close(found[f"gradients.{name}"], parameter.grad)


@NORMS
def test_transformers_has_the_same_gradients_and_losses_bit_for_bit(norm: str) -> None:
    pair = pair_of(norm)
    names = transformers_parameters(pair.theirs, pair.config)
    ours = gradients(pair.ours, pair.batch) | {"training.losses": training_losses(pair.ours, pair.batch, 4)}
    theirs = gradients(pair.theirs, pair.batch, names=names)
    theirs["training.losses"] = training_losses(pair.theirs, pair.batch, 4)
    comparison = compare(ours, theirs, real=pair.real)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


def test_training_goes_down_the_gradient_and_leaves_the_model() -> None:
    pair = pair_of("post-norm")
    before = {name: tensor.clone() for name, tensor in pair.ours.state_dict().items()}
    losses = training_losses(pair.ours, pair.batch, 2)
    assert losses.shape == (3, *pair.real.shape)
    for name, tensor in pair.ours.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(losses[0], token_losses(pair.ours, pair.batch))
    means = losses.sum(dim=(1, 2)) / pair.real.sum()
    assert means[0] > means[1] > means[2]
    plain_loss(pair).backward()
    with torch.no_grad():
        for parameter in pair.ours.parameters():
            parameter -= LEARNING_RATE * parameter.grad
    torch.testing.assert_close(token_losses(pair.ours, pair.batch), losses[1], atol=1e-4, rtol=1e-4)


def test_a_large_model_keeps_column_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of("post-norm")
    whole = gradients(pair.ours, pair.batch)
    monkeypatch.setattr(module, "WHOLE", 10)
    summed = gradients(pair.ours, pair.batch)
    assert torch.equal(summed["gradients.lm_head.norm.weight"], whole["gradients.lm_head.norm.weight"])
    name = "gradients.encoder.layers.1.feed_forward.up_proj.weight"
    assert name not in summed
    assert torch.equal(summed[f"{name}.column_sums"], whole[name].sum(dim=0))


def test_train_mode_and_models_without_logits_are_refused() -> None:
    pair = pair_of("post-norm")
    with pytest.raises(ValueError, match="has no vocabulary logits"):
        gradients(pair.ours.encoder, pair.batch)
    with pytest.raises(ValueError, match="is in train mode"):
        gradients(pair.ours.train(), pair.batch)
