"""Packed batches: sequences one after the other, without padding, are what the same sequences are as padded rows."""

from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from reference import CONFIGS, POST_NORM, PRE_NORM, no_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from xlmr_core import heads
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.kernels import AttentionKind, PackedBatch, PaddedBatch
from xlmr_core.model import SelfAttention, XLMRobertaModel
from xlmr_core.pretrained import PretrainedModel

norms = pytest.mark.parametrize("norm", CONFIGS)
attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
LABELS = ("a", "b", "c")
HEADS = (
    XLMRobertaForMaskedLM,
    heads.XLMRobertaForSequenceClassification,
    heads.XLMRobertaForTokenClassification,
    heads.XLMRobertaForQuestionAnswering,
    heads.XLMRobertaForM3,
)
IDS = torch.tensor([0, 5, 6, 7, 2, 0, 8, 2])
LENGTHS = torch.tensor([5, 3])


def build(
    cls: type[Any], config: XLMRobertaConfig, attention: AttentionKind = "eager", dtype: torch.dtype = torch.float64
) -> Any:
    built = cls(replace(config, labels=LABELS), attention=attention)
    reference.randomize(built)
    return built.to(dtype).eval()


def batches(config: XLMRobertaConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The awkward rows, padded and packed."""
    padded = reference.awkward_batch(config)
    return padded, reference.packed_batch(padded, config.pad_token_id)


# ---- the same numbers ------------------------------------------------------------------------------------------------


@norms
@attentions
def test_every_tap_against_plain_loops(norm: str, attention: AttentionKind) -> None:
    pair = reference.build_pair(CONFIGS[norm], attention, torch.float64)
    reference.check_packed(reference.right_padded(pair))


@norms
@attentions
def test_positions_given_by_the_caller(norm: str, attention: AttentionKind) -> None:
    """The padding need not be at the end: real tokens may be anywhere if their positions are given."""
    lm = build(XLMRobertaForMaskedLM, CONFIGS[norm], attention)
    padded, packed = batches(CONFIGS[norm])
    with torch.no_grad():
        expected, found = lm(**padded).logits[padded["attention_mask"].bool()], lm(**packed).logits
    assert reference.gap(found, expected) <= reference.ORACLE_TOLERANCE


@norms
@attentions
@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_every_head(norm: str, attention: AttentionKind, cls: type[PretrainedModel]) -> None:
    lm = build(cls, CONFIGS[norm], attention)
    padded, packed = batches(CONFIGS[norm])
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        expected, found = vars(lm(**padded)), vars(lm(**packed))
    for name, tensor in expected.items():
        rows = real[:, 0]  # a sequence that begins with padding has no first token in the padded form
        if tensor.shape[:2] == real.shape:
            tensor = tensor[real]
            if name == "colbert":  # of a row that begins with padding or a hole, another token is the first
                tensor, found[name] = tensor[as_mask(rows, real)], found[name][as_mask(rows, real)]
        else:
            tensor, found[name] = tensor[rows], found[name][rows]
        assert reference.gap(found[name], tensor) <= reference.ORACLE_TOLERANCE, name


def as_mask(rows: Tensor, real: Tensor) -> Tensor:
    """For each real token, whether it is in one of these rows."""
    return rows[:, None].expand_as(real)[real]


@attentions
def test_multiple_choice(attention: AttentionKind) -> None:
    chooser = build(heads.XLMRobertaForMultipleChoice, POST_NORM, attention)
    ids = torch.tensor([[[0, 5, 2, 1], [0, 6, 7, 2]], [[0, 8, 9, 2], [0, 2, 1, 1]], [[0, 4, 2, 1], [0, 3, 2, 1]]])
    lengths = (ids != 1).sum(dim=2)
    with torch.no_grad():
        padded, packed = chooser(ids), chooser(ids[ids != 1], lengths=lengths)
    assert packed.logits.shape == lengths.shape
    assert reference.gap(packed.logits, padded.logits) <= reference.ORACLE_TOLERANCE
    assert reference.gap(packed.pooler_output, padded.pooler_output) <= reference.ORACLE_TOLERANCE
    with pytest.raises(ValueError, match=r"lengths must have the shape \(batch, choices\), got \(6,\)"):
        chooser(ids[ids != 1], lengths=lengths.flatten())


@attentions
def test_the_pooler(attention: AttentionKind) -> None:
    encoder = XLMRobertaModel(POST_NORM, attention=attention, add_pooling_layer=True).double().eval()
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    padded, packed = encoder(ids), encoder(ids[ids != 1], lengths=torch.tensor([4, 3]))
    assert reference.gap(packed.pooler_output, padded.pooler_output) <= reference.ORACLE_TOLERANCE


@attentions
def test_logits_at_chosen_positions(attention: AttentionKind) -> None:
    lm = build(XLMRobertaForMaskedLM, POST_NORM, attention)
    with torch.no_grad():
        chosen = lm(IDS, lengths=LENGTHS, positions=IDS == 7).logits
        assert reference.gap(chosen, lm(IDS, lengths=LENGTHS).logits[IDS == 7]) <= reference.ORACLE_TOLERANCE
    with pytest.raises(ValueError, match=r"positions must be boolean with the shape of input_ids, \(8,\)"):
        lm(IDS, lengths=LENGTHS, positions=torch.ones(2, 4, dtype=torch.bool))


@norms
@attentions
def test_a_sequence_does_not_see_its_neighbours(norm: str, attention: AttentionKind) -> None:
    encoder = build(XLMRobertaModel, CONFIGS[norm], attention)
    both = encoder(IDS, lengths=LENGTHS).last_hidden_state
    turned = encoder(torch.cat([IDS[5:], IDS[:5]]), lengths=LENGTHS.flip(0)).last_hidden_state
    alone = encoder(IDS[None, 5:]).last_hidden_state[0]
    assert reference.gap(both[5:], alone) <= reference.ORACLE_TOLERANCE
    assert reference.gap(both, torch.cat([turned[3:], turned[:3]])) <= reference.ORACLE_TOLERANCE


@norms
@attentions
def test_gradients(norm: str, attention: AttentionKind) -> None:
    lm = build(XLMRobertaForMaskedLM, CONFIGS[norm], attention)
    padded, packed = batches(CONFIGS[norm])
    real = padded["attention_mask"].bool()
    parameters = list(lm.parameters())
    expected = torch.autograd.grad(lm(**padded).logits[real].square().mean(), parameters)
    found = torch.autograd.grad(lm(**packed).logits.square().mean(), parameters)
    for (name, _), ours, theirs in zip(lm.named_parameters(), found, expected, strict=True):
        assert reference.gap(ours, theirs) <= reference.ORACLE_TOLERANCE * max(1, float(theirs.abs().max())), name


@attentions
def test_positions_restart_with_each_sequence(attention: AttentionKind) -> None:
    encoder = build(XLMRobertaModel, POST_NORM, attention)
    seen: list[Tensor] = []
    encoder.embeddings.position_embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(IDS, lengths=LENGTHS)
    assert seen[0].tolist() == [2, 3, 4, 5, 6, 2, 3, 4]


def test_many_long_sequences_are_no_long_sequence() -> None:
    """512 tokens are the limit of each sequence, not of the batch."""
    encoder = XLMRobertaModel(POST_NORM, attention="sdpa").eval()
    each = torch.full((POST_NORM.max_tokens,), 7)
    assert encoder(each.repeat(3), lengths=torch.tensor([len(each)] * 3)).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match="a sequence needs position 31, but the last is 30: at most 29 tokens"):
        encoder(each.repeat(2), lengths=torch.tensor([len(each) + 1, len(each) - 1]))


# ---- training --------------------------------------------------------------------------------------------------------


@attentions
def test_dropout_is_drawn_for_packed_batches_too(attention: AttentionKind) -> None:
    encoder = build(XLMRobertaModel, POST_NORM, attention).train()
    first, second = encoder(IDS, lengths=LENGTHS), encoder(IDS, lengths=LENGTHS)
    assert not torch.equal(first.last_hidden_state, second.last_hidden_state)
    only_probs = build(XLMRobertaModel, replace(POST_NORM, hidden_dropout_prob=0.0), attention).train()
    first, second = only_probs(IDS, lengths=LENGTHS), only_probs(IDS, lengths=LENGTHS)
    assert not torch.equal(first.last_hidden_state, second.last_hidden_state)


# ---- which way it ran ------------------------------------------------------------------------------------------------


@norms
@attentions
def test_which_attention_ran(norm: str, attention: AttentionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager: each layer once, over rows. Fused: each layer and sequence by itself, without a mask."""
    encoder = build(XLMRobertaModel, CONFIGS[norm], attention)
    calls: list[tuple[torch.Size, Tensor | None]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((q.shape, mask))
        return fused(q, k, v, mask, *args, **kwargs)

    rows: list[torch.Size] = []
    encoder.layers[0].attention.softmax.register_forward_hook(lambda _, args, __: rows.append(args[0].shape))
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    encoder(IDS, lengths=LENGTHS)
    if attention == "eager":
        assert rows == [(2, 4, 5, 5)]
        assert not calls
    else:
        assert not rows
        assert calls == [((1, 4, 5, 6), None), ((1, 4, 3, 6), None)] * 3


def kernel_for_various_lengths(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """What torch's kernel computes, by plain loops: it runs only on CUDA."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert longest_q == longest_k == max((starts_q[1:] - starts_q[:-1]).tolist())
    out = torch.zeros_like(q)
    for start, end in zip(starts_q.tolist(), starts_q.tolist()[1:], strict=False):
        for head in range(q.shape[1]):
            scores = q[start:end, head] @ k[start:end, head].T / q.shape[2] ** 0.5
            out[start:end, head] = scores.softmax(dim=-1) @ v[start:end, head]
    return out


def test_the_kernel_for_various_lengths_gets_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="from torch 2.10 on")
    config = replace(POST_NORM, hidden_size=32)
    encoder = build(XLMRobertaModel, config, "sdpa")
    expected = encoder(IDS, lengths=LENGTHS).last_hidden_state
    calls: list[int] = []

    def kernel(*args: Any) -> Tensor:
        calls.append(1)
        return kernel_for_various_lengths(*args)

    monkeypatch.setattr(SelfAttention, "_takes_varlen", lambda self, q: not (self.training and self.dropout.p))
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    assert reference.gap(encoder(IDS, lengths=LENGTHS).last_hidden_state, expected) <= reference.ORACLE_TOLERANCE
    assert len(calls) == config.num_hidden_layers
    encoder.train()  # the kernel has no dropout
    encoder(IDS, lengths=LENGTHS)
    assert len(calls) == config.num_hidden_layers


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where there is a GPU that has the kernel."""
    pytest.importorskip("torch.nn.attention.varlen", reason="from torch 2.10 on")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def attention_of(hidden_size: int) -> SelfAttention:
    with torch.device("meta"):
        return SelfAttention(replace(POST_NORM, hidden_size=hidden_size), "sdpa").eval()


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_torchs_own_kernel_takes_what_we_give_it(dtype: torch.dtype) -> None:
    """Without a GPU: on tensors that have a device and a shape, but no numbers, torch checks the call all the same."""
    attention = attention_of(64)
    with FakeTensorMode():
        for module in attention.children():
            for name, parameter in list(module.named_parameters()):
                module._parameters[name] = torch.empty(parameter.shape, dtype=dtype, device="cuda")
        hidden = torch.empty(8, 64, dtype=dtype, device="cuda")
        assert attention._takes_varlen(hidden)
        out = attention(hidden, PackedBatch(None, [5, 3], torch.empty(3, dtype=torch.int32, device="cuda")))
    assert (out.shape, out.dtype, out.device.type) == (hidden.shape, dtype, "cuda")


def test_the_kernel_for_various_lengths_is_for_half_precision_on_cuda() -> None:
    assert not attention_of(64)._takes_varlen(torch.zeros(2, 64, dtype=torch.bfloat16))


@pytest.mark.usefixtures("ampere")
def test_what_the_kernel_for_various_lengths_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        cuda = {dtype: torch.empty(2, 64, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.bfloat16)}
        half = cuda[torch.bfloat16]
        assert attention_of(64)._takes_varlen(half)
        assert not attention_of(64)._takes_varlen(cuda[torch.float32])
        assert not attention_of(24)._takes_varlen(half)  # heads of 6 features: a multiple of 8 is asked for
        assert not attention_of(4 * 264)._takes_varlen(half)
        assert not attention_of(64).train()._takes_varlen(half)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not attention_of(64)._takes_varlen(half)


def test_elsewhere_than_on_the_cpu_rows_are_made_where_there_is_no_such_kernel() -> None:
    """One large call for all rows, with a mask, instead of a small one for each sequence."""
    attention = attention_of(24)
    lengths = torch.tensor([5, 3], device="meta")
    calls: list[str] = []
    attention._context_by_sequence = lambda *_: calls.append("by sequence")
    fused = attention._fused_context
    attention._fused_context = lambda q, *rest: (calls.append(f"{len(q)} rows"), fused(q, *rest))[1]
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool, device="meta")
    out = attention(torch.empty(8, 24, device="meta"), PackedBatch(mask, [5, 3], lengths))
    assert out.shape == (8, 24)
    assert calls == ["2 rows"]


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=CONFIGS)
def test_on_a_gpu(config: XLMRobertaConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exact as padded fused attention, and in half precision by one kernel for all sequences."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="from torch 2.10 on")
    calls: list[torch.dtype] = []
    kernel = varlen.varlen_attn

    def spy(q: Tensor, *args: Any) -> Tensor:
        calls.append(q.dtype)
        return kernel(q, *args)

    monkeypatch.setattr(varlen, "varlen_attn", spy)
    config = replace(config, hidden_size=64)
    lm = build(XLMRobertaForMaskedLM, config, "sdpa")
    padded, packed = batches(config)
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        truth = lm(**padded).logits[real]
        lm = lm.to("cuda", dtype)
        by_rows = lm(**{name: tensor.cuda() for name, tensor in padded.items()}).logits[real.cuda()].cpu()
        found = lm(**{name: tensor.cuda() for name, tensor in packed.items()}).logits.cpu()
    assert reference.gap(found, truth) <= 2 * reference.gap(by_rows, truth)
    assert calls == ([] if dtype == torch.float32 else [dtype] * config.num_hidden_layers)


# ---- looking inside --------------------------------------------------------------------------------------------------


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_looking_changes_no_bit(norm: str, dtype: torch.dtype) -> None:
    lm = build(XLMRobertaForMaskedLM, CONFIGS[norm], dtype=dtype)
    _, packed = batches(CONFIGS[norm])
    with torch.no_grad():
        before = lm(**packed).logits
        with lm.capture("**") as acts, lm.intervene({"**": lambda tensor: tensor}):
            watched = lm(**packed).logits
    assert torch.equal(before, watched)
    assert acts.keys() == {tap.name for tap in lm.taps()}
    tokens = int(packed["lengths"].sum())
    for tap in lm.taps():
        packed_shape = tap.shape.replace("B, S", "T").replace("*", "T")
        assert acts[tap.name].shape[0] == (5 if "N" in packed_shape else tokens), tap


def test_an_intervention_reaches_what_follows() -> None:
    lm = build(XLMRobertaForMaskedLM, POST_NORM)
    with torch.no_grad():
        intact = lm(IDS, lengths=LENGTHS).logits
        with lm.intervene({"layers.0.attention.probs": lambda probs: probs.roll(1, dims=1)}):
            rolled = lm(IDS, lengths=LENGTHS).logits
        with lm.capture("layers.2.output") as acts, lm.intervene({"layers.2.output": torch.zeros_like}):
            zero = lm(IDS, lengths=LENGTHS).logits
    assert not torch.equal(intact, rolled)
    assert not acts["layers.2.output"].any()
    assert torch.equal(zero[0], zero[7])


def test_gradients_reach_captured_tensors() -> None:
    lm = build(XLMRobertaForMaskedLM, POST_NORM)
    with lm.capture("layers.0.attention.probs", "embeddings.word") as acts:
        loss = lm(IDS, lengths=LENGTHS).logits.square().sum()
    for gradient in torch.autograd.grad(loss, list(acts.values())):
        assert gradient.abs().max() > 0


# ---- the layout ------------------------------------------------------------------------------------------------------


def test_rows_and_back() -> None:
    packed = PackedBatch(None, [2, 3, 1], torch.tensor([0, 2, 5, 6]))
    tokens = torch.randn(6, 4)
    rows = packed.to_rows(tokens)
    assert rows.shape == (3, 3, 4)
    assert torch.equal(packed.from_rows(rows), tokens)
    assert rows[0, 2].tolist() == rows[2, 1].tolist() == [0, 0, 0, 0]
    padded = PaddedBatch(None)
    assert padded.to_rows(rows) is rows
    assert padded.from_rows(rows) is rows


REFUSED: dict[str, tuple[dict[str, Tensor], type[Exception], str]] = {
    "no lengths": ({"input_ids": IDS}, ValueError, r"got \(8,\)\. A packed batch, of shape \(tokens,\), needs lengths"),
    "a mask": ({"attention_mask": torch.ones(8)}, ValueError, "a packed batch has no attention_mask"),
    "rows": ({"input_ids": IDS.view(2, 4)}, ValueError, r"\(tokens,\) and lengths \(sequences,\), got \(2, 4\)"),
    "lengths of two axes": ({"lengths": LENGTHS[None]}, ValueError, r"lengths \(sequences,\), got .* and \(1, 2\)"),
    "no sequence": ({"lengths": LENGTHS[:0]}, ValueError, r"lengths \(sequences,\), got .* and \(0,\)"),
    "float lengths": ({"lengths": LENGTHS.float()}, TypeError, "lengths must be int64 or int32, got torch.float32"),
    "a sequence of none": ({"lengths": torch.tensor([8, 0])}, ValueError, "at least 1 each .* the least is 0"),
    "too few": ({"lengths": torch.tensor([4, 3])}, ValueError, "add up to the 8 tokens .* the sum 7"),
    "too many": ({"lengths": torch.tensor([5, 4])}, ValueError, "add up to the 8 tokens .* the sum 9"),
    "padding": ({"input_ids": IDS.clone().fill_(1)}, ValueError, "no padding, but input_ids contains the pad id 1"),
    "positions of another shape": (
        {"position_ids": IDS[:5]},
        ValueError,
        r"position_ids must have the shape .*, got \(5,\)",
    ),
    "token type 1": ({"token_type_ids": torch.ones_like(IDS)}, ValueError, "token_type_ids contains 1"),
    "id too high": ({"input_ids": IDS + 50}, ValueError, "input_ids contains 58, expected 0..52"),
}


@attentions
@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(attention: AttentionKind, change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    encoder = XLMRobertaModel(POST_NORM, attention=attention).eval()
    batch = change if message.startswith(r"got \(8,\)") else {"input_ids": IDS, "lengths": LENGTHS, **change}
    with pytest.raises(error, match=message):
        encoder(**batch)


def test_int32_lengths_are_taken() -> None:
    encoder = build(XLMRobertaModel, POST_NORM)
    expected = encoder(IDS, lengths=LENGTHS).last_hidden_state
    assert torch.equal(encoder(IDS.int(), lengths=LENGTHS.int()).last_hidden_state, expected)
