"""How a fault is made in a model and taken back.

A `Patch` changes the modules of one model object: weights, hooks, methods of instances, never a class. An ExitStack
keeps how to undo each change, so that everything is put back bit for bit, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import EncoderLayer
from xlmr_core.pretrained import PretrainedModel


@dataclass(frozen=True)
class Surroundings:
    """What a patch may need of a run beside the modules that run now.

    Attributes:
        ids: (B, S).
        mask: (B, S).
        hidden: The output of the embeddings and of each layer that was run before.
    """

    ids: Tensor
    mask: Tensor
    hidden: tuple[Tensor, ...]


SURROUNDINGS: WeakKeyDictionary[nn.Module, Surroundings] = WeakKeyDictionary()

Patch = Callable[[nn.Module, XLMRobertaConfig, ExitStack], None]  # a model or a part of one, its config, how to undo
Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class Fault:
    """A known porting bug that can be made in our model.

    Attributes:
        name: Unique in the catalogue.
        cause: What the port does wrong.
        symptom: What the numbers look like.
        tap: The first tap that differs, in reading order; in a post-norm model unless `norm` is "pre". Layer -1 is the
            last.
        patch: Makes it.
        shows: Whether outputs differ, or only outputs with dropout, or only gradients.
        norm: The one placement of norms that the fault exists for; None for both.
        listed: Whether it is in the catalogue; a change that the grammar found is not.
    """

    name: str
    cause: str
    symptom: str
    tap: str
    patch: Patch
    shows: Literal["outputs", "training", "gradients"] = "outputs"
    norm: Literal["post", "pre"] | None = None
    listed: bool = True

    @contextmanager
    def applied(self, model: PretrainedModel) -> Generator[None, None, None]:
        """Makes the fault in a model while the context is open.

        Args:
            model: Is the same as before, bit for bit, when the context is closed.

        Raises:
            ValueError: The model lacks the part (no LM head, no pooler), or has the other placement of norms.
        """
        placement = "pre" if model.config.norm_first else "post"
        if self.norm not in (None, placement):
            raise ValueError(f"fault {self.name} concerns {self.norm}-norm models, this one is {placement}-norm")
        with ExitStack() as undo:
            self.patch(model, model.config, undo)
            yield

    def in_layer(self, layer: int) -> Fault:
        """The same fault in one layer only.

        Args:
            layer: Counted from 0. The fault's tap must be in a layer.

        Returns:
            A fault with a name and a tap of its own.
        """

        def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
            self.patch(parts_of(model, EncoderLayer)[layer], config, undo)

        return replace(
            self,
            name=f"{self.name} in layer {layer} only",
            tap=self.tap.replace("layers.0.", f"layers.{layer}."),
            patch=patch,
        )


# ---- single changes --------------------------------------------------------------------------------------------------


def parts_of(model: nn.Module, kind: type[Part]) -> list[Part]:
    """All modules of one class in the model, itself included. Raises ValueError if there is none."""
    parts = [module for module in model.modules() if isinstance(module, kind)]
    if not parts:
        raise ValueError(f"the model has no {kind.__name__} to make this fault in")
    return parts


def set_attribute(undo: ExitStack, owner: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute of a module."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def override_method(undo: ExitStack, owner: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
    """Gives one instance another method."""
    if method in vars(owner):  # another fault was made here
        undo.callback(setattr, owner, method, vars(owner)[method])
    else:
        undo.callback(delattr, owner, method)
    setattr(owner, method, replacement)  # on the instance: it hides the method of the class


def replace_values(undo: ExitStack, parameter: Tensor, value: Tensor) -> None:
    """Gives a parameter other values. The old ones are kept, not overwritten: other copies may share them."""
    undo.callback(setattr, parameter, "data", parameter.data)
    parameter.data = value.detach().to(parameter).expand_as(parameter).contiguous()


def exchange_values(undo: ExitStack, left: nn.Module, right: nn.Module) -> None:
    """Exchanges the parameters of two modules."""
    for a, b in zip(list(left.parameters()), list(right.parameters()), strict=True):
        old = a.data
        replace_values(undo, a, b)
        replace_values(undo, b, old)


def change_output(undo: ExitStack, module: nn.Module, rule: Callable[[Tensor], Tensor]) -> None:
    """Passes the output of a module through a rule."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return rule(output)

    undo.enter_context(module.register_forward_hook(hook, prepend=True))  # first, so that other hooks see the fault


def change_input(undo: ExitStack, module: nn.Module, rule: Callable[..., tuple[Any, ...]]) -> None:
    """Passes the arguments of a module through a rule."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return rule(*args)

    undo.enter_context(module.register_forward_pre_hook(hook, prepend=True))


# ---- patches of every module of one class ----------------------------------------------------------------------------
# A module in it is named as in `get_submodule`: "" is the module itself.


def each(kind: type[Part], change: Callable[[ExitStack, Part, XLMRobertaConfig], None]) -> Patch:
    """`change(undo, module, config)` for every module of the class."""

    def patch(model: nn.Module, config: XLMRobertaConfig, undo: ExitStack) -> None:
        for part in parts_of(model, kind):
            change(undo, part, config)

    return patch


def input_changed(kind: type[nn.Module], name: str, rule: Callable[..., tuple[Any, ...]]) -> Patch:
    """The module of that name reads `rule(config, *its arguments)`."""
    return each(kind, lambda undo, part, config: change_input(undo, part.get_submodule(name), partial(rule, config)))


def output_changed(kind: type[nn.Module], name: str, rule: Callable[[XLMRobertaConfig, Tensor], Tensor]) -> Patch:
    """The module of that name gives `rule(config, its output)`."""
    return each(kind, lambda undo, part, config: change_output(undo, part.get_submodule(name), partial(rule, config)))


def module_replaced(kind: type[nn.Module], name: str, function: Callable[[Tensor], Tensor]) -> Patch:
    """The module of that name computes the function instead."""
    return each(kind, lambda undo, part, _: override_method(undo, part.get_submodule(name), "forward", function))


def method_replaced(kind: type[nn.Module], name: str, rule: Callable[..., Any]) -> Patch:
    """The method of that name computes `rule(module, *its arguments)` instead."""
    return each(kind, lambda undo, part, _: override_method(undo, part, name, partial(rule, part)))


def modules_exchanged(kind: type[nn.Module], left: str, right: str) -> Patch:
    """Two modules exchange their parameters."""
    return each(kind, lambda undo, part, _: exchange_values(undo, part.get_submodule(left), part.get_submodule(right)))


def parameters_changed(kind: type[nn.Module], names: Sequence[str], rule: Callable[[Tensor], Tensor]) -> Patch:
    """The parameters of those names have other values."""

    def change(undo: ExitStack, part: nn.Module, _config: XLMRobertaConfig) -> None:
        for name in names:
            parameter = part.get_parameter(name)
            replace_values(undo, parameter, rule(parameter))

    return each(kind, change)


def attributes_set(kind: type[nn.Module], values: Mapping[str, Any]) -> Patch:
    """The attributes of those names have these values: "softmax.dim" is that of the module `softmax`."""

    def change(undo: ExitStack, part: nn.Module, _config: XLMRobertaConfig) -> None:
        for name, value in values.items():
            module, _, attribute = name.rpartition(".")
            set_attribute(undo, part.get_submodule(module), attribute, value)

    return each(kind, change)


def missing_bias(
    name: str,
    kind: type[nn.Module],
    module: str,
    tap: str,
    *,
    of: str,
    symptom: str | None = None,
    norm: Literal["post", "pre"] | None = None,
) -> Fault:
    """The fault that the bias of one module is not loaded.

    Args:
        name: Of the fault.
        kind: The class that has the module.
        module: Its name there.
        tap: The first that differs.
        of: The module in words, with its article.
        symptom: By default, that the same vector is missing everywhere.
        norm: As for `Fault`.

    Returns:
        A row of the catalogue.
    """
    usual = f"the same vector is missing from every output of {of}"
    patch = parameters_changed(kind, [f"{module}.bias"], torch.zeros_like)
    return Fault(name, f"the bias of {of} is not loaded", symptom or usual, tap, patch, norm=norm)


def identity(x: Tensor) -> Tensor:
    """In place of a module that is left out."""
    return x
