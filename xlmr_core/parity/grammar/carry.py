"""A change of terms made in the model: a `Fault`, whose patch computes the changed taps from earlier ones of the run.

So a change that the grammar found is judged, shown and told apart like a fault of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import Embeddings, EncoderLayer, SelfAttention
from xlmr_core.parity.adapters import NEEDS_EAGER
from xlmr_core.parity.faults import Fault, PoolingFault
from xlmr_core.parity.faults.patching import SURROUNDINGS, Surroundings, attributes_set, parts_of
from xlmr_core.parity.grammar.evaluate import Scene
from xlmr_core.parity.grammar.terms import SENTENCE, Term, resolved, terms_of, weights_of
from xlmr_core.parity.tap_values import in_reading_order
from xlmr_core.parts import encoder_of
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.taps import hooked


@dataclass(frozen=True)
class Change:
    """New terms for some taps.

    Attributes:
        terms: Tap -> its new term.
        says: The change in words.
        where: The layers or operations that have it, in words.
        cost: How unusual it is.
        tap: The one that the words are of; by default the first.
    """

    terms: Mapping[str, Term] = field(hash=False)
    says: str
    where: str
    cost: float
    tap: str = ""

    @property
    def first(self) -> str:
        """The first of the taps in reading order."""
        return in_reading_order(self.terms)[0]


def fault_of(change: Change, pad: int = 1) -> Fault | PoolingFault:
    """The change as a fault that can be made in a model."""
    name = f"{change.tap or change.first}: {change.says}{change.where}"
    symptom = ", ".join(f"{tap} = {term}" for tap, term in list(change.terms.items())[:1])
    if set(change.terms) == {SENTENCE}:
        term = change.terms[SENTENCE]

        def pool(hidden: Tensor, mask: Tensor) -> Tensor:
            scene = _Pooled(hidden, mask, pad)
            return scene.evaluate(term)

        return PoolingFault(name, change.says, symptom, pool)

    def patch(model: nn.Module, _config: XLMRobertaConfig, undo: ExitStack) -> None:
        assert isinstance(model, PretrainedModel)
        _Live(model, change.terms).enter(undo)

    return Fault(name, change.says, symptom, change.first, patch, listed=False)


class _Pooled(Scene):
    """Only the last hidden states are there."""

    def __init__(self, hidden: Tensor, mask: Tensor, pad: int) -> None:
        super().__init__({}, 1, pad, len(hidden))
        self.hidden, self.real = hidden, mask.bool()

    def tap(self, name: str) -> Tensor:
        return self.hidden


class _Live(Scene):
    """The model while it runs: what hooks have recorded of this run."""

    def __init__(self, model: PretrainedModel, new: Mapping[str, Term]) -> None:
        super().__init__({}, model.config.num_attention_heads, model.config.pad_token_id, 1)
        self.model, self.new = model, new
        self.terms = terms_of(model) | dict(new)
        self.taps = {tap.name: tap for tap in model.taps()}
        self.recorded: dict[str, Tensor] = {}  # of the part that runs now
        self.inputs: dict[int, Tensor] = {}  # layer -> what it reads; one more for what is above the layers
        self.batch = 0  # rows that run now

    def enter(self, undo: ExitStack) -> None:
        """Hooks the model. Raises ValueError if it lacks one of the taps."""
        missing = sorted(set(self.new) - set(self.taps))
        if missing:
            raise ValueError(f"the model has no {missing[0]}")
        model = self.model
        undo.enter_context(_before(model, self._starts))
        for embeddings in parts_of(model, Embeddings):
            undo.enter_context(_before(embeddings, lambda args, _: self._part(len(args[0]))))
        wanted = {resolved(leaf) for term in self.new.values() for leaf in term.leaves("tap")} & set(self.taps)
        if any(name.endswith(NEEDS_EAGER) for name in {*self.new, *wanted}):  # fused attention has no such tensor
            attributes_set(SelfAttention, {"fused": False})(model, model.config, undo)
        layers = parts_of(model, EncoderLayer)
        for index, layer in enumerate(layers):
            undo.enter_context(_before(layer, lambda args, _, i=index: self._layer(i, args[0])))
        undo.callback(layers[-1].register_forward_hook(self._above).remove)
        for name in wanted:
            undo.enter_context(hooked(model, self.taps[name], lambda x, n=name: self._record(n, x), first=False))
        for name in in_reading_order(self.new):
            undo.enter_context(hooked(model, self.taps[name], lambda old, n=name: self._new(n, old), first=True))

    def _starts(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A run of the whole model, or of what is above the layers. Raises ValueError for a packed batch."""
        if named.get("lengths") is not None:
            raise ValueError(
                f"a change at {in_reading_order(self.new)[0]} cannot be made in a packed batch: run the model on a "
                "padded one, input_ids and attention_mask of the shape (B, S)"
            )
        ids = args[0] if args else named["input_ids"]
        mask = args[1] if len(args) > 1 else named.get("attention_mask")
        mask = ids != self.pad if mask is None else mask
        self.choices = ids.shape[1] if self.model.spec.has_choices else 1
        ids, mask = ids.flatten(0, -2), mask.flatten(0, -2)  # the choices of all questions are rows
        if encoder_of(self.model).layers:  # or the simulator runs a part, and has said what surrounds it
            SURROUNDINGS[self.model] = Surroundings(ids, mask, ())
            self.inputs.clear()
        else:
            self._part(len(ids))

    def _part(self, batch: int) -> None:
        self.batch = batch
        self.recorded.clear()

    def _layer(self, index: int, hidden: Tensor) -> None:
        self._part(len(hidden))
        self.inputs[index] = hidden

    def _above(self, _layer: nn.Module, _args: Any, output: Tensor) -> None:
        self.inputs[self.model.config.num_hidden_layers] = output

    def _record(self, name: str, x: Tensor) -> Tensor:
        self.recorded[name] = x
        return x

    @torch.no_grad()
    def _new(self, name: str, old: Tensor) -> Tensor:
        around = SURROUNDINGS[self.model]
        times = max(1, self.batch // len(around.ids))
        self.rows = len(around.ids)
        self.ids, self.real = around.ids.repeat(times, 1), around.mask.bool().repeat(times, 1)
        self.weights = weights_of(self.model)
        new = self.evaluate(self.new[name])
        return new.to(old.dtype).expand_as(old)

    def tap(self, name: str) -> Tensor:
        name = resolved(name)
        if name in self.recorded:
            return self.recorded[name]
        hidden = self._hidden(name)
        return self.evaluate(self.terms[name]) if hidden is None else hidden

    def _hidden(self, name: str) -> Tensor | None:
        """A tap between two layers."""
        if name == "embeddings.output":
            index = 0
        elif name.startswith("layers.") and name.count(".") == 2 and name.endswith(".output"):
            index = int(name.split(".")[1]) + 1
        else:
            return None
        if index in self.inputs and len(self.inputs[index]) == self.batch:
            return self.inputs[index]
        below = SURROUNDINGS[self.model].hidden
        return below[index] if index < len(below) else None


See = Callable[[tuple[Any, ...], Mapping[str, Any]], None]


def _before(module: nn.Module, see: See) -> ExitStack:
    """A hook that sees what a module is called with."""

    def hook(_module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        see(args, named)

    stack = ExitStack()
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
    return stack
