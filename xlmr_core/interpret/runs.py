"""Runs of a model with many variants of one batch as rows, and the checks of what a caller gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xlmr_core.pretrained import PretrainedModel
from xlmr_core.taps import Change
from xlmr_core.tokenizer import Batch

AnyBatch = Mapping[str, Tensor] | Batch
Score = Callable[[Any], Tensor]  # the model's output for B rows -> (B,)


def check_model(model: PretrainedModel) -> None:
    """Raises ValueError for a model in train mode."""
    if model.training:
        raise ValueError("the model is in train mode, where dropout makes two runs differ: call model.eval() first")


def check_pair(model: PretrainedModel, clean: AnyBatch, corrupted: AnyBatch) -> None:
    """Checks that every token of one batch has its counterpart in the other.

    Raises:
        ValueError: the model is in train mode, a batch is packed, or tokens and padding lie differently in the two.
    """
    check_model(model)
    shapes = [tuple(batch["input_ids"].shape) for batch in (clean, corrupted)]
    if min(map(len, shapes)) < 2:
        raise ValueError("patching needs padded batches, with input_ids of the shape (B, S): one of these is packed")
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the clean batch has the shape {shapes[0]} and the corrupted one {shapes[1]}: every token needs its "
            "counterpart, so write texts with equally many tokens"
        )
    if not torch.equal(_real(model, {**clean}), _real(model, {**corrupted})):
        raise ValueError(
            "padding lies in other places in the clean batch than in the corrupted one: every token needs its "
            "counterpart, so write texts with equally many tokens"
        )


def _real(model: PretrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    mask = batch.get("attention_mask")
    return batch["input_ids"] != model.config.pad_token_id if mask is None else mask.bool()


def check_parts(parts: Tensor, name: str, values: Tensor) -> None:
    """Raises ValueError if the parts are not boolean masks over the tensor at a tap.

    Args:
        parts: (K, ...), where each (...) fits one row of `values`.
        name: of the tap.
        values: (B, ...), the tensor there.
    """
    fits = parts.dim() == values.dim() and all(
        own in (1, size) for own, size in zip(parts.shape[1:], values.shape[1:], strict=True)
    )
    if parts.dtype != torch.bool or not fits:
        wanted = ", ".join(f"1 or {size}" for size in values.shape[1:])
        raise ValueError(
            f"parts must be boolean with the shape (K, {wanted}) for the tap {name}, whose tensor has the shape "
            f"{tuple(values.shape)}; got {parts.dtype} {tuple(parts.shape)}"
        )


def repeated(batch: AnyBatch, count: int) -> dict[str, Tensor]:
    """The tensors `count` times one after the other: B rows become count * B."""
    return {name: tensor.repeat(count, *[1] * (tensor.dim() - 1)) for name, tensor in {**batch}.items()}


def put(parts: Tensor, values: Tensor) -> Change:
    """Puts part k of `values` into the k-th copy of the batch.

    Args:
        parts: (K, ...), True where a value is put.
        values: (B, ...), the values of another run.

    Returns:
        A function of a tensor of K * B rows, for `intervene`.
    """

    def change(tensor: Tensor) -> Tensor:  # (K * B, ...)
        copies = tensor.unflatten(0, (len(parts), -1))
        return torch.where(parts[:, None].to(tensor.device), values, copies).flatten(0, 1)

    return change


def scores(score: Score, output: Any, count: int = 1) -> Tensor:
    """The scores of each copy of the batch, (K, B).

    Args:
        score: of the caller.
        output: the output of the model for K * B rows.
        count: K.

    Raises:
        ValueError: `score` does not return one number for each row.
    """
    fields = {name: value for name, value in vars(output).items() if value is not None}
    rows = len(next(iter(fields.values()))) // count
    found: list[Tensor] = []
    for k in range(count):
        own = slice(k * rows, (k + 1) * rows)
        found.append(score(replace(output, **{name: value[own] for name, value in fields.items()})))
        if found[-1].shape != (rows,):
            raise ValueError(
                f"score must return one number for each of the {rows} rows, a tensor of the shape ({rows},); "
                f"got {tuple(found[-1].shape)}"
            )
    return torch.stack(found)
