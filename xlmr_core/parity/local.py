"""Local errors: what a dump has at a tap, minus what our model makes of the dump's own tensors before that tap.

Our model runs in float64, and at each tap that the dump has it goes on with the dump's tensor. So the error at a tap is
that of the operations since the taps before it: with all taps in the dump of one operation, with layer outputs of one
layer, with the last hidden state of the whole model. Errors made further down are no part of it. That is why a local
error is much smaller than the distance from the right value, and a small fault shows in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xlmr_core.parity.tap_values import (
    LOGITS,
    LOGSUMEXP,
    TOP,
    Dump,
    elements,
    is_per_sequence,
    one_mask,
    shape_of,
    with_reduced_logits,
)
from xlmr_core.parity.variants import variant
from xlmr_core.parts import encoder_of, run_on_texts
from xlmr_core.pretrained import PretrainedModel

WORD = "embeddings.word"
WITHIN = 4  # allowances: a change that makes values larger makes rounding errors larger, too
FEW = 0.03  # of all values: as many may fall to the other side where a change rounds
# Which weights a port rounds to its precision: none, all, or those of linear maps only (autocast).
Storage = Literal["as given", "rounded", "rounded matrices"]
STORAGES: tuple[Storage, ...] = ("rounded", "rounded matrices", "as given")


class Inputs:
    """The ids that a dump was made from, and which of its logits are known."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, top_ids: Tensor | None = None) -> None:
        """Args: input_ids: (B, S). attention_mask: (B, S). top_ids: (B, S, K), where only the top logits are known."""
        self.ids, self.mask, self.top_ids = input_ids.cpu(), attention_mask.cpu(), top_ids
        self.real = self.mask.bool()


@torch.no_grad()
def predicted(
    model: PretrainedModel, inputs: Inputs, dump: Dump, made: AbstractContextManager[None] | None = None
) -> dict[str, Tensor]:
    """What the model makes of the tensors of a dump.

    Args:
        model: In float64, in eval mode, with eager attention. It may have faults in it.
        inputs: Of the dump.
        dump: Tap -> tensor.
        made: Makes faults in the model that read taps: they read those of the dump.

    Returns:
        For each tap of the dump the values of real tokens, (T, M), computed from the taps of the dump before it.

    Raises:
        ValueError: A fault of `made` moves the taps.
    """
    taps = model.taps()
    logits = [LOGITS] if dump.keys() & {TOP, LOGSUMEXP} else []
    names = [tap.name for tap in taps if tap.name in dump or tap.name in logits]
    inside = ("embeddings.", "layers.", "final_norm", "pooler.")
    runs = encoder_of(model) if all(name.startswith(inside) for name in names) else model
    with _going_on_with(model, names, dump, inputs.real) as seen, made or nullcontext():
        if model.taps() != taps:
            raise ValueError("the model with this fault has other taps: it cannot go on with those of the dump")
        run_on_texts(runs, inputs.ids, inputs.mask)
    found: Dump = with_reduced_logits(seen, inputs.top_ids)
    return {tap: values(tap, tensor, inputs.real) for tap, tensor in found.items() if tap in dump}


def values(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """The values of real tokens, (T, M), with one number for what a mask hides: see `elements`."""
    found = elements(tap, one_mask(tap, tensor), real)
    return found.reshape(len(found), -1)


def shown(before: Tensor, after: Tensor, given: Tensor, allowed: float, *, one_operation: bool) -> bool | None:
    """Whether the dump has a change at a tap; None where the change does not show there, or nothing can be said.

    Args:
        before: What the model makes of the dump's tensors.
        after: What it makes of them with the change.
        given: What the dump has.
        allowed: What rounding explains.
        one_operation: Whether the dump has the tap before. Otherwise the dump may differ for another change on the way:
            then it has to be right without this one.
    """
    moved = ~((after - before).abs() <= allowed)  # NaN counts
    wrong = ~((after - given).abs() <= WITHIN * allowed)
    right_without = (before - given).abs() <= WITHIN * allowed
    most = FEW * int(moved.sum())
    if not moved.any():
        return None
    if int((moved & wrong).sum()) <= most:
        return True
    return False if one_operation or int((moved & wrong & right_without).sum()) > most else None


def rounding_steps(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from each number to the next of `dtype`."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp(min=info.smallest_normal))
    return torch.ldexp(torch.full_like(x, info.eps), exponent - 1)


@contextmanager
def _going_on_with(
    model: PretrainedModel, names: Iterable[str], dump: Dump, real: Tensor
) -> Generator[dict[str, Tensor], None, None]:
    """A mapping that fills with what the model computes at each tap; the model goes on with the dump's tensor.

    The hooks come after those of a fault, so what they see has the fault in it.
    """
    seen: dict[str, Tensor] = {}

    def exchange(name: str) -> Callable[[Tensor], Tensor]:
        def exchanged(tensor: Tensor) -> Tensor:
            seen[name] = tensor
            given = dump.get(name)
            if given is None or given.shape != tensor.shape:
                return tensor
            return torch.where(counted_values(name, tensor, real), given.to(tensor), tensor)

        return exchanged

    with ExitStack() as hooks:
        for tap in model.taps():
            if tap.name in names:
                hooks.callback(_hook(model.get_submodule(tap.module), tap.side, exchange(tap.name)).remove)
        yield seen


def _hook(module: nn.Module, side: str, change: Callable[[Tensor], Tensor]) -> Any:
    def on_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    def on_output(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        return change(output)

    return module.register_forward_pre_hook(on_input) if side == "input" else module.register_forward_hook(on_output)


def counted_values(tap: str, tensor: Tensor, real: Tensor) -> Tensor:
    """Where a tensor holds values of real tokens: padding is ours, whatever the dump has there."""
    letters = shape_of(tap)
    if letters is None or is_per_sequence(letters):  # None: the sentence vector
        return torch.ones_like(tensor, dtype=torch.bool)
    if letters != "(B, N, S, S)":
        return real.reshape(*real.shape, *[1] * (tensor.dim() - 2))
    queries = real[:, None, :, None]
    return queries & real[:, None, None, :] if tap.endswith("scores") else queries


# ---- the right model -------------------------------------------------------------------------------------------------


def stored_as(model: PretrainedModel, storage: Storage, dtype: torch.dtype) -> PretrainedModel:
    """A copy in float64 whose weights are those of a port.

    Args:
        model: In any dtype; it is left as it is.
        storage: Which weights are rounded.
        dtype: What they are rounded to.
    """
    copied = variant(model, torch.float64, "eager", "cpu")
    tables = {id(module.weight) for module in copied.modules() if isinstance(module, nn.Embedding)}  # may be tied
    linear = [module.weight for module in copied.modules() if isinstance(module, nn.Linear)]
    linear = [weight for weight in linear if id(weight) not in tables]
    rounded = {"as given": [], "rounded matrices": linear, "rounded": list(copied.parameters())}[storage]
    for parameter in rounded:
        parameter.data = parameter.data.to(dtype).double()
    return copied


@torch.no_grad()
def errors_of_right_runs(
    model: PretrainedModel, exact: PretrainedModel, inputs: Inputs, taps: Iterable[str], dtype: torch.dtype, count: int
) -> list[dict[str, Tensor]]:
    """The local errors of our own model in the precision of a dump.

    In each run the rows of the word table are moved at random by one rounding: all numbers after them are new to the
    last bit, and so are their rounding errors. The moved rows count as given.

    Args:
        model: In any dtype.
        exact: The same in float64, with its weights rounded to `dtype`.
        inputs: Of the dump.
        taps: Of the dump.
        dtype: The precision.
        count: The number of runs.

    Returns:
        For each run, the local errors (T, M) at each tap.
    """
    taps = set(taps)
    low = variant(model, dtype, "eager", "cpu")
    logits = [LOGITS] if taps & {TOP, LOGSUMEXP} else []
    wanted = [tap.name for tap in model.taps() if tap.name in taps | {WORD, *logits}]
    runs: list[dict[str, Tensor]] = []
    for seed in range(count):
        with _moved_words(low, seed), low.capture(*wanted) as found:
            run_on_texts(low, inputs.ids, inputs.mask)
        dump = with_reduced_logits({tap: tensor.double() for tap, tensor in found.items()}, inputs.top_ids)
        right = predicted(exact, inputs, dump)
        errors = {tap: values(tap, dump[tap], inputs.real) - right[tap] for tap in right if tap in taps}
        if WORD in errors:
            errors[WORD] = torch.zeros_like(errors[WORD])  # rows of a table have no error
        runs.append(errors)
    return runs


@contextmanager
def _moved_words(model: PretrainedModel, seed: int) -> Generator[None, None, None]:
    generator = torch.Generator().manual_seed(seed)

    def move(_module: nn.Module, _args: Any, rows: Tensor) -> Tensor:
        step = torch.randint(-1, 2, rows.shape, generator=generator).to(rows.dtype)
        return rows * (1 + torch.finfo(rows.dtype).eps * step)

    handle = encoder_of(model).embeddings.word_embeddings.register_forward_hook(move, prepend=True)
    try:
        yield
    finally:
        handle.remove()
