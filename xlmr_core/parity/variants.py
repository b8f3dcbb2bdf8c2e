"""Copies of a model that compute the same mathematics with other rounding errors, and what they give at the taps.

Another precision, another attention kernel, a packed batch, torch.compile, other draws of the rounding errors, and
features in reverse order. Noise floors are measured on them (floors.py), and simulate.py makes faults in some of them.
"""

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_core.model import SelfAttention, position_ids_from
from xlmr_core.parity.adapters import NEEDS_EAGER, Batch, dump_of, is_fused
from xlmr_core.parity.gradients import COLUMN_SUMS, GRADIENT, LOSSES, gradients, training_losses
from xlmr_core.parity.tap_values import HIDDEN, Dump, shape_of, unpacked
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.spec import ModelSpec

TABLES = "_embeddings."  # of words, positions and types: part of the names of parameters whose rows are no features
# Modules that round nothing, or whose input is not a number.
NO_OPERATIONS = (nn.Embedding, nn.Dropout, nn.Identity)
# Rounding errors, spread over +-eps / 2, have the variance eps**2 / 12: as if every twelfth value were moved by eps.
MOVED = 1 / 12
# Multiply-adds of the largest matrix product of a run, from which on more threads than one are used. Ten tokens of a
# base-sized model have 24 million: a second thread saves a quarter of the time there, and on a busy machine costs more.
WORTH_THREADS = 100_000_000


def run_taps(
    model: PretrainedModel, batch: Batch, taps: Sequence[str], *, grad: bool = False, steps: int = 0
) -> dict[str, Tensor]:
    """The taps, and where asked for the gradients and losses, of one run. Fused attention leaves out what it hides."""
    batch = _beside(model, batch)
    taps = _visible(model, taps)
    found = dump_of(model, batch, taps=taps) if taps else {}
    if grad:
        found |= gradients(model, batch)
    if steps:
        found[LOSSES] = training_losses(model, batch, steps)
    return found


def packed_taps(model: PretrainedModel, batch: Batch, taps: Sequence[str]) -> dict[str, Tensor]:
    """The taps of the real tokens as a packed batch, put back where they are in the padded one."""
    batch = _beside(model, batch)
    real = batch["attention_mask"].bool()
    positions = position_ids_from(batch["input_ids"], model.config.pad_token_id)
    packed = {"input_ids": batch["input_ids"][real], "position_ids": positions[real], "lengths": real.sum(dim=1)}
    found = dump_of(model, packed, taps=_visible(model, taps))
    return {tap: unpacked(tap, tensor, real) for tap, tensor in found.items()}


def compiled_taps(model: PretrainedModel, batch: Batch, taps: Sequence[str]) -> dict[str, Tensor]:
    """The taps of the model as torch.compile runs it. Raises ValueError where it cannot be compiled."""
    torch.compiler.reset()  # or torch would give up after a few models
    try:
        with torch.no_grad(), model.capture(*_visible(model, taps)) as seen:
            torch.compile(model)(**_beside(model, batch))
    except Exception as error:  # torch has an exception of its own for every stage of its compiler
        raise ValueError(
            f"the model cannot be compiled here ({type(error).__name__}: {error}): leave that out (--no-compiled)"
        ) from error
    return dict(seen)


def _beside(model: PretrainedModel, batch: Batch) -> dict[str, Tensor]:
    """The batch on the device of the model."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in dict(batch).items()}


def _visible(model: PretrainedModel, taps: Sequence[str]) -> list[str]:
    return [tap for tap in taps if not (is_fused(model) and tap.endswith(NEEDS_EAGER))]


def variant(model: PretrainedModel, dtype: torch.dtype, attention: str, device: str) -> PretrainedModel:
    """A copy of the model in eval mode, run so. Weights that are already so are shared, and must not be written to.

    Args:
        model: In any dtype, on any device; it is left as it is.
        dtype: Of the copy.
        attention: "eager" or "sdpa".
        device: Of the copy.
    """
    converted: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to(device, dtype), parameter.requires_grad)
        for parameter in model.parameters()
    }
    copied = copy.deepcopy(model, converted).to(device, dtype).eval()
    for module in copied.modules():
        if isinstance(module, SelfAttention):
            module.fused = attention == "sdpa"
    return copied


# ---- other draws of the rounding errors ------------------------------------------------------------------------------


@contextmanager
def perturbed(model: nn.Module, *, seed: int, kept: int = 0) -> Generator[None, None, None]:
    """While the context is open, each operation reads its input with one more rounding error in it.

    The errors are drawn at random. What the operation then sums is new to the last bit, so its own rounding errors are
    new, too: a run under each seed shows how far the model amplifies them.

    Args:
        model: Linear maps, norms, softmax and activations are its operations.
        seed: Of the draw.
        kept: The number of rows of the batch that are left as they are.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_moved(args[0], kept, generator), *args[1:])

    operations = [module for module in model.modules() if not isinstance(module, NO_OPERATIONS) and _is_leaf(module)]
    handles = [module.register_forward_pre_hook(hook) for module in operations]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _moved(x: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    chance = torch.rand(x.shape, generator=generator, device=x.device)
    step = (chance < MOVED / 2).to(x.dtype) - (chance > 1 - MOVED / 2).to(x.dtype)
    step[:kept] = 0
    moved = x * (1 + torch.finfo(x.dtype).eps * step)
    return torch.where(moved.isfinite() & (x > HIDDEN), moved, x)  # a mask's number is written, not computed


# ---- threads ---------------------------------------------------------------------------------------------------------


@contextmanager
def threads_by_size(model: PretrainedModel, tokens: int) -> Generator[None, None, None]:
    """One thread where the work is small: to hand it out takes longer than to do it, most of all on a busy machine.

    Args:
        model: Its feed-forward has the largest matrix product of a layer.
        tokens: In the batch, padding included.
    """
    threads = torch.get_num_threads()
    if tokens * model.config.hidden_size * model.config.intermediate_size < WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- the same mathematics in another order ---------------------------------------------------------------------------


def with_features_reversed(model: PretrainedModel) -> PretrainedModel:
    """The model with all features (hidden, heads, within a head, intermediate) in reverse order. Changes `model`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = parameter.flip(_feature_axes(name, parameter, model.spec))
    return model


def _feature_axes(parameter: str, tensor: Tensor, spec: ModelSpec) -> list[int]:
    """Axes that are features. Rows of a table or of the last map of a head are words, positions, types or labels."""
    axes = list(range(tensor.dim()))
    return axes[1:] if any(name in parameter for name in (TABLES, *spec.row_parameters)) else axes


def unreversed(dump: Dump, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of a reversed model, in the order of the given one."""
    restored: dict[str, Tensor] = {}
    for tap, tensor in dump.items():
        shape = shape_of(tap)
        if tap.startswith(GRADIENT):
            axes = [0] if tap.endswith(COLUMN_SUMS) else _feature_axes(tap, tensor, spec)
        elif shape == "(B, N, S, S)":
            axes = [1]
        else:
            axes = [-1] if shape and shape.endswith((" H)", " F)")) else []
        restored[tap] = tensor.flip(axes) if axes else tensor
    return restored
