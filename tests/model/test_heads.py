"""The heads: logits where asked, one table for words and decoder, BGE-M3 by its formulas, and clear refusals."""

import copy
import pickle
from dataclasses import replace

import pytest
import reference
import torch
from reference import POST_NORM, PRE_NORM, awkward_batch, build_pair
from torch import nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import (
    UNK,
    XLMRobertaForM3,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)
from xlmr_core.kernels import AttentionKind

UNTIED = replace(POST_NORM, tie_word_embeddings=False)


def build(config: XLMRobertaConfig = POST_NORM, attention: AttentionKind = "eager") -> XLMRobertaForMaskedLM:
    model = XLMRobertaForMaskedLM(config, attention=attention)
    reference.randomize(model)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> XLMRobertaForMaskedLM:
    return build()


BATCH = awkward_batch(POST_NORM)
MASKS = BATCH["input_ids"] == POST_NORM.vocab_size - 1


def test_output(model: XLMRobertaForMaskedLM) -> None:
    out = model(**BATCH)
    assert out.logits.shape == (5, 11, 53)
    assert torch.equal(out.last_hidden_state, model.encoder(**BATCH).last_hidden_state)
    assert torch.equal(out.logits, model.lm_head(out.last_hidden_state))


def test_head_step_by_step(model: XLMRobertaForMaskedLM) -> None:
    head, x = model.lm_head, torch.randn(4, POST_NORM.hidden_size)
    dense = x @ head.dense.weight.T + head.dense.bias
    activated = dense * 0.5 * (1 + torch.erf(dense / 2**0.5))
    centred = activated - activated.mean(-1, keepdim=True)
    spread = (activated.var(-1, correction=0, keepdim=True) + POST_NORM.layer_norm_eps).sqrt()
    normed = centred / spread * head.norm.weight + head.norm.bias
    expected = normed @ model.encoder.embeddings.word_embeddings.weight.T + head.decoder.bias
    torch.testing.assert_close(head(x), expected)


def test_the_head_keeps_exact_gelu_whatever_the_layers_have() -> None:
    reference.check_outputs(build_pair(replace(POST_NORM, hidden_act="relu")))
    assert isinstance(build(replace(POST_NORM, hidden_act="relu")).lm_head.activation, nn.GELU)


# ---- logits at some positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_positions_give_those_rows_in_reading_order(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    """To the rounding of float64: how a matrix product sums depends on its number of rows."""
    model = build(config, attention).double()
    full, some = model(**BATCH), model(**BATCH, positions=MASKS)
    assert MASKS.nonzero().tolist() == [[0, 3], [2, 6]]
    assert some.logits.shape == (2, config.vocab_size)
    assert torch.equal(some.last_hidden_state, full.last_hidden_state)
    assert reference.gap(some.logits, torch.stack([full.logits[0, 3], full.logits[2, 6]])) <= reference.ORACLE_TOLERANCE


def test_positions_are_as_exact_as_all_logits() -> None:
    """float32: the rows on their own are at most twice as far from float64 as the same rows of the whole."""
    model = build()
    exact = copy.deepcopy(model).double()(**BATCH).logits
    for seed in range(10):
        positions = torch.rand(BATCH["input_ids"].shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        some, full = model(**BATCH, positions=positions).logits, model(**BATCH).logits[positions]
        assert reference.gap(some, exact[positions]) <= 2 * reference.gap(full, exact[positions])


def test_every_position_is_bit_for_bit_the_whole(model: XLMRobertaForMaskedLM) -> None:
    everywhere = torch.ones_like(MASKS)
    assert torch.equal(model(**BATCH, positions=everywhere).logits, model(**BATCH).logits.flatten(0, 1))


def test_positions_are_bit_for_bit_the_head_on_those_vectors(model: XLMRobertaForMaskedLM) -> None:
    out = model(**BATCH, positions=MASKS)
    assert torch.equal(out.logits, model.lm_head(out.last_hidden_state[MASKS]))


def test_no_position_gives_no_logits(model: XLMRobertaForMaskedLM) -> None:
    out = model(**BATCH, positions=torch.zeros_like(MASKS))
    assert out.logits.shape == (0, 53)
    assert out.last_hidden_state.shape == (5, 11, 24)


def test_gradients_flow_from_some_positions() -> None:
    model = build()
    labels = torch.tensor([7, 9])
    nn.functional.cross_entropy(model(**BATCH, positions=MASKS).logits, labels).backward()
    some = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    nn.functional.cross_entropy(model(**BATCH).logits[MASKS], labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, some[name])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (MASKS.long(), r"positions must be boolean .* \(5, 11\), got torch.int64 with shape \(5, 11\)"),
        (MASKS[:, :4], r"positions must be boolean .* \(5, 11\), got torch.bool with shape \(5, 4\)"),
        (torch.tensor([3, 6]), r"got torch.int64 with shape \(2,\)"),
    ],
)
def test_positions_that_are_no_mask(model: XLMRobertaForMaskedLM, positions: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**BATCH, positions=positions)


def test_positions_are_given_by_name(model: XLMRobertaForMaskedLM) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        model(BATCH["input_ids"], None, None, None, MASKS)
    with pytest.raises(TypeError, match="the model takes no argument labels: compute the loss"):
        model(**BATCH, labels=BATCH["input_ids"])


def test_the_encoders_refusals_come_through(model: XLMRobertaForMaskedLM) -> None:
    with pytest.raises(ValueError, match=r"input_ids contains 53, expected 0\.\.52"):
        model(torch.tensor([[0, 53, 2]]))


# ---- one table for words and decoder ---------------------------------------------------------------------------------


def is_tied(model: XLMRobertaForMaskedLM) -> bool:
    return model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight


def test_decoder_and_word_table_are_one_tensor_and_the_bias_is_not_part_of_it() -> None:
    model = build()
    assert is_tied(model)
    assert model.lm_head.decoder.bias.shape == (53,)
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.decoder.bias" in names
    assert "lm_head.decoder.weight" not in names  # it goes by the word table's name


def test_the_tie_holds_through_whatever_is_done_to_a_model() -> None:
    assert is_tied(build().double())
    assert is_tied(build().to(torch.bfloat16))
    assert is_tied(copy.deepcopy(build()))
    assert is_tied(pickle.loads(pickle.dumps(build())))
    model = XLMRobertaForMaskedLM(POST_NORM)
    model.load_state_dict(build().state_dict())
    assert is_tied(model)
    model.initialize()
    assert is_tied(model)


def test_tie_weights_ties_again() -> None:
    model = build()
    model.encoder.embeddings.word_embeddings.weight = nn.Parameter(torch.randn(53, 24))
    assert not is_tied(model)
    model.tie_weights()
    assert is_tied(model)


def test_untied_where_the_config_says_so() -> None:
    model = build(UNTIED)
    model.tie_weights()
    assert not is_tied(model)
    assert "lm_head.decoder.weight" in dict(model.named_parameters())


def test_names_of_the_weights() -> None:
    head = [f"lm_head.{module}.{part}" for module in ("dense", "norm", "decoder") for part in ("weight", "bias")]
    model = build()
    encoder = [f"encoder.{name}" for name in model.encoder.state_dict()]
    assert list(model.state_dict()) == encoder + head
    assert model.encoder.pooler is None  # nothing is trained that the loss does not reach


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    model(**BATCH).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_initialize_keeps_the_tie_and_zeroes_the_bias() -> None:
    model = build()
    model.initialize()
    assert (model.lm_head.decoder.bias == 0).all()
    assert (model.lm_head.decoder.weight[POST_NORM.pad_token_id] == 0).all()
    assert model.lm_head.decoder.weight.std().item() == pytest.approx(POST_NORM.initializer_range, rel=0.15)


# ---- classification, tagging, question answering, multiple choice ----------------------------------------------------

LABELLED = replace(POST_NORM, labels=tuple("ABCDEFG"))
HEADS = [
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForMultipleChoice,
    XLMRobertaForM3,
]


def batch_for(cls: type) -> dict[str, torch.Tensor]:
    return {name: tensor[:, None] for name, tensor in BATCH.items()} if cls is XLMRobertaForMultipleChoice else BATCH


@pytest.mark.parametrize("cls", HEADS)
def test_every_parameter_of_a_head_gets_a_gradient(cls: type) -> None:
    model = cls(LABELLED)
    reference.randomize(model)
    out = model(**batch_for(cls))
    names = {"logits", "start_logits", "end_logits", "dense", "sparse", "colbert"} & vars(out).keys()
    sum(getattr(out, name).pow(3).mean() for name in names).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("cls", HEADS)
def test_a_head_accepts_only_its_keywords(cls: type) -> None:
    with pytest.raises(TypeError, match="the model takes no argument labels: compute the loss"):
        cls(LABELLED)(**batch_for(cls), labels=BATCH["input_ids"])
    with pytest.raises(ValueError, match=r"input_ids contains 53, expected 0\.\.52"):
        cls(LABELLED)(input_ids=batch_for(cls)["input_ids"] * 0 + 53)


def test_a_sequence_is_classified_by_its_first_vector() -> None:
    model = XLMRobertaForSequenceClassification(LABELLED).eval()
    reference.randomize(model)
    head, first = model.classifier, model.encoder(**BATCH).last_hidden_state[:, 0]
    expected = torch.tanh(first @ head.dense.weight.T + head.dense.bias) @ head.out_proj.weight.T + head.out_proj.bias
    torch.testing.assert_close(model(**BATCH).logits, expected)


def test_each_choice_is_scored_as_if_it_were_the_only_one() -> None:
    model = XLMRobertaForMultipleChoice(POST_NORM).double().eval()
    reference.randomize(model)
    choices = {name: torch.stack([tensor, tensor.flip(0), tensor.roll(1, 0)], 1) for name, tensor in BATCH.items()}
    logits = model(**choices).logits
    assert logits.shape == (5, 3)
    for k in range(3):
        alone = model(**{name: tensor[:, k : k + 1] for name, tensor in choices.items()}).logits
        assert reference.gap(logits[:, k : k + 1], alone) <= reference.ORACLE_TOLERANCE


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_choices_of_another_shape(name: str) -> None:
    choices = batch_for(XLMRobertaForMultipleChoice)
    with pytest.raises(ValueError, match=r"must have the shape \(batch, choices, sequence\), got .*\(5, 11\)"):
        XLMRobertaForMultipleChoice(POST_NORM)(**choices | {name: BATCH[name]})


# ---- BGE-M3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_m3_by_its_formulas(config: XLMRobertaConfig) -> None:
    """Written out token by token, from the definitions in the paper and BGE-M3's model card."""
    model = XLMRobertaForM3(config).double().eval()
    reference.randomize(model)
    batch = {name: tensor.clone() for name, tensor in BATCH.items()}
    batch["input_ids"][0, 5] = UNK
    with torch.no_grad():  # 0 comes to lie in the widest gap between weights: rounding chooses no sign
        weights = model.sparse_linear(model(**batch).last_hidden_state).flatten().sort().values
        middle = slice(len(weights) // 4, 3 * len(weights) // 4)
        widest = middle.start + int(weights[middle].diff().argmax())
        model.sparse_linear.bias -= (weights[widest] + weights[widest + 1]) / 2
    out = model(**batch)
    sparse, colbert = model.sparse_linear, model.colbert_linear
    seen = set()
    for i, ids in enumerate(batch["input_ids"].tolist()):
        dense = out.last_hidden_state[i, 0]
        torch.testing.assert_close(out.dense[i], dense / dense.square().sum().sqrt())
        for j, token in enumerate(ids):
            vector, real = out.last_hidden_state[i, j], bool(batch["attention_mask"][i, j])
            special = token in (config.bos_token_id, config.eos_token_id, config.pad_token_id, UNK)
            weight = max(0.0, ((vector * sparse.weight[0]).sum() + sparse.bias[0]).item())
            assert out.sparse[i, j].item() == pytest.approx(weight if real and not special else 0.0, abs=1e-12)
            turned = colbert.weight @ vector + colbert.bias
            expected = turned / turned.square().sum().sqrt() if real and j > 0 else torch.zeros_like(turned)
            torch.testing.assert_close(out.colbert[i, j], expected)
            seen.add((real, special, weight > 0))
    assert {(True, False, True), (True, False, False), (True, True, True), (False, True, True)} <= seen


def test_m3_finds_the_padding_by_itself() -> None:
    model = XLMRobertaForM3(POST_NORM).eval()
    reference.randomize(model)
    with_mask = model(BATCH["input_ids"], (BATCH["input_ids"] != 1).long())
    without = model(BATCH["input_ids"])
    for name in ("dense", "sparse", "colbert"):
        assert torch.equal(getattr(without, name), getattr(with_mask, name))
