"""Every rule of the grammar names a bug that it was written for, planted in a port of its own (step_port.py).

Where a bug is, is named as exactly as the dump shows it: in which layers, and at which of several values.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from kit import step_port
from kit.planted_steps import BUGS, WIDE_BUGS, Bug

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.grammar.terms import weights_of

IN_BRIEF = (
    "positions clamped",
    "positions after padding",
    "positions added after the norm",
    "position table stretched",
    "table split over two devices",
    "upper ids one too high",
    "mask after the softmax",
    "small values cut",
)


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


def dump_with(pair: reference.Pair, **steps: Any) -> dict[str, Any]:
    return step_port.dump(weights_of(pair.ours), pair.config, pair.batch, **steps)


def test_the_port_is_right_as_it_stands(pair: reference.Pair) -> None:
    found = diagnose(pair.ours, pair.batch, dump_with(pair))
    assert found.ok, str(found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_BRIEF else [pytest.mark.slow]) for name in BUGS]
)
def test_a_bug_is_named(pair: reference.Pair, name: str) -> None:
    check(pair, BUGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE_BUGS)
def test_a_bug_of_a_wide_model_is_named(name: str) -> None:
    check(reference.build_pair(replace(reference.POST_NORM, hidden_size=64, intermediate_size=96)), WIDE_BUGS[name])


def check(pair: reference.Pair, bug: Bug) -> None:
    found = diagnose(pair.ours, pair.batch, dump_with(pair, **bug.steps))
    assert found.first_tap == bug.tap, str(found)
    assert len(set(found.faults)) == len(found.faults), str(found)
    assert found.explained, str(found)
    [finding] = found.findings
    assert any(all(word in fault.name for word in bug.words) for fault in finding.faults[:3]), str(found)


def test_positions_of_the_first_row(pair: reference.Pair) -> None:
    """Of the longest row they would be those of a port that counts padding."""
    order = pair.batch["attention_mask"].sum(1).argsort()[1:]
    batch = {name: tensor[order] for name, tensor in pair.batch.items()}

    def positions(ids: torch.Tensor, pad: int) -> torch.Tensor:
        return step_port.positions(ids[:1].expand_as(ids), pad)

    dump = step_port.dump(weights_of(pair.ours), pair.config, batch, positions=positions)
    found = diagnose(pair.ours, batch, dump)
    assert "positions are those of the first row of the batch" in found.faults[0], str(found)


@pytest.mark.parametrize("kind", ["all taps", pytest.param("last hidden state", marks=pytest.mark.slow)])
def test_two_layers_exchanged(pair: reference.Pair, kind: str) -> None:
    port = copy.deepcopy(pair.ours)
    port.encoder.layers[0], port.encoder.layers[1] = port.encoder.layers[1], port.encoder.layers[0]
    dump = dump_of(port, pair.batch)
    kept = [tap for tap in dump if kind == "all taps" or tap == f"layers.{pair.config.num_hidden_layers - 1}.output"]
    found = diagnose(pair.ours, pair.batch, {tap: dump[tap] for tap in kept})
    assert found.explained, str(found)
    assert len(found.findings) == 1
    assert "layers 0 and 1 are exchanged" in found.faults[0]


@pytest.mark.parametrize("kind", ["all taps", "outputs of layers", "last hidden state"])
def test_a_layer_that_runs_twice(pair: reference.Pair, kind: str) -> None:
    port = copy.deepcopy(pair.ours)
    layer = port.encoder.layers[1]
    once = layer.forward
    layer.forward = lambda hidden, *others: once(once(hidden, *others), *others)
    dump = dump_of(port, pair.batch)
    outputs = [tap for tap in dump if tap.count(".") == 2 and tap.endswith(".output")]
    kept = {
        "all taps": [*dump],
        "outputs of layers": ["embeddings.output", *outputs],
        "last hidden state": outputs[-1:],
    }
    found = diagnose(pair.ours, pair.batch, {tap: dump[tap] for tap in kept[kind]})
    assert found.explained, str(found)
    assert found.faults == ("layers.1.attention.q: layer 1 is applied twice",)


def test_ids_that_were_rounded() -> None:
    """All ids below 256 are numbers of bfloat16: it takes a larger vocabulary."""
    pair = reference.build_pair(replace(reference.POST_NORM, vocab_size=600))
    found = diagnose(pair.ours, pair.batch, dump_with(pair, ids=lambda ids, real: ids.bfloat16().long().clamp(max=599)))
    assert found.faults == ("embeddings.word: the ids are rounded to bfloat16",), str(found)


# ---- which layers ----------------------------------------------------------------------------------------------------


def heads_turned(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
    """The heads of the values are reversed in layer 0, and in no other."""
    y = step_port.linear(x, w, b, name)
    return y.unflatten(-1, (4, -1)).flip(-2).flatten(-2) if name == "layers.0.attention.v_proj" else y


def test_a_bug_of_one_layer_is_not_said_to_be_in_every_layer(pair: reference.Pair) -> None:
    """The next difference is in the same layer: only the taps of layer 1 show that it has no such bug."""
    found = diagnose(pair.ours, pair.batch, dump_with(pair, linear=heads_turned, bent=torch.nn.functional.silu))
    first, second = found.faults
    assert "backwards" in first
    assert first.endswith("(in layer 0 only)")
    assert "silu" in second
    assert found.explained, str(found)


@pytest.mark.slow
def test_only_one_layer_is_not_claimed_where_another_is_unexplained(pair: reference.Pair) -> None:
    noise = torch.randn(pair.batch["input_ids"].shape, generator=torch.Generator().manual_seed(0))[:, :, None]
    dump = dump_with(pair, linear=heads_turned)
    dump["layers.2.attention.v"] = dump["layers.2.attention.v"] + noise
    found = diagnose(pair.ours, pair.batch, dump, seconds=1)
    assert found.tap == "layers.2.attention.v"
    assert found.faults[0].endswith("(in layer 0)"), str(found)


def test_a_listed_fault_of_one_layer_is_not_said_to_be_in_every_layer(pair: reference.Pair) -> None:
    kinds = iter(("tanh", "none", "none"))

    def bent(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x, approximate=next(kinds))

    def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w.T if name.endswith("down_proj") else step_port.linear(x, w, b, name)

    found = diagnose(pair.ours, pair.batch, dump_with(pair, bent=bent, linear=linear))
    assert found.faults == ("gelu_tanh in layer 0 only", "down_bias_missing"), str(found)
    assert [len(finding.faults) for finding in found.findings] == [1, 1]


def test_layers_in_reverse_order(pair: reference.Pair) -> None:
    last = pair.config.num_hidden_layers - 1
    turned: dict[str, torch.Tensor] = {}
    for name, tensor in weights_of(pair.ours).items():
        first, _, rest = name.partition("layers.")
        layer, _, rest = rest.partition(".")
        turned[f"layers.{last - int(layer)}.{rest}" if layer and not first else name] = tensor
    found = diagnose(pair.ours, pair.batch, step_port.dump(turned, pair.config, pair.batch))
    assert found.explained, str(found)
    assert "reverse order" in found.faults[0]


def test_the_activation_may_read_another_layer(pair: reference.Pair) -> None:
    """An activation is judged on a sample of the tap that it should read. Of other taps there is no sample."""
    seen: list[torch.Tensor] = []

    def bent(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.nn.functional.gelu(seen[0] if len(seen) == 2 else x)

    found = diagnose(pair.ours, pair.batch, dump_with(pair, bent=bent))
    name = "layers.0.feed_forward.post is used in its place (in layer 1 only)"
    assert found.faults == (f"layers.1.feed_forward.post: {name}",), str(found)


def test_a_mask_of_some_layers_is_one_fault(pair: reference.Pair) -> None:
    """Taps of later layers, computed from the dump's own, are compared with the number of the dump for hidden keys."""
    calls: list[None] = []

    def hidden(scores: torch.Tensor, real: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return step_port.hidden(scores, real if len(calls) == 1 else real & (torch.arange(real.shape[1]) < 8), ids)

    found = diagnose(pair.ours, pair.batch, dump_with(pair, hidden=hidden))
    assert len(found.findings) == 1, str(found)
    assert "all keys but the first 8" in found.faults[0]
    assert found.faults[0].endswith("(in every layer but 0)")


def test_a_change_that_explains_more_than_a_fault_of_the_catalogue(pair: reference.Pair) -> None:
    """At real queries it is as if there were no mask; padded queries, which later layers read, attend to all alike."""

    def hidden(scores: torch.Tensor, real: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scores + torch.where(real, 0.0, -1e9)[:, None, :, None]

    found = diagnose(pair.ours, pair.batch, dump_with(pair, hidden=hidden))
    assert found.faults == (
        "layers.0.attention.scores: the mask hides queries; it should hide padded keys only (in every layer)",
    ), str(found)


def test_what_the_layer_before_reads_is_the_same_in_every_layer(pair: reference.Pair) -> None:
    def given(outputs: list[torch.Tensor], sums: list[torch.Tensor]) -> torch.Tensor:
        return outputs[max(len(outputs) - 2, 0)]

    found = diagnose(pair.ours, pair.batch, dump_with(pair, given=given))
    assert found.explained, str(found)
    assert len(found.findings) == 1, str(found)


@pytest.mark.parametrize("kind", ["all taps", "outputs of layers"])
def test_layers_in_any_order(pair: reference.Pair, kind: str) -> None:
    port = copy.deepcopy(pair.ours)
    layers = [port.encoder.layers[place] for place in (2, 0, 1)]
    port.encoder.layers = torch.nn.ModuleList(layers)
    dump = dump_of(port, pair.batch)
    kept = [tap for tap in dump if kind == "all taps" or (tap.endswith("output") and tap.count(".") < 3)]
    found = diagnose(pair.ours, pair.batch, {tap: dump[tap] for tap in kept if "lm_head" not in tap})
    assert found.faults == ("layers.0.attention.q: the layers have the weights of layers 2, 0, 1, in this order",)


@pytest.mark.parametrize("tap", ["embeddings.word", "embeddings.sum", "embeddings.output"])
def test_ids_of_shards_of_another_size(pair: reference.Pair, tap: str) -> None:
    """Behind the norm, too, each token shows which row it has read."""
    ids = torch.where(pair.batch["input_ids"] < 30, pair.batch["input_ids"], pair.batch["input_ids"] - 2)
    ids = torch.where(ids >= 38, ids - 2, ids)
    dump = dump_with(pair, ids=lambda _ids, _real: ids)
    found = diagnose(pair.ours, pair.batch, {tap: dump[tap]})
    assert "the ids are 2 too low from 3" in found.faults[0], str(found)
    assert "4 too low from 4" in found.faults[0]


def test_a_change_that_rounds_is_stated_of_all_its_layers(pair: reference.Pair) -> None:
    """What one layer rounds allows for what another rounds; the dump is closest with both."""

    def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
        rounded = "down_proj" in name and "layers.0" not in name
        return step_port.linear(x, w.bfloat16().float() if rounded else w, b, name)

    dump = dump_with(pair, linear=linear)
    outputs = [f"layers.{layer}.output" for layer in range(3)]
    found = diagnose(pair.ours, pair.batch, {tap: dump[tap] for tap in outputs})
    assert "down_proj.weight is rounded to bfloat16" in found.faults[0]
    assert found.faults[0].endswith("(in every layer but 0)"), str(found)


# ---- which value -----------------------------------------------------------------------------------------------------


def test_the_same_change_of_another_value_is_a_tie(pair: reference.Pair) -> None:
    """A factor of probs and one of values give the same context, on every input."""
    dump = dump_with(pair, mixed=lambda scores, probs, v: 0.9 * probs @ v)
    [finding] = diagnose(pair.ours, pair.batch, dump).findings
    at = "layers.0.attention"
    assert {fault.name.removeprefix(f"{at}.context: ") for fault in finding.faults} == {
        f"{at}.probs is multiplied by 0.9 (in every layer)",
        f"{at}.v is multiplied by 0.9 (in every layer)",
        "the product of probs and values is multiplied by 0.9 (in every layer)",
    }
