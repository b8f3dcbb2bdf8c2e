"""A weight that was not loaded is recognised by the size of its numbers; one in another order is not taken for it."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import Diagnosis, diagnose

MODULE = "layers.1.attention.v_proj"


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    """Wide enough for statistics; its weights are larger than new ones."""
    return reference.build_pair(replace(reference.POST_NORM, hidden_size=96, intermediate_size=160))


def diagnosed(pair: reference.Pair, change: Callable[[Tensor], Tensor], *, bias: bool = True) -> Diagnosis:
    """The diagnosis of a port with another weight, in which no change of the grammar is looked for."""
    port = copy.deepcopy(pair.ours)
    linear = port.encoder.get_submodule(MODULE)
    torch.manual_seed(0)
    linear.weight.data = change(linear.weight.data)
    if not bias:
        linear.bias.data.zero_()
    return diagnose(pair.ours, pair.batch, dump_of(port, pair.batch), grammar=False)


NEW: dict[str, Callable[[Tensor], Tensor]] = {
    "0.02 of initializer_range": lambda w: torch.empty_like(w).normal_(std=0.02),
    "torch's Linear": lambda w: torch.nn.Linear(*w.shape[::-1]).weight.data,
}


@pytest.mark.parametrize("words", NEW)
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_that_was_not_loaded(pair: reference.Pair, words: str, bias: bool) -> None:
    found = diagnosed(pair, NEW[words], bias=bias)
    assert found.stop == "chance"
    [name] = found.faults
    assert f"{MODULE}.weight was not loaded" in name
    assert words in name
    assert ("its bias is 0" in name) is not bias
    assert "it depends on numbers that are drawn at random" in str(found)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows in another order": lambda w: w[torch.randperm(len(w))],
    "entries in another order": lambda w: w.flatten()[torch.randperm(w.numel())].view_as(w),
    "another size": lambda w: torch.empty_like(w).normal_(std=0.031),
    "of low rank": lambda w: torch.randn(len(w), 4) @ torch.randn(4, w.shape[1]) * 0.01,
    "half of it new": lambda w: torch.cat([w[: len(w) // 2], torch.empty_like(w[len(w) // 2 :]).normal_(std=0.02)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_weight_is_not_taken_for_a_new_one(pair: reference.Pair, name: str) -> None:
    assert diagnosed(pair, OTHERS[name]).stop == "unexplained"
