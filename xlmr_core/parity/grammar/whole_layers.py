"""A layer that runs twice, as where two stages of a pipeline overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import EncoderLayer
from xlmr_core.parity.faults import Fault, Patch
from xlmr_core.parity.faults.patching import override_method, parts_of
from xlmr_core.parity.judge import Judge
from xlmr_core.pretrained import PretrainedModel


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
