"""Train mode: dropout sits where transformers has it, gradients agree, and so do the weights after some steps."""

import pytest
import reference
import torch
from reference import CONFIGS, POST_NORM, PRE_NORM, Pair, build_pair, gpu_only
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind

norms = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])


@norms
@attentions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dropout_bit_for_bit(config: XLMRobertaConfig, attention: AttentionKind, dtype: torch.dtype) -> None:
    reference.check_training(build_pair(config, attention, dtype))


@norms
@attentions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_bit_for_bit(config: XLMRobertaConfig, attention: AttentionKind, dtype: torch.dtype) -> None:
    reference.check_gradients(build_pair(config, attention, dtype))


@gpu_only
@norms
@attentions
def test_gradients_on_a_gpu(config: XLMRobertaConfig, attention: AttentionKind, device: str) -> None:
    """Our error against float64 on the CPU is at most transformers' own, for each parameter."""
    pair, exact = build_pair(config, attention, device=device), build_pair(config, attention, torch.float64)
    truth = {name: parameter.grad for name, _, parameter in with_gradients(exact)}
    for name, ours, theirs in with_gradients(pair):
        error, allowed = (reference.gap(weight.grad.cpu(), truth[name]) for weight in (ours, theirs))
        assert error <= reference.ERROR_FACTOR["cuda"] * allowed, f"{name}: {error:.3g} and {allowed:.3g}"


def with_gradients(pair: Pair) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    for model in (pair.ours, pair.theirs):
        model.zero_grad()
        loss(pair, model(**pair.batch).logits).backward()
    return pair.named_parameters()


def loss(pair: Pair, logits: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[pair.real], pair.batch["input_ids"][pair.real])


@norms
def test_weights_after_some_steps(config: XLMRobertaConfig) -> None:
    pair = build_pair(config)
    before = {name: weight.detach().clone() for name, weight in pair.ours.named_parameters()}
    for model in (pair.ours, pair.theirs):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(5):
            torch.manual_seed(step)
            with reference.training(pair):
                logits = model(**pair.batch).logits
            optimizer.zero_grad()
            loss(pair, logits).backward()
            optimizer.step()
    for name, ours, theirs in pair.named_parameters():
        reference.assert_equal(name, ours, theirs)
        assert not torch.equal(ours, before[name]), f"{name} was not trained"


@norms
@attentions
def test_no_dropout_in_eval_mode(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    pair = build_pair(config, attention)
    first, second = pair.ours(**pair.batch).logits, pair.ours(**pair.batch).logits
    assert torch.equal(first, second)
    pair.ours.train()
    first, second = pair.ours(**pair.batch).logits, pair.ours(**pair.batch).logits
    assert not torch.equal(first, second)


def test_pre_norm_drops_out_the_feed_forward_output_as_fairseq_does() -> None:
    """transformers' XL leaves this dropout out; fairseq, which trained XL, has it in its transformer layer."""
    pair = build_pair(PRE_NORM)
    feed_forward, norm = pair.ours.encoder.layers[0].feed_forward, pair.ours.encoder.layers[0].feed_forward_norm
    layer = {"output": pair.ours.encoder.layers[0]}
    pair.ours.train()
    with (
        torch.no_grad(),
        reference.recording({"mid": norm}, inputs=True) as before,
        reference.recording({"ff": feed_forward}) as inside,
        reference.recording(layer) as after,
    ):
        pair.ours(**pair.batch)
    added = after["output"] - before["mid"]
    dropped = (added == 0).float().mean()
    assert 0.1 < dropped < 0.3  # hidden_dropout_prob is 0.2
    kept = added != 0
    torch.testing.assert_close(added[kept], inside["ff"][kept] / (1 - PRE_NORM.hidden_dropout_prob))


def test_where_dropout_is_zero_train_mode_is_eval_mode() -> None:
    pair = build_pair(POST_NORM)
    expected = pair.ours(**pair.batch).logits
    for module in pair.ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pair.ours.train()
    assert torch.equal(pair.ours(**pair.batch).logits, expected)
