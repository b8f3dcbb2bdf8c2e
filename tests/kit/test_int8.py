"""Ports in int8, which compute with whole numbers: right ones are within the simulated floors, wrong scales are not."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from reference import CONFIGS, Pair
from torch import Tensor, nn

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.compare import Comparison, Floors, compare
from xlmr_core.parity.floors import measure
from xlmr_core.parity.int8 import INT8, QuantisedLinear, quantise

SCHEMES = pytest.mark.parametrize("precision", INT8)
INPUTS = pytest.mark.parametrize("inputs", ["8 bits", "7 bits", "by token"])


class Int8Linear(nn.Module):
    """A linear map as a port has it: whole numbers are multiplied and added, and the sums are scaled."""

    def __init__(self, linear: nn.Linear, precision: str, inputs: str) -> None:
        super().__init__()
        weight = linear.weight.detach().double()
        largest = (
            weight.abs().amax(dim=1) if precision == "int8-per-channel" else weight.abs().max().expand(len(weight))
        )
        self.scale = largest / 127  # (out)
        self.weight = (weight / self.scale[:, None]).round().long()
        self.bias, self.inputs = linear.bias.detach().double(), inputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double()
        if self.inputs == "by token":  # symmetric
            scale, zero = wide.abs().amax(dim=-1, keepdim=True) / 127, 0
        else:
            steps = 2 ** int(self.inputs[0]) - 1
            scale = (wide.max().clamp(min=0) - wide.min().clamp(max=0)) / steps
            zero = int((-wide.min().clamp(max=0) / scale).round())
        whole = (wide / scale).round().long() + zero
        sums = whole @ self.weight.T - zero * self.weight.sum(dim=1)
        return (sums * self.scale * scale + self.bias).to(x.dtype)


def port(pair: Pair, precision: str, inputs: str) -> Any:
    model = copy.deepcopy(pair.ours)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child, precision, inputs))
    return model


@pytest.fixture(scope="module")
def pair() -> Pair:
    return reference.build_pair(CONFIGS["post-norm"])


@pytest.fixture(scope="module")
def floors(pair: Pair) -> Floors:
    return measure(pair.ours, pair.batch, dtypes=[torch.float32, *INT8]).floors


def judged(pair: Pair, floors: Floors, model: Any, precision: str | None) -> Comparison:
    floors = replace(floors, computed_in=precision)
    return compare(dump_of(pair.ours, pair.batch), dump_of(model, pair.batch), real=pair.real, floors=floors)


@SCHEMES
@INPUTS
def test_a_right_port_is_within_the_floors_of_int8_and_not_of_float32(
    pair: Pair, floors: Floors, precision: str, inputs: str
) -> None:
    model = port(pair, precision, inputs)
    assert judged(pair, floors, model, precision).ok, str(judged(pair, floors, model, precision))
    assert not judged(pair, floors, model, None).ok


@INPUTS
def test_the_scales_of_other_channels_are_found(pair: Pair, floors: Floors, inputs: str) -> None:
    model = port(pair, "int8-per-channel", inputs)
    values = model.encoder.layers[1].attention.v_proj
    values.scale = values.scale.roll(1)
    first = judged(pair, floors, model, "int8-per-channel").first_divergence
    assert first is not None
    assert first.tap == "layers.1.attention.v"


@INPUTS
def test_a_scale_of_a_whole_matrix_that_is_wrong_is_found(pair: Pair, floors: Floors, inputs: str) -> None:
    model = port(pair, "int8", inputs)
    model.encoder.layers[1].feed_forward.up_proj.scale *= 1.25
    first = judged(pair, floors, model, "int8").first_divergence
    assert first is not None
    assert first.tap == "layers.1.feed_forward.pre"


@SCHEMES
def test_the_simulation_rounds_to_127_numbers_and_leaves_the_embeddings_alone(pair: Pair, precision: str) -> None:
    model = copy.deepcopy(pair.ours)
    words = model.encoder.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.weight is words
    before = words.clone()
    quantise(model, precision)
    assert torch.equal(model.encoder.embeddings.word_embeddings.weight, before)
    linear = model.encoder.layers[0].feed_forward.up_proj
    assert isinstance(linear, QuantisedLinear)
    rows = linear.weight.detach() if precision == "int8-per-channel" else linear.weight.detach().view(1, -1)
    for row in rows:
        whole = row / row.abs().max() * 127
        torch.testing.assert_close(whole, whole.round())
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_what_was_not_measured_is_said(pair: Pair) -> None:
    measured = measure(pair.ours, pair.batch, dtypes=[torch.float32]).floors
    [row] = [row for row in judged(pair, measured, pair.ours, "int8").rows if row.tap == "lm_head.logits"]
    assert row.verdict == "equal"
    noted = judged(pair, measured, port(pair, "int8", "8 bits"), "int8").first_divergence
    assert noted is not None
    assert noted.note == "no floor was measured here for float32 and int8"


def test_int8_has_no_gradients_and_runs_in_every_other_way(pair: Pair) -> None:
    batch = {name: tensor.clone() for name, tensor in pair.batch.items()}
    reference.packed_batch(batch, pair.config.pad_token_id)  # no padding is attended to
    table = measure(pair.ours, batch, dtypes=["int8"], grad=True, steps=1)
    assert {measurement.dtype for measurement in table.measurements} == {"int8"}
    assert len(table.measurements) >= 8
    assert not any(tap.startswith(("gradients.", "training.")) for m in table.measurements for tap in m.errors)
