"""Every parity comparison is seen to fail: each fault of the catalogue is made in our model, and must be noticed."""

import copy
from contextlib import suppress
from dataclasses import replace
from functools import partialmethod
from itertools import pairwise
from typing import Any

import pytest
import reference
import torch
import what_catches_what
from fault_matrix import HEADS, groups, notices
from reference import CONFIGS, Pair
from torch import Tensor, nn

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import SelfAttention, XLMRobertaModel
from xlmr_core.parity import FAULTS, Fault, find_fault


def home(fault: Fault) -> str:
    """The only group whose model has the tap of this fault, or "oracle" if every masked language model has it."""
    first = fault.tap.split(".")[0]
    return first if first in ("pooler", *HEADS) else "oracle"


def cases() -> list[Any]:
    """Every fault with every placement of norms that it exists for."""
    return [
        pytest.param(norm, fault, id=f"{norm}-{fault.name}")
        for norm in CONFIGS
        for fault in FAULTS
        if fault.norm in (None, norm.split("-")[0])
    ]


def expected_groups(norm: str, fault: Fault) -> set[str]:
    """The comparisons that must notice the fault; others may."""
    if home(fault) != "oracle":
        return {home(fault)}
    if fault.name == "feed_forward_output_dropout_missing" and norm == "pre-norm":
        return set()  # transformers' XL lacks this dropout too: the parity tests remove it from our model
    in_train_mode = {"training", "gradients"}
    if fault.name == "dropout_left_on":
        return {"oracle", "eager", "sdpa", "packed", "packed sdpa"}  # in train mode dropout is where it belongs
    everywhere = {"oracle", "eager", "sdpa"} | in_train_mode
    if fault.name != "positions_count_padding":  # a packed batch has none
        everywhere.add("packed")
        if not fault.name.startswith("mask_") or fault.name == "mask_causal":  # sdpa gets no mask there
            everywhere.add("packed sdpa")
    return {"outputs": everywhere, "training": in_train_mode, "gradients": {"gradients"}}[fault.shows]


def silent_groups(fault: Fault) -> set[str]:
    """The comparisons that must not notice the fault: it changes nothing that they compare."""
    if home(fault) != "oracle":
        return set()
    in_eval_mode = {"oracle", "eager", "sdpa", "packed", "packed sdpa", "probs", "bfloat16", "pooler", *HEADS}
    return {"outputs": set[str](), "training": in_eval_mode, "gradients": in_eval_mode | {"training"}}[fault.shows]


@pytest.mark.parametrize("norm", CONFIGS)
def test_models_without_a_fault_pass_every_comparison(norm: str) -> None:
    for group in groups(norm).values():
        group.check(group.pair)


@pytest.mark.parametrize(("norm", "fault"), cases())
def test_the_right_comparisons_notice_the_fault(norm: str, fault: Fault) -> None:
    seen = {name: notices(norm, name, fault) for name in groups(norm)}
    missed = {name for name in expected_groups(norm, fault) if not seen[name]}
    assert not missed, f"{fault.name} goes unnoticed by {missed}"
    alarmed = {name for name in silent_groups(fault) if seen[name]}
    assert not alarmed, f"{fault.name} changes nothing that {alarmed} compare, but they fail"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.norm != "pre"], ids=lambda fault: fault.name)
def test_the_first_divergent_tap_is_that_of_the_fault(fault: Fault) -> None:
    check_tap("post-norm", fault)


def test_the_first_divergent_tap_is_that_of_the_fault_in_pre_norm_models() -> None:
    for fault in FAULTS:
        if fault.norm == "pre":
            check_tap("pre-norm", fault)


def check_tap(norm: str, fault: Fault) -> None:
    group = groups(norm)[home(fault)]
    measure = gradients if fault.shows == "gradients" else taps if home(fault) == "oracle" else head_taps
    healthy = measure(group.pair, training=fault.shows == "training")
    with fault.applied(group.pair.ours):
        faulty = measure(group.pair, training=fault.shows == "training")
    real = group.pair.real
    different = [name for name in healthy if name not in faulty or is_far(healthy[name], faulty[name], real)]
    assert different, f"{fault.name} changes no tap"
    last = str(group.pair.config.num_hidden_layers - 1)
    assert different[0] == fault.tap.replace("-1", last)


def taps(pair: Pair, training: bool) -> dict[str, Tensor]:
    if training:
        pair.ours.train()
        torch.manual_seed(3)
    try:
        return reference.tapped(pair)
    finally:
        pair.ours.eval()


def head_taps(pair: Pair, training: bool) -> dict[str, Tensor]:
    with torch.no_grad(), pair.ours.capture("**") as seen:
        pair.ours(**pair.batch)
    return dict(seen)


def gradients(pair: Pair, training: bool) -> dict[str, Tensor]:
    """The gradient by each table and weight, under the name of the tap that the table gives."""
    pair.ours.zero_grad()
    pair.ours(**pair.batch).logits[pair.real].square().mean().backward()
    names = {"encoder.embeddings.word_embeddings.weight": "embeddings.word"}
    return {names.get(name, name): weight.grad.clone() for name, weight in pair.ours.named_parameters()}


def is_far(healthy: Tensor, faulty: Tensor, real: Tensor) -> bool:
    if healthy.shape[:2] == real.shape:
        healthy, faulty = healthy[real], faulty[real]
    elif healthy.dim() == 4:
        healthy, faulty = reference.by_query(healthy)[real], reference.by_query(faulty)[real]
    return reference.gap(healthy, faulty) > reference.ORACLE_TOLERANCE


def varlen_context(
    _attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, _longest: int, *, heads: int
) -> Tensor:
    """What the kernel for sequences of various lengths computes, in plain torch: it runs only on CUDA."""
    contexts: list[Tensor] = []
    for start, end in pairwise(offsets.tolist()):
        own = (x[start:end].unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        contexts.append(nn.functional.scaled_dot_product_attention(*own).transpose(0, 1).flatten(1))
    return torch.cat(contexts)


@pytest.mark.parametrize("norm", CONFIGS)
def test_faults_are_made_where_a_kernel_for_various_lengths_runs(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = groups(norm)["packed sdpa"].pair
    real = pair.real
    packed = {"input_ids": pair.batch["input_ids"][real], "lengths": real.sum(dim=1)}

    def outputs() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for fault in FAULTS:
            with suppress(ValueError), fault.applied(pair.ours), torch.no_grad():  # ValueError: it lacks the part
                torch.manual_seed(0)
                found[fault.name] = pair.ours(**packed).logits
        return found

    expected, right = outputs(), pair.ours(**packed).logits
    monkeypatch.setattr(SelfAttention, "_takes_varlen", lambda self, q: not (self.training and self.dropout.p))
    heads = pair.config.num_attention_heads
    monkeypatch.setattr(SelfAttention, "_varlen_context", partialmethod(varlen_context, heads=heads))
    assert reference.gap(pair.ours(**packed).logits, right) <= reference.ORACLE_TOLERANCE
    for name, found in outputs().items():
        assert reference.gap(found, expected[name]) <= reference.ORACLE_TOLERANCE, name


def test_every_comparison_notices_something() -> None:
    for name in groups("post-norm"):
        assert any(notices("post-norm", name, fault) for fault in FAULTS), f"{name} fails with none of the faults"


def test_the_committed_page_is_up_to_date() -> None:
    assert what_catches_what.PATH.read_text(encoding="utf-8") == what_catches_what.page(), "run `make pages`"


# ---- making a fault and removing it ----------------------------------------------------------------------------------


def surroundings(model: nn.Module) -> dict[str, Any]:
    """Everything in a model that a fault could change."""
    ignored = {"_parameters", "_buffers", "_modules"}
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "tensors": [id(parameter) for parameter in model.parameters()],
        "modules": [
            {
                key: value.copy() if isinstance(value, dict) else value
                for key, value in vars(module).items()
                if key not in ignored
            }
            for module in model.modules()
        ],
    }


def assert_restored(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["tensors"] == after["tensors"]
    assert before["modules"] == after["modules"]
    for name, tensor in before["weights"].items():
        assert torch.equal(tensor, after["weights"][name]), name


@pytest.mark.parametrize(("norm", "fault"), cases())
def test_removing_a_fault_restores_everything(norm: str, fault: Fault) -> None:
    pair = groups(norm)["eager" if home(fault) == "oracle" else home(fault)].pair
    before = surroundings(pair.ours)
    with pytest.raises(ZeroDivisionError), fault.applied(pair.ours):
        1 / 0  # noqa: B018
    assert_restored(before, surroundings(pair.ours))


def test_a_fault_that_cannot_be_made_changes_nothing() -> None:
    model = XLMRobertaModel(CONFIGS["post-norm"])
    before = surroundings(model)
    with pytest.raises(ValueError, match="no LMHead"), find_fault("vocabulary_bias_missing").applied(model):
        pass
    with pytest.raises(ValueError, match="no Pooler"), find_fault("pooler_bias_missing").applied(model):
        pass
    with pytest.raises(ValueError, match="concerns pre-norm models"), find_fault("final_norm_missing").applied(model):
        pass
    assert_restored(before, surroundings(model))


def test_layers_off_by_one_needs_two_layers() -> None:
    model = XLMRobertaForMaskedLM(replace(CONFIGS["post-norm"], num_hidden_layers=1))
    with pytest.raises(ValueError, match="at least two"), find_fault("layers_off_by_one").applied(model):
        pass


def inside_layers() -> list[Fault]:
    return [fault for fault in FAULTS if fault.shows == "outputs" and fault.tap.startswith("layers.0.")]


@pytest.mark.parametrize("fault", [fault for fault in inside_layers() if fault.norm != "pre"], ids=lambda f: f.name)
def test_a_fault_in_only_one_layer(fault: Fault) -> None:
    """The first tap that differs is the same one, in that layer. Removing the fault restores everything."""
    pair = groups("post-norm")["oracle"].pair
    before, healthy = surroundings(pair.ours), reference.tapped(pair)
    in_layer_1 = fault.in_layer(1)
    try:
        with in_layer_1.applied(pair.ours):
            faulty = reference.tapped(pair)
    except ValueError:
        assert fault.name == "layers_off_by_one"  # one layer cannot be taken for the next
    else:
        different = [name for name in healthy if is_far(healthy[name], faulty[name], pair.real)]
        assert different[0] == in_layer_1.tap == fault.tap.replace("layers.0.", "layers.1.")
    assert_restored(before, surroundings(pair.ours))


def test_two_faults_at_once_are_removed_in_order() -> None:
    pair = groups("post-norm")["eager"].pair
    before = surroundings(pair.ours)
    swapped, missing = find_fault("q_k_swapped"), find_fault("q_bias_missing")
    with swapped.applied(pair.ours), missing.applied(pair.ours), pytest.raises(AssertionError):
        reference.check_outputs(pair)
    assert_restored(before, surroundings(pair.ours))


def test_a_hook_placed_before_the_fault_sees_it() -> None:
    pair = groups("post-norm")["eager"].pair
    modules = {"word": pair.ours.encoder.embeddings.word_embeddings}
    with torch.no_grad(), reference.recording(modules) as seen:
        pair.ours(**pair.batch)
        healthy = seen["word"]
        with find_fault("embeddings_scaled").applied(pair.ours):
            pair.ours(**pair.batch)
    assert torch.equal(seen["word"], healthy * pair.config.hidden_size**0.5)


def test_the_catalogue_is_well_formed() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 30
    for fault in FAULTS:
        for text in (fault.cause, fault.symptom):
            assert text, fault.name
            assert "\n" not in text, fault.name
            assert not text.endswith("."), fault.name
        assert find_fault(fault.name) is fault


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(KeyError, match=r"no fault is called 'q_k_swap'.*q_k_swapped.*vocabulary_bias_missing"):
        find_fault("q_k_swap")


def test_symptoms_that_give_numbers() -> None:
    """The sizes that the catalogue states are the sizes that come out."""
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    exact = nn.functional.gelu(x)
    assert reference.gap(nn.functional.gelu(x, approximate="tanh"), exact) == pytest.approx(4.7e-4, rel=0.02)
    assert reference.gap(x * torch.sigmoid(1.702 * x), exact) == pytest.approx(0.0203, rel=0.02)


def test_a_missing_key_bias_changes_nothing_after_softmax() -> None:
    pair = groups("post-norm")["oracle"].pair
    healthy = reference.tapped(pair)
    with find_fault("k_bias_missing").applied(pair.ours):
        faulty = reference.tapped(pair)
    assert is_far(healthy["layers.0.attention.scores"], faulty["layers.0.attention.scores"], pair.real)
    assert not is_far(healthy["layers.0.attention.probs"], faulty["layers.0.attention.probs"], pair.real)
    assert not is_far(healthy["lm_head.logits"], faulty["lm_head.logits"], pair.real)


@torch.no_grad()
def test_weights_in_float16_need_no_copy_of_the_word_table() -> None:
    torch.manual_seed(0)
    model = XLMRobertaModel(reference.POST_NORM).eval()
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.copy_(parameter.half())
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    table = model.embeddings.word_embeddings.weight
    stored = table.data_ptr()
    with find_fault("weights_float16").applied(model):
        assert table.data_ptr() == stored
        assert torch.equal(model(ids).last_hidden_state, half(ids).last_hidden_state)
    assert not torch.equal(model(ids).last_hidden_state, half(ids).last_hidden_state)
