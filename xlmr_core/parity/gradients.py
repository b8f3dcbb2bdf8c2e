"""What training computes, under names: the loss, its gradient by every parameter, and a few optimiser steps.

The loss of a real token is the cross-entropy of its logits with its own id, and gradients are those of the mean over
all real tokens, with dropout off: nothing is drawn at random, so a port in any language can compute the same. The steps
are plain gradient descent. Adam divides by the size of the gradient, and so turns the rounding noise of a gradient that
is zero, such as that of every key bias, into whole steps.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRADIENT, LOSS, LOSSES = "gradients.", "loss", "training.losses"
WHOLE = 500_000  # parameters: of a larger model, the gradient of a matrix is kept as its column sums, a row alone
COLUMN_SUMS = ".column_sums"
LEARNING_RATE = 0.05


def gradients(
    model: nn.Module, batch: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The loss, and the gradient by every parameter, in the order in which they are computed: from the head down.

    names: their parameter -> ours, for a model that is not ours. Needs a model whose output has `logits`. The model
    is as before afterwards, gradients included.
    """
    parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    with torch.enable_grad():
        losses = token_losses(model, batch)
        found = torch.autograd.grad(_mean(losses, batch), list(parameters.values()))
    small = sum(tensor.numel() for tensor in parameters.values()) <= WHOLE
    kept: dict[str, Tensor] = {LOSS: _kept(losses, model)}
    for name, gradient in reversed(list(zip(parameters, found, strict=True))):
        ours = GRADIENT + (names or {}).get(name, name)
        if small or gradient.dim() < 2:
            kept[ours] = gradient
        else:
            kept[ours + COLUMN_SUMS] = gradient.sum(dim=0)
    return kept


def training_losses(model: nn.Module, batch: Mapping[str, Tensor], steps: int) -> Tensor:  # (steps + 1, B, S)
    """The losses before each of a few steps of gradient descent, and after the last. Trains a copy."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            now = token_losses(model, batch)
            _mean(now, batch).backward()
        losses.append(_kept(now, model))
        optimizer.step()
    with torch.no_grad():
        losses.append(_kept(token_losses(model, batch), model))
    return torch.stack(losses)


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:  # (B, S)
    """The loss of each real token; 0 for padding. Raises ValueError in train mode, or for another model than a LM."""
    if model.training:
        raise ValueError("the model is in train mode: call model.eval(), since dropout is drawn at random")
    logits = getattr(model(**batch), "logits", None)
    config: Any = model.config
    if logits is None or logits.shape[2:] != (config.vocab_size,):
        raise ValueError(f"{type(model).__name__} has no vocabulary logits: gradients need a masked language model")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(wide.flatten(0, 1), batch["input_ids"].flatten(), reduction="none")
    return losses.view_as(batch["input_ids"]).masked_fill(~batch["attention_mask"].bool(), 0)


def _kept(losses: Tensor, model: nn.Module) -> Tensor:
    """In the dtype of the model: what a dump holds has the dtype of the run throughout."""
    return losses.detach().to(next(model.parameters()).dtype)


def _mean(losses: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return losses.sum() / batch["attention_mask"].bool().sum()
