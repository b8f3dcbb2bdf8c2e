"""Faults below the noise floors are found, and right ports are not suspected. benchmarks/leaning.py has more runs."""

from collections.abc import Callable
from functools import cache

import pytest
import reference
import torch
from kit import transformers_faults
from torch import Tensor, nn

from xlmr_core.model import FeedForward
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.compare import Leaning, compare
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.faults.patching import parts_of
from xlmr_core.parity.floors import measure_floors
from xlmr_core.parity.int8 import quantise
from xlmr_core.parity.leaning import leanings
from xlmr_core.parity.local import Inputs, predicted, values
from xlmr_core.parity.tap_values import Dump, unpacked
from xlmr_core.parity.variants import variant

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


@cache
def pair(dtype: torch.dtype = torch.float32) -> reference.Pair:
    return reference.build_pair(reference.POST_NORM, dtype=dtype)


def found(dump: Dump, dtype: torch.dtype) -> tuple[Leaning, ...]:
    batch = pair().batch
    return leanings(pair().ours, Inputs(batch["input_ids"], batch["attention_mask"]), dump, dtype)


def port(dtype: torch.dtype, *faults: str) -> dict[str, Tensor]:
    """What transformers' model computes with the faults in it."""
    model = reference.build_pair(reference.POST_NORM, dtype=dtype).theirs
    with pytest.MonkeyPatch.context() as patched:
        for name in faults:
            transformers_faults.FAULTS[name](model, patched)
        return dump_of(model, pair().batch)


def only_layers(dump: Dump) -> Dump:
    return {tap: tensor for tap, tensor in dump.items() if tap.startswith("layers.") and tap.count(".") == 2}


def test_a_local_error_has_no_part_of_the_errors_before_it() -> None:
    exact = variant(pair().ours, torch.float64, "eager", "cpu")
    batch = pair().batch
    inputs = Inputs(batch["input_ids"], batch["attention_mask"])
    dump = dump_of(exact, batch)
    with find_fault("q_bias_missing").in_layer(1).applied(exact):
        wrong = dump_of(exact, batch)
    right = predicted(exact, inputs, wrong)
    far = {tap for tap in right if not torch.allclose(right[tap], values(tap, wrong[tap], inputs.real))}
    assert far == {"layers.1.attention.q"}
    distant = {tap for tap in dump if not torch.allclose(dump[tap], wrong[tap])}
    assert "lm_head.logits" in distant


@pytest.mark.parametrize(("dtype", "fewer"), [(BFLOAT16, dict), (FLOAT16, only_layers)])
def test_a_right_port_leans_nowhere(dtype: torch.dtype, fewer: Callable[[Dump], Dump]) -> None:
    assert found(fewer(port(dtype)), dtype) == ()


def test_a_right_packed_port_leans_nowhere() -> None:
    batch = {name: tensor.clone() for name, tensor in pair().batch.items()}
    packed = reference.packed_batch(batch, pair().config.pad_token_id)
    real = batch["attention_mask"].bool()
    dump = dump_of(variant(pair().ours, BFLOAT16, "sdpa", "cpu"), packed)
    padded = {tap: unpacked(tap, tensor, real) for tap, tensor in dump.items()}
    assert leanings(pair().ours, Inputs(batch["input_ids"], batch["attention_mask"]), padded, BFLOAT16) == ()


def test_a_port_that_rounds_only_what_it_writes_leans_nowhere() -> None:
    dump = {tap: tensor.to(BFLOAT16) for tap, tensor in dump_of(pair().ours, pair().batch).items()}
    assert found(dump, BFLOAT16) == ()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_a_fault_below_the_floors_is_found_with_its_size(dtype: torch.dtype) -> None:
    dump = port(dtype, "gelu_tanh")
    floors = measure_floors(pair().ours, pair().batch, dtypes=[torch.float32, dtype])
    assert compare(dump_of(pair().ours, pair().batch), dump, real=pair().real, floors=floors).ok
    [leaning] = found(dump, dtype)
    assert leaning.name == "gelu_tanh"
    assert abs(leaning.size - 1) < 0.1 + 3 * leaning.error
    assert leaning.sigmas > 5
    assert "but leaning towards gelu_tanh (size" in str(leaning)


def test_a_fault_in_one_layer_is_named_with_its_layer() -> None:
    model = variant(pair().ours, FLOAT16, "eager", "cpu")
    with find_fault("gelu_tanh").in_layer(1).applied(model):
        dump = dump_of(model, pair().batch)
    assert [leaning.name for leaning in found(dump, FLOAT16)] == ["gelu_tanh in layer 1 only"]


def test_two_faults_are_both_found() -> None:
    names = {leaning.name for leaning in found(port(FLOAT16, "eps_of_bert", "gelu_tanh"), FLOAT16)}
    assert names == {"eps_of_bert", "gelu_tanh"}


def test_int8_is_quantised_and_no_fault() -> None:
    model = variant(pair().ours, torch.float32, "eager", "cpu")
    quantise(model, "int8-per-channel")
    leaning = found(dump_of(model, pair().batch), torch.float32)
    assert leaning
    assert all(one.is_quantisation and abs(one.size - 1) < 0.05 for one in leaning)
    assert {one.name for one in leaning} == {"int8_weights_per_channel", "int8_inputs_of_7_bits"}
    assert str(leaning[0]).startswith("within noise, quantised: int8_")


def test_an_unknown_change_of_another_size_is_not_given_a_name() -> None:
    """Half of the difference between the two GELUs."""
    model = variant(pair().ours, FLOAT16, "eager", "cpu")
    for feed_forward in parts_of(model, FeedForward):
        feed_forward.add_module("activation", HalfTanh())
    assert found(dump_of(model, pair().batch), FLOAT16) == ()


class HalfTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        return ((gelu(x.float()) + gelu(x.float(), approximate="tanh")) / 2).to(x)


def test_diagnose_says_what_is_below_the_noise() -> None:
    diagnosis = diagnose(pair().ours, pair().batch, port(BFLOAT16, "gelu_tanh"), dtype=BFLOAT16)
    assert diagnosis.ok
    assert [leaning.name for leaning in diagnosis.leanings] == ["gelu_tanh"]
    assert "leaning towards gelu_tanh" in str(diagnosis)
    assert '"name": "gelu_tanh"' in diagnosis.to_json()
