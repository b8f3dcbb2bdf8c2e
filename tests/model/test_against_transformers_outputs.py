"""Our outputs are transformers' outputs, bit for bit: logits, hidden states, probabilities, pooler."""

from dataclasses import replace

import pytest
import reference
import torch
from reference import CONFIGS, POST_NORM, Pair, build_encoder_pair, build_pair, devices
from torch import nn
from torch.nn import functional as F

from xlmr_core.config import ACTIVATIONS, XLMRobertaConfig
from xlmr_core.kernels import AttentionKind

ATTENTIONS: tuple[AttentionKind, ...] = ("eager", "sdpa")
norms = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
attentions = pytest.mark.parametrize("attention", ATTENTIONS)


@norms
@attentions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@devices
def test_logits_and_hidden_states(
    config: XLMRobertaConfig, attention: AttentionKind, dtype: torch.dtype, device: str
) -> None:
    pair = build_pair(config, attention, dtype, device)
    if device == "cpu":
        reference.check_outputs(pair)
    elif dtype == torch.float64:
        assert max(reference.errors(pair, reference.float64_logits(pair))) <= reference.ORACLE_TOLERANCE
    else:
        reference.check_precision(pair)


@norms
@attentions
def test_encoder_and_pooler(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    reference.check_pooler(build_encoder_pair(config, attention))


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_probabilities(config: XLMRobertaConfig, dtype: torch.dtype) -> None:
    reference.check_probs(build_pair(config, dtype=dtype))


@norms
@attentions
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(config: XLMRobertaConfig, attention: AttentionKind, activation: str) -> None:
    reference.check_outputs(build_pair(replace(config, hidden_act=activation), attention))


UNUSUAL = {
    "eps of the published models": {"layer_norm_eps": 1e-5},
    "eps of BERT": {"layer_norm_eps": 1e-12},
    "large eps": {"layer_norm_eps": 0.5},
    "pad 0": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "pad 7": {"pad_token_id": 7},
    "one head": {"num_attention_heads": 1},
    "one feature a head": {"num_attention_heads": 24},
    "one layer": {"num_hidden_layers": 1},
    "decoder of its own": {"tie_word_embeddings": False},
    "narrow feed-forward": {"intermediate_size": 5},
}


@norms
@attentions
@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_configs(config: XLMRobertaConfig, attention: AttentionKind, change: dict[str, object]) -> None:
    reference.check_outputs(build_pair(replace(config, **change), attention))


@norms
@attentions
def test_token_types_and_positions_given_by_the_caller(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    pair = build_pair(replace(config, type_vocab_size=2), attention)
    shape = pair.batch["input_ids"].shape
    pair.batch["token_type_ids"] = torch.randint(0, 2, shape)
    pair.batch["position_ids"] = torch.randint(0, config.max_position_embeddings, shape)
    reference.check_outputs(pair)


@attentions
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 2), (3, 16), (2, POST_NORM.max_tokens)], ids=str)
def test_batches_without_padding(attention: AttentionKind, shape: tuple[int, int]) -> None:
    # transformers drops the mask where there is no padding, we keep it: the numbers must not depend on that.
    pair = build_pair(POST_NORM, attention)
    ids = torch.randint(3, POST_NORM.vocab_size, shape)
    pair.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    reference.check_outputs(pair)


@norms
@attentions
def test_many_random_batches(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    pair = build_pair(config, attention)
    for _ in range(20):
        rows, length = int(torch.randint(1, 7, ())), int(torch.randint(1, config.max_tokens + 1, ()))
        ids = torch.randint(3, config.vocab_size, (rows, length))
        mask = torch.rand(rows, length) < torch.rand(rows, 1)  # any share of padding, anywhere in the row
        mask[:, 0] = True
        pair.batch = {"input_ids": ids.masked_fill(~mask, config.pad_token_id), "attention_mask": mask.long()}
        reference.check_outputs(pair)


@norms
def test_our_default_mask_is_the_padding_mask(config: XLMRobertaConfig) -> None:
    pair = build_pair(config)
    ids = pair.batch["input_ids"]
    pair.batch["attention_mask"] = (ids != config.pad_token_id).long()
    with torch.no_grad():
        ours, theirs = pair.ours(ids).logits, pair.theirs(**pair.batch).logits
    assert torch.equal(ours[pair.real], theirs[pair.real])


@attentions
def test_which_attention_path_ran(attention: AttentionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager is the path through the softmax module, sdpa the one through torch's fused kernel; in both libraries."""
    pair = build_pair(POST_NORM, attention)
    calls: list[str] = []
    fused = F.scaled_dot_product_attention

    def counted(*args: object, **kwargs: object) -> object:
        calls.append("fused")
        return fused(*args, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for layer in pair.ours.encoder.layers:
        layer.attention.softmax.register_forward_hook(lambda *_: calls.append("softmax"))
    layers = POST_NORM.num_hidden_layers
    with torch.no_grad():
        pair.ours(**pair.batch)
        assert calls == ["softmax" if attention == "eager" else "fused"] * layers
        calls.clear()
        pair.theirs(**pair.batch)
        assert calls == ([] if attention == "eager" else ["fused"] * layers)


@norms
def test_eager_and_sdpa_differ_only_by_rounding(config: XLMRobertaConfig) -> None:
    eager, sdpa = build_pair(config, "eager", torch.float64), build_pair(config, "sdpa", torch.float64)
    with torch.no_grad():
        left, right = eager.ours(**eager.batch).logits, sdpa.ours(**sdpa.batch).logits
    assert reference.gap(left[eager.real], right[eager.real]) <= reference.ORACLE_TOLERANCE


@norms
def test_the_key_map_names_every_tensor_of_both_models(config: XLMRobertaConfig) -> None:
    pair = build_pair(config)
    keys = reference.masked_lm_keys(config)
    assert keys.keys() == pair.ours.state_dict().keys()
    assert set(pair.theirs.state_dict()) - set(keys.values()) == {"lm_head.bias"}  # a second name of decoder.bias
    assert pair.theirs.lm_head.bias is pair.theirs.lm_head.decoder.bias


@norms
def test_the_models_compared_are_not_trivial(config: XLMRobertaConfig) -> None:
    """No constant, zero or saturated model, which would agree with anything."""
    pair: Pair = build_pair(config)
    for name, parameter in pair.ours.named_parameters():
        assert parameter.std() > 0.05, name
    softmaxes: dict[str, nn.Module] = {"0": pair.ours.encoder.layers[0].attention.softmax}
    with torch.no_grad(), reference.recording(softmaxes) as probs:
        logits = pair.ours(**pair.batch).logits[pair.real]
    assert logits.std() > 0.5
    assert logits.std(dim=0).mean() > 0.2  # from token to token
    uneven = reference.by_query(probs["0"])[pair.real].amax(-1)
    assert 0.2 < uneven.mean() < 0.8
