"""The saved state of a run: what is needed to continue it with the same result."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_core.atomic import written_as
from xlmr_core.checkpoint.pickles import load_restricted

PARTS = {"step", "model", "optimizer"}
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, for each parameter


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the state of a run. The file is replaced only by a complete one.

    Args:
        path: The file to write.
        model: The model.
        optimizer: The AdamW optimizer over all parameters of `model`.
        step: The number of steps that were taken.

    Raises:
        FloatingPointError: A weight is NaN or infinite. Nothing was written.
        OSError: The file cannot be written, for example because the disk is full.
    """
    check_finite(model.state_dict(), f"after {step} steps")
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with written_or_explained(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


@contextmanager
def written_or_explained(path: Path) -> Generator[Path, None, None]:
    """A temporary file to write to, which becomes `path` at the end of the block; see `xlmr_core.atomic.written_as`.

    Args:
        path: The file to write.

    Yields:
        The temporary file.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    try:
        with written_as(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        cause = str(error).splitlines()[0]
        raise OSError(
            f"{path} cannot be written ({cause}). Make room and give the same command again: it continues the run "
            "from the state that was saved before, if there is one"
        ) from error


def restore_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
    """Reads a state that `save_state` wrote into a model and an optimizer.

    Args:
        path: The file to read.
        model: The model of the run. Its weights are replaced.
        optimizer: The AdamW optimizer over all parameters of `model`. Its moments are replaced, its settings stay.
        steps: The number of steps of the whole run.

    Returns:
        The number of steps that were taken.

    Raises:
        ValueError: The file is not a state of this run, or holds NaN or Inf. The model was not changed.
    """
    try:
        state = load_restricted(path)
        _check(state, model, optimizer, steps)
    except Exception as error:  # torch raises many kinds for a corrupt file
        cause = (str(error).strip() or "it ends early").splitlines()[0]
        raise ValueError(
            f"{path} is not a state that this run can continue from: {cause}. "
            "Replace it with a copy, or remove it to begin at step 0"
        ) from error
    model.load_state_dict(state["model"])
    settings = optimizer.state_dict()["param_groups"]
    moments = state["optimizer"]["state"]
    copies = {number: {name: tensor.clone() for name, tensor in own.items()} for number, own in moments.items()}
    optimizer.load_state_dict({"state": copies, "param_groups": settings})  # copies: the file is mapped into memory
    return state["step"]


def check_finite(tensors: Mapping[str, Tensor], when: str) -> None:
    """Checks that all tensors are finite.

    Args:
        tensors: The tensors, by name.
        when: When this is, or what holds the tensors; the error begins with it.

    Raises:
        FloatingPointError: A tensor holds NaN or Inf; the error names the first one.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FloatingPointError(f"{when}, {name} holds NaN or Inf: try a lower learning rate or weight decay")


def _check(state: Any, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Raises ValueError or FloatingPointError unless `state` fits this model and optimizer."""
    if not isinstance(state, dict) or state.keys() != PARTS:
        raise ValueError(f"it does not hold {', '.join(sorted(PARTS))}")
    step = state["step"]
    if type(step) is not int or not 1 <= step <= steps:
        raise ValueError(f"its step must be a whole number from 1 to {steps}")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    _check_tensors(state["model"], shapes, "the model")
    moments = state["optimizer"].get("state") if isinstance(state["optimizer"], dict) else None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(moments, dict) or moments.keys() != set(range(len(parameters))):
        raise ValueError(f"its optimizer has no state for each of the {len(parameters)} parameters")
    for number, parameter in enumerate(parameters):
        expected = {"step": torch.Size([]), **{name: torch.Size(parameter.shape) for name in MOMENTS}}
        _check_tensors(moments[number], expected, f"parameter {number} of the optimizer")
        if moments[number]["step"].item() != step:
            raise ValueError(f"parameter {number} of the optimizer was saved at another step")


def _check_tensors(tensors: Any, shapes: Mapping[str, torch.Size], what: str) -> None:
    """Raises ValueError or FloatingPointError unless these are finite float32 tensors of these shapes."""
    if not isinstance(tensors, dict) or tensors.keys() != shapes.keys():
        raise ValueError(f"{what} has other tensors than those of the run")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype != torch.float32:
            raise ValueError(f"{name} of {what} is not a float32 tensor")
        if tensor.is_meta:
            raise ValueError(f"{name} of {what} is on the meta device, without values")
        if tensor.shape != shape:
            raise ValueError(f"{name} of {what} must have the shape {tuple(shape)}, not {tuple(tensor.shape)}")
    check_finite(tensors, what)
