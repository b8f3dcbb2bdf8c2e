"""The encoder's behaviour: what comes out, what it refuses, and what it says then."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import reference
import torch
from reference import POST_NORM, PRE_NORM, awkward_batch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind
from xlmr_core.model import XLMRobertaModel, position_ids_from

IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
PADDING_ALONE = torch.tensor([[0, 5, 6, 7, 2], [1, 1, 1, 1, 1]])


def build(
    config: XLMRobertaConfig = POST_NORM, attention: AttentionKind = "eager", *, pooler: bool = False
) -> XLMRobertaModel:
    model = XLMRobertaModel(config, attention=attention, add_pooling_layer=pooler)
    reference.randomize(model)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> XLMRobertaModel:
    return build()


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_output(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    out = build(config, attention)(IDS)
    assert out.last_hidden_state.shape == (2, 5, config.hidden_size)
    assert out.pooler_output is None
    with pytest.raises(FrozenInstanceError):
        out.pooler_output = out.last_hidden_state


def test_pooler_is_there_only_when_asked_for() -> None:
    model = build(pooler=True)
    out = model(IDS)
    assert model.pooler is not None
    assert out.pooler_output.shape == (2, POST_NORM.hidden_size)
    assert torch.equal(out.pooler_output, torch.tanh(model.pooler.dense(out.last_hidden_state[:, 0])))


def test_eager_is_the_default_and_a_wrong_name_is_refused() -> None:
    assert not XLMRobertaModel(POST_NORM).layers[0].attention.fused
    with pytest.raises(ValueError, match="attention must be 'eager' or 'sdpa', got 'flash'"):
        XLMRobertaModel(POST_NORM, attention="flash")  # pyright: ignore[reportArgumentType]


def test_defaults_are_what_they_say(model: XLMRobertaModel) -> None:
    explicit = model(
        IDS,
        attention_mask=(IDS != 1).long(),
        token_type_ids=torch.zeros_like(IDS),
        position_ids=torch.tensor([[2, 3, 4, 5, 6], [2, 3, 4, 1, 1]]),
    )
    assert torch.equal(model(IDS).last_hidden_state, explicit.last_hidden_state)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_of_any_number_type(attention: AttentionKind) -> None:
    model = build(attention=attention)
    expected = model(IDS).last_hidden_state
    for dtype in (torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32):
        assert torch.equal(model(IDS, (IDS != 1).to(dtype)).last_hidden_state, expected)


def test_int32_ids_are_taken(model: XLMRobertaModel) -> None:
    assert torch.equal(model(IDS.int()).last_hidden_state, model(IDS).last_hidden_state)


def test_arguments_are_not_changed(model: XLMRobertaModel) -> None:
    ids, mask = IDS.clone(), (IDS != 1).long()
    model(ids, mask)
    assert torch.equal(ids, IDS)
    assert torch.equal(mask, (IDS != 1).long())


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_and_neighbours_change_nothing(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    """Each row on its own, without padding, gives what it gives in the batch, to the rounding of float64."""
    model = build(config, attention).double()
    batch = awkward_batch(config)
    together = model(**batch).last_hidden_state
    for row in range(4):  # the fifth has a pad that is attended to
        real = batch["attention_mask"][row].bool()
        alone = model(batch["input_ids"][row, real][None]).last_hidden_state[0]
        assert reference.gap(alone, together[row, real]) <= reference.ORACLE_TOLERANCE


def test_what_stands_in_the_padding_changes_nothing(model: XLMRobertaModel) -> None:
    mask = IDS != 1
    positions = position_ids_from(IDS, 1)
    other = IDS.masked_fill(~mask, 9)
    expected, changed = (model(ids, mask, position_ids=positions).last_hidden_state for ids in (IDS, other))
    assert torch.equal(expected[mask], changed[mask])
    assert not torch.equal(expected[~mask], changed[~mask])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_only_padding_is_finite(attention: AttentionKind, dtype: torch.dtype) -> None:
    out = build(attention=attention).to(dtype)(PADDING_ALONE).last_hidden_state
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_a_row_of_only_padding_is_the_same_with_both_kernels_and_changes_no_other_row() -> None:
    eager, sdpa = (build(attention=attention).double() for attention in ("eager", "sdpa"))
    out = eager(PADDING_ALONE).last_hidden_state
    assert reference.gap(out, sdpa(PADDING_ALONE).last_hidden_state) <= reference.ORACLE_TOLERANCE
    assert reference.gap(out[:1], eager(PADDING_ALONE[:1]).last_hidden_state) <= reference.ORACLE_TOLERANCE


def test_a_row_of_only_padding_has_finite_gradients() -> None:
    for attention in ("eager", "sdpa"):
        model = build(attention=attention)
        model(torch.full((1, 4), 1)).last_hidden_state.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_no_layers() -> None:
    model = build(replace(POST_NORM, num_hidden_layers=0))
    positions, types = position_ids_from(IDS, 1), torch.zeros_like(IDS)
    assert torch.equal(model(IDS).last_hidden_state, model.embeddings(IDS, types, positions))


def test_the_longest_sequence() -> None:
    config = replace(POST_NORM, max_position_embeddings=514)
    ids = torch.full((1, 512), 7)
    assert build(config)(ids).last_hidden_state.isfinite().all()
    assert position_ids_from(ids, 1).tolist() == [list(range(2, 514))]


def test_padding_does_not_count_towards_the_longest_sequence() -> None:
    ids = torch.ones(1, POST_NORM.max_tokens + 5, dtype=torch.long)
    ids[0, -POST_NORM.max_tokens :] = 7
    assert build()(ids).last_hidden_state.isfinite().all()


# ---- what is refused -------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], type[Exception], str]] = {
    "id too high": (
        lambda: {"input_ids": torch.tensor([[0, 53, 2]])},
        ValueError,
        "input_ids contains 53, expected 0..52",
    ),
    "id negative": (
        lambda: {"input_ids": torch.tensor([[0, -1, 2]])},
        ValueError,
        "input_ids contains -1, expected 0..52",
    ),
    "too long": (
        lambda: {"input_ids": torch.full((1, 30), 7)},
        ValueError,
        r"a sequence needs position 31, but the last is 30: at most 29 tokens, .*truncation=True",
    ),
    "token type 1": (
        lambda: {"input_ids": IDS, "token_type_ids": torch.ones_like(IDS)},
        ValueError,
        "token_type_ids contains 1, expected 0..0",
    ),
    "token type negative": (
        lambda: {"input_ids": IDS, "token_type_ids": -torch.ones_like(IDS)},
        ValueError,
        "token_type_ids contains -1, expected 0..0",
    ),
    "position negative": (
        lambda: {"input_ids": IDS, "position_ids": -torch.ones_like(IDS)},
        ValueError,
        "position_ids contains -1, expected 0..30",
    ),
    "position too high": (
        lambda: {"input_ids": IDS, "position_ids": torch.full_like(IDS, 31)},
        ValueError,
        "a sequence needs position 31, but the last is 30",
    ),
    "mask of another shape": (
        lambda: {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
        ValueError,
        r"attention_mask must have the shape of input_ids, \(2, 5\), got \(2, 4\)",
    ),
    "mask of four dimensions": (
        lambda: {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 5)},
        ValueError,
        r"attention_mask must have the shape of input_ids, \(2, 5\), got \(2, 1, 5, 5\)",
    ),
    "token types of another shape": (
        lambda: {"input_ids": IDS, "token_type_ids": torch.zeros(5, dtype=torch.long)},
        ValueError,
        r"token_type_ids must have the shape of input_ids, \(2, 5\), got \(5,\)",
    ),
    "positions of another shape": (
        lambda: {"input_ids": IDS, "position_ids": torch.arange(5)[None]},
        ValueError,
        r"position_ids must have the shape of input_ids, \(2, 5\), got \(1, 5\)",
    ),
    "one dimension": (
        lambda: {"input_ids": torch.tensor([0, 5, 2])},
        ValueError,
        r"input_ids must have shape \(batch, sequence\) and not be empty, got \(3,\)",
    ),
    "no dimension": (
        lambda: {"input_ids": torch.tensor(5)},
        ValueError,
        r"input_ids must have shape \(batch, sequence\) and not be empty, got \(\)",
    ),
    "no row": (
        lambda: {"input_ids": torch.zeros(0, 5, dtype=torch.long)},
        ValueError,
        r"must .* not be empty, got \(0, 5\)",
    ),
    "no token": (
        lambda: {"input_ids": torch.zeros(2, 0, dtype=torch.long)},
        ValueError,
        r"must .* not be empty, got \(2, 0\)",
    ),
    "vectors": (
        lambda: {"input_ids": torch.randn(2, 5, 24)},
        ValueError,
        r"input_ids must have shape \(batch, sequence\)",
    ),
    "float ids": (
        lambda: {"input_ids": IDS.float()},
        TypeError,
        "input_ids must be int64 or int32, got torch.float32",
    ),
    "bool ids": (
        lambda: {"input_ids": IDS.bool()},
        TypeError,
        "input_ids must be int64 or int32, got torch.bool",
    ),
    "float positions": (
        lambda: {"input_ids": IDS, "position_ids": IDS.float()},
        TypeError,
        "position_ids must be int64 or int32, got torch.float32",
    ),
    "unknown keyword": (
        lambda: {"input_ids": IDS, "output_attention": IDS},
        TypeError,
        "unexpected keyword argument 'output_attention'",
    ),
    "no ids": (dict, TypeError, "missing 1 required positional argument: 'input_ids'"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(
    model: XLMRobertaModel, arguments: Callable[[], dict[str, Tensor]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model(**arguments())


def test_513_tokens_are_one_too_many() -> None:
    model = build(replace(POST_NORM, max_position_embeddings=514))
    with pytest.raises(ValueError, match=r"needs position 514, but the last is 513: at most 512 tokens, <s> and </s>"):
        model(torch.full((1, 513), 7))


def test_a_second_token_type_is_taken_where_the_table_has_one() -> None:
    model = build(replace(POST_NORM, type_vocab_size=2))
    first, second = model(IDS), model(IDS, token_type_ids=torch.ones_like(IDS))
    assert not torch.equal(first.last_hidden_state, second.last_hidden_state)


# ---- as a module -----------------------------------------------------------------------------------------------------

LAYER_KEYS = [
    f"{module}.{part}"
    for module in (
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.out_proj",
        "attention_norm",
        "feed_forward.up_proj",
        "feed_forward.down_proj",
        "feed_forward_norm",
    )
    for part in ("weight", "bias")
]
TABLE_KEYS = [f"embeddings.{name}_embeddings.weight" for name in ("word", "token_type", "position")]


def test_names_of_the_weights() -> None:
    layers = [f"layers.{index}.{key}" for index in range(POST_NORM.num_hidden_layers) for key in LAYER_KEYS]
    norm, final = ["embeddings.norm.weight", "embeddings.norm.bias"], ["final_norm.weight", "final_norm.bias"]
    pooler = ["pooler.dense.weight", "pooler.dense.bias"]
    assert list(build().state_dict()) == TABLE_KEYS + norm + layers
    assert list(build(pooler=True).state_dict()) == TABLE_KEYS + norm + layers + pooler
    assert list(build(PRE_NORM).state_dict()) == TABLE_KEYS + layers + final


def test_size_of_xlm_roberta_base_and_large() -> None:
    with torch.device("meta"):
        base = XLMRobertaModel(XLMRobertaConfig(), add_pooling_layer=True)
        large = XLMRobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        models = {278_043_648: base, 559_890_432: XLMRobertaModel(large, add_pooling_layer=True)}
    for size, model in models.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_module_is_called(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    """Hooks see everything: no forward is bypassed, but for softmax and dropout inside the fused attention."""
    model = build(config, attention, pooler=True)
    modules = {name: module for name, module in model.named_modules() if name not in ("", "layers")}
    with reference.recording(modules) as called:
        model(IDS)
    fused = {f"layers.{i}.attention.{part}" for i in range(3) for part in ("softmax", "dropout")}
    assert modules.keys() - called.keys() == (set() if attention == "eager" else fused)


def test_initialize() -> None:
    config = replace(POST_NORM, vocab_size=5000, initializer_range=0.03)
    model = build(config, pooler=True)
    model.initialize()
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() > 100:
            assert parameter.std().item() == pytest.approx(0.03, rel=0.15), name
            assert abs(parameter.mean().item()) < 0.005, name
    assert (model.embeddings.word_embeddings.weight[1] == 0).all()
    assert (model.embeddings.position_embeddings.weight[1] == 0).all()
    assert (model.embeddings.word_embeddings.weight[[0, 2]] != 0).any(dim=1).all()


def test_initialize_is_reproducible_and_leaves_nothing_as_it_was() -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        model = build(pooler=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        torch.manual_seed(seed)
        model.initialize()
        states.append(model.state_dict())
    word = "embeddings.word_embeddings.weight"
    assert all(tensor.isfinite().all() for tensor in states[0].values())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][word], states[2][word])


def test_a_copy_is_its_own_model(model: XLMRobertaModel) -> None:
    expected = model(IDS).last_hidden_state
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS).last_hidden_state, expected)
    with torch.no_grad():
        twin.embeddings.word_embeddings.weight.zero_()
    assert torch.equal(model(IDS).last_hidden_state, expected)


def test_pickle(model: XLMRobertaModel) -> None:
    twin = pickle.loads(pickle.dumps(model))
    assert twin.config == model.config
    assert torch.equal(twin(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_on_the_meta_device_shapes_come_out() -> None:
    with torch.device("meta"):
        model = XLMRobertaModel(POST_NORM)
        assert model(torch.zeros(2, 5, dtype=torch.long)).last_hidden_state.shape == (2, 5, 24)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_export(attention: AttentionKind) -> None:
    model = build(attention=attention)
    batch, sequence = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("sequence", min=2, max=29)
    shapes: Any = {"input_ids": {0: batch, 1: sequence}}
    exported = torch.export.export(Tuples(model), (IDS,), dynamic_shapes=shapes).module()
    for ids in (IDS, torch.tensor([[0, 7, 1], [0, 9, 2], [0, 1, 1]])):
        torch.testing.assert_close(exported(ids), model(ids).last_hidden_state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_compile(attention: AttentionKind) -> None:
    model = build(attention=attention)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for ids in (IDS, torch.tensor([[0, 7, 1], [0, 9, 2], [0, 1, 1]])):
        torch.testing.assert_close(compiled(ids).last_hidden_state, model(ids).last_hidden_state)


class Tuples(nn.Module):
    """A tensor instead of the output object, as exported programs want it."""

    def __init__(self, model: XLMRobertaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids).last_hidden_state
