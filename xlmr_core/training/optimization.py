"""One optimizer step, as both training loops take it: seeds, learning rate, gradients, update."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import xlmr_core.training.distributed as distributed

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

LARGEST_SEED = 2**32 - 1


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seeds all random numbers of a step, dropout included, so that a resumed run draws the same.

    Args:
        seed: The seed of the run.
        step: The number of the step, from 0.

    Returns:
        A generator for what the step draws itself.
    """
    distributed.seed_process(seed * 1_000_003 + step)
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate_at(step: int, *, highest: float, steps: int, warmup: int) -> float:
    """The learning rate at a step: it rises linearly from 0 during the warm-up, then falls linearly to 0.

    Args:
        step: The number of the step, from 0.
        highest: The learning rate at the end of the warm-up.
        steps: The number of steps of the run.
        warmup: The number of steps of the warm-up.

    Returns:
        The learning rate.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * (steps - step) / max(1, steps - warmup)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Splits the parameters that are trained by weight decay and by learning rate.

    Only matrices decay: to shrink a bias or the scale of a norm does not regularise.

    Args:
        model: The model.
        weight_decay: The weight decay of the matrices.
        layer_decay: The learning rate of a layer is that of the one above it times this number, from the head down to
            the embeddings (Sun et al. 2019, section 5.3.3).

    Returns:
        Parameter groups for an optimizer: matrices, then vectors; of different learning rates, the embeddings first.
        `scale` is the share of the learning rate.
    """
    layers = [int(found[1]) for name, _ in model.named_parameters() if (found := LAYER.search(name))]
    top = max(layers, default=-1) + 2  # the head; the embeddings are 0 and the first layer is 1
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for is_vector in (False, True):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.dim() < 2) == is_vector:
                scale = layer_decay ** (top - _depth(name, top))
                groups.setdefault((scale, is_vector), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_vector else weight_decay, "scale": scale}
        for (scale, is_vector), parameters in groups.items()
    ]


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    step: int,
    *,
    learning_rate: float,
    max_norm: float = 1.0,
) -> float:
    """Adds up the gradients of the losses, clips them and updates the weights.

    Args:
        model: The model.
        optimizer: The optimizer over the groups of `parameter_groups`. Its learning rates are set here.
        losses: The losses of the batches of this step, one for each forward pass; they add up to the loss of the step.
        step: The number of the step, for the error.
        learning_rate: That of a group with the scale 1.
        max_norm: The largest norm of the gradients of all parameters together.

    Returns:
        The loss of the step, the mean over the processes.

    Raises:
        FloatingPointError: The loss is NaN or infinite. The weights were not changed.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
    total = 0.0
    for loss in losses:  # each is computed here, so that one graph at a time is in memory
        if not torch.isfinite(loss):
            before = "no weight was changed yet: check them with `xlmr inspect MODEL --values`, and the settings"
            advice = "try a lower learning rate" if step else before
            raise FloatingPointError(f"the loss at step {step} is {loss.item()}: {advice}")
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return distributed.mean(total)


def _depth(name: str, top: int) -> int:
    """0 for the embeddings, the number of the layer counted from 1, `top` for what is above the layers."""
    if found := LAYER.search(name):
        return int(found[1]) + 1
    return 0 if name.removeprefix("encoder.").startswith("embeddings.") else top
