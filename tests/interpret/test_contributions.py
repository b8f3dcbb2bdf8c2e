"""Per-head outputs sum to the attention's output, and contributions to the last hidden state and to the logits."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.interpret import decompose, direct_logit_attribution, head_outputs

CONFIGS = pytest.mark.parametrize("norm", reference.CONFIGS)


def build(norm: str) -> Any:
    model: Any = XLMRobertaForMaskedLM(reference.CONFIGS[norm]).double().eval()
    reference.randomize(model)
    return model


@CONFIGS
def test_the_outputs_of_the_heads_and_the_bias_are_the_output_of_attention(norm: str) -> None:
    model, batch = build(norm), reference.awkward_batch(reference.POST_NORM)
    with torch.no_grad(), model.capture("layers.*.attention.context", "layers.*.attention.output") as acts:
        model(**batch)
    for layer in range(3):
        outputs = head_outputs(model, layer, acts[f"layers.{layer}.attention.context"])
        assert outputs.shape == (5, 11, 4, 24)
        bias = model.encoder.layers[layer].attention.out_proj.bias
        expected = acts[f"layers.{layer}.attention.output"]
        assert (outputs.sum(dim=2) + bias - expected).abs().max() < 1e-12
    alone = head_outputs(model, -1, acts["layers.2.attention.context"][1, 3])
    assert torch.allclose(alone, head_outputs(model, 2, acts["layers.2.attention.context"])[1, 3])
    without = model.intervene({"layers.0.attention.context": lambda old: old.index_fill(-1, torch.arange(6, 12), 0)})
    with torch.no_grad(), without, model.capture("layers.0.attention.output") as ablated:
        model(**batch)
    lost = acts["layers.0.attention.output"] - ablated["layers.0.attention.output"]
    assert (head_outputs(model, 0, acts["layers.0.attention.context"])[:, :, 1] - lost).abs().max() < 1e-12


@CONFIGS
@pytest.mark.parametrize("packed", [False, True])
def test_parts_sum_to_the_hidden_state_and_the_logits(norm: str, packed: bool) -> None:
    model, batch = build(norm), reference.awkward_batch(reference.POST_NORM)
    if packed:
        batch = reference.packed_batch(batch, reference.POST_NORM.pad_token_id)
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    positions.view(-1)[torch.tensor([1, 4, 13])] = True
    with torch.no_grad():
        output = model(**batch)
    found = decompose(model, batch, positions)
    assert found.values.shape[1:] == (3, 24)
    assert len(set(found.names)) == len(found.names) == len(found.values)
    assert (found.values.sum(dim=0) - output.last_hidden_state[positions]).abs().max() < 1e-10
    tokens = [7, 30, 52]
    logits = direct_logit_attribution(model, batch, positions, tokens)
    assert (logits.values.sum(dim=0) - output.logits[positions][:, tokens]).abs().max() < 1e-10
    assert logits.names[: len(found.names)] == found.names
    assert logits.names[len(found.names) :] == ("lm_head.dense.bias", "lm_head.norm.bias", "lm_head.decoder.bias")
    assert torch.equal(logits["layers.1.head.2"], logits.values[logits.names.index("layers.1.head.2")])


def test_names_of_the_parts() -> None:
    batch = {"input_ids": torch.tensor([[0, 5, 6, 2]])}
    at = batch["input_ids"] == 5
    tables = ("embeddings.word", "embeddings.token_type", "embeddings.position")
    heads = [f"head.{head}" for head in range(4)]
    of_layer = {
        "post-norm": [*heads, "attention.bias", "attention_norm.bias", "feed_forward", "feed_forward_norm.bias"],
        "pre-norm": [*heads, "attention.bias", "feed_forward"],
    }
    first, last = (
        {"post-norm": ["embeddings.norm.bias"], "pre-norm": []},
        {"post-norm": [], "pre-norm": ["final_norm.bias"]},
    )
    for norm, parts in of_layer.items():
        names = [f"layers.{layer}.{part}" for layer in range(3) for part in parts]
        assert decompose(build(norm), batch, at).names == (*tables, *first[norm], *names, *last[norm])


def test_pre_norm_parts_before_the_final_norm_are_the_tensors_of_the_run() -> None:
    """There each part is what the model adds, and the final norm scales all of them alike."""
    model, batch = build("pre-norm"), reference.awkward_batch(reference.PRE_NORM)
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    positions[0, 3] = True
    with torch.no_grad(), model.capture("layers.1.feed_forward.output", "layers.-1.output") as acts:
        model(**batch)
    norm, total = model.encoder.final_norm, acts["layers.2.output"][0, 3]
    added = acts["layers.1.feed_forward.output"][0, 3]
    expected = (added - added.mean()) / (total.var(unbiased=False) + norm.eps).sqrt() * norm.weight
    assert (decompose(model, batch, positions)["layers.1.feed_forward"][0] - expected).abs().max() < 1e-12


def test_the_bundled_checkpoint_in_float32() -> None:
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    batch = tokenizer(["I do not <mask> what to do", "Bonjour <mask> monde !"])
    at = batch.input_ids == tokenizer.mask_token_id
    with torch.no_grad():
        expected = model(**batch, positions=at).logits[:, [100, 200]]
    found = direct_logit_attribution(model, batch, at, [100, 200])
    assert (found.values.sum(dim=0) - expected).abs().max() < 1e-4


class TestErrors:
    batch: dict[str, Tensor] = {"input_ids": torch.tensor([[0, 5, 6, 2]])}  # noqa: RUF012

    def test_no_such_layer_or_width(self) -> None:
        model = build("post-norm")
        with pytest.raises(ValueError, match="layer must lie between 0 and 2, not 3"):
            head_outputs(model, 3, torch.zeros(1, 24))
        with pytest.raises(ValueError, match="must have 24 features, not 23"):
            head_outputs(model, 0, torch.zeros(1, 23))

    def test_positions(self) -> None:
        with pytest.raises(ValueError, match=r"positions must be boolean with the shape \(1, 4\), got torch.int64"):
            decompose(build("post-norm"), self.batch, self.batch["input_ids"])

    def test_train_mode_and_no_lm_head(self) -> None:
        at = self.batch["input_ids"] == 5
        with pytest.raises(ValueError, match="train mode"):
            decompose(build("post-norm").train(), self.batch, at)
        encoder: Any = XLMRobertaModel(reference.POST_NORM).eval()
        with pytest.raises(TypeError, match="needs an XLMRobertaForMaskedLM, not a XLMRobertaModel"):
            direct_logit_attribution(encoder, self.batch, at, [1])
        assert decompose(encoder, self.batch, at).values.shape[1:] == (1, 24)

    def test_a_name_that_no_part_has(self) -> None:
        found = decompose(build("post-norm"), self.batch, self.batch["input_ids"] == 5)
        with pytest.raises(KeyError, match=r"no part has the name 'layers\.9'"):
            found["layers.9"]
