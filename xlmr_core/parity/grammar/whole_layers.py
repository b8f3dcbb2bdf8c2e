"""Whole layers: one that runs twice, as where two stages of a pipeline overlap, and layers in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import EncoderLayer
from xlmr_core.parity.faults import Fault, Patch
from xlmr_core.parity.faults.patching import override_method, parts_of
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.terms import Term, Terms, resolved, terms_of
from xlmr_core.parity.judge import Judge
from xlmr_core.parity.local import WITHIN
from xlmr_core.parity.simulate import SimulatedFault
from xlmr_core.pretrained import PretrainedModel

# ---- one that runs twice ---------------------------------------------------------------------------------------------


def run_twice(judge: Judge, model: PretrainedModel) -> Iterator[Fault]:
    """Each layer in which the first difference may begin, run twice."""
    right = judge.order[judge.start - 1] if judge.start else "embeddings.output"
    first, last = (judge.simulator.part_of(tap) - 1 for tap in (right, judge.wrong.tap))
    for number in range(max(first, 0), min(last + 1, model.config.num_hidden_layers)):
        name = f"layers.{number}.attention.q"
        cause = f"layer {number} is applied twice"
        yield Fault(f"{name}: {cause}", cause, "a layer more", name, _twice(number), listed=False)


def _twice(number: int) -> Patch:
    def patch(model: nn.Module, _config: XLMRobertaConfig, undo: ExitStack) -> None:
        layer = parts_of(model, EncoderLayer)[number]
        once = layer.forward

        def twice(hidden: Tensor, *others: Any) -> Tensor:
            return once(once(hidden, *others), *others)

        override_method(undo, layer, "forward", twice)

    return patch


# ---- another order ---------------------------------------------------------------------------------------------------


def in_other_order(judge: Judge, model: PretrainedModel) -> Iterator[SimulatedFault]:
    """The layers in the order in which a dump with the outputs of all layers has them."""
    with judge.simulator.made(judge.made):
        order = _order(judge, model.config.num_hidden_layers)
    if order is not None:
        terms = terms_of(model)
        new = {name: _of_layer(terms, name, order) for name in terms if name.startswith("layers.")}
        changed = {name: term for name, term in new.items() if term != terms[name]}
        yield fault_of(Change(changed, _in_words(order), "", 1.0), model.config.pad_token_id)


def _order(judge: Judge, layers: int) -> tuple[int, ...] | None:
    """Which layer each layer of the dump is; None if one of them is none, or each is itself."""
    if not judge.wrong.tap.startswith("layers."):
        return None
    here = int(judge.wrong.tap.split(".")[1])
    found: dict[int, int] = {}
    for place in sorted(range(layers), key=lambda place: place != here):  # first where another layer is likely
        layer = _layer_at(judge, place, layers)
        if layer is None or (place == here and layer == here):
            return None
        found[place] = layer
    return tuple(found[place] for place in range(layers))


def _layer_at(judge: Judge, place: int, layers: int) -> int | None:
    """The layer that makes the output at a place of the dump from what is read there."""
    simulator, dump = judge.simulator, judge.dump
    read, output = resolved(f"layers.{place}.input"), f"layers.{place}.output"
    if read not in dump or output not in dump:
        return None
    real, given = simulator.real, dump[read].double()
    allowed = WITHIN * next(row.allowed or 0.0 for row in judge.run.compared(dump).rows if row.tap == output)
    for layer in sorted(range(layers), key=lambda layer: layer != place):
        error = (simulator.through_layer(given, layer) - dump[output])[real].abs().max()
        if float(error) <= allowed:
            return layer
    return None


def _of_layer(terms: Terms, name: str, order: Sequence[int]) -> Term:
    """The term of a tap with the weights of the layer that stands there."""
    layer = int(name.split(".")[1])

    def moved(part: Term) -> Term:
        if part.op != "weight" or not part.value.startswith(f"layers.{layer}."):
            return part
        return replace(part, value=f"layers.{order[layer]}.{part.value.split('.', 2)[2]}")

    return terms[name].map(moved)


def _in_words(order: Sequence[int]) -> str:
    moved = [place for place, layer in enumerate(order) if layer != place]
    if list(order) == list(range(len(order)))[::-1]:
        return "the layers are in reverse order"
    if len(moved) == 1:
        return f"all weights of layers.{order[moved[0]]} are used for layers.{moved[0]}"
    if len(moved) == 2 and order[moved[0]] == moved[1] and order[moved[1]] == moved[0]:
        return f"layers {moved[0]} and {moved[1]} are exchanged"
    return f"the layers have the weights of layers {', '.join(map(str, order))}, in this order"
