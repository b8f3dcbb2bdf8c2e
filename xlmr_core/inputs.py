"""Input that a model cannot take: an error that names the argument, the limit and the way out.

Without these checks it would be a bare IndexError far inside, or on a GPU a dead CUDA context.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig


def check_shapes(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor,
    position_ids: Tensor | None,
    lengths: Tensor | None,
) -> None:
    """Checks shapes and dtypes of the arguments of `XLMRobertaModel.forward`, and the values of a mask of floats.

    Raises:
        ValueError: a shape, the lengths, or a mask that is not made of 0 and 1.
        TypeError: a dtype.
    """
    shape = tuple(input_ids.shape)
    if lengths is None and (input_ids.dim() != 2 or input_ids.numel() == 0):
        packed = ". A packed batch, of shape (tokens,), needs lengths" if input_ids.dim() == 1 else ""
        raise ValueError(f"input_ids must have shape (batch, sequence) and not be empty, got {shape}{packed}")
    if lengths is not None:
        _check_lengths(input_ids, attention_mask, lengths)
    indices = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, tensor in {**indices, "attention_mask": attention_mask}.items():
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(f"{name} must have the shape of input_ids, {shape}, got {tuple(tensor.shape)}")
    for name, tensor in indices.items():
        if tensor is not None and tensor.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be int64 or int32, got {tensor.dtype}")
    if attention_mask is not None and attention_mask.is_floating_point():
        _check_floating_mask(attention_mask)


def _check_floating_mask(attention_mask: Tensor) -> None:
    """Raises ValueError for an additive mask (0 and -inf), which would be read with its meaning reversed."""
    if torch.compiler.is_compiling() or attention_mask.is_meta:
        return  # a look at the values would break the graph
    wrong = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if wrong.numel():
        raise ValueError(
            f"attention_mask contains {wrong[0].item():g}, expected 1 for a token to attend to and 0 for padding. "
            "An additive mask, which has 0 where a token is attended to, becomes one by `attention_mask == 0`"
        )


def _check_lengths(input_ids: Tensor, attention_mask: Tensor | None, lengths: Tensor) -> None:
    if attention_mask is not None:
        raise ValueError("a packed batch has no attention_mask, because every token of it is real: leave it out")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"lengths must be int64 or int32, got {lengths.dtype}")
    if input_ids.dim() != 1 or lengths.dim() != 1 or lengths.numel() == 0:
        raise ValueError(
            f"input_ids of a packed batch must have shape (tokens,) and lengths (sequences,), got "
            f"{tuple(input_ids.shape)} and {tuple(lengths.shape)}"
        )
    counts: list[int] = lengths.tolist()  # once: each look at a GPU's numbers waits for it
    if min(counts) < 1 or sum(counts) != len(input_ids):
        raise ValueError(
            f"lengths must be at least 1 each and add up to the {len(input_ids)} tokens of input_ids, "
            f"but the least is {min(counts)} and the sum {sum(counts)}"
        )


def check_values(
    config: XLMRobertaConfig, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, *, packed: bool
) -> None:
    """Checks that the tables have a row for every id, type and position, and that a packed batch has no padding.

    Raises:
        ValueError: one of them is not so. The message names the argument, the value and what was expected.
    """
    if torch.compiler.is_compiling() or input_ids.is_meta:
        return  # a look at the values would break the graph
    indices = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
    rows = (config.vocab_size, config.type_vocab_size, config.max_position_embeddings)
    bounds = torch.stack([bound for tensor in indices.values() for bound in tensor.aminmax()]).tolist()
    for (name, limit), low, high in zip(zip(indices, rows, strict=True), bounds[::2], bounds[1::2], strict=True):
        if low >= 0 and high < limit:
            continue
        if name == "position_ids" and low >= 0:
            raise ValueError(
                f"a sequence needs position {high}, but the last is {limit - 1}: at most {config.max_tokens} tokens, "
                "<s> and </s> included. Truncate the text (tokenizer(..., truncation=True)) or split it"
            )
        raise ValueError(f"{name} contains {low if low < 0 else high}, expected 0..{limit - 1}")
    if packed and bool((input_ids == config.pad_token_id).any()):
        raise ValueError(
            f"a packed batch has no padding, but input_ids contains the pad id {config.pad_token_id}. If a text "
            "contains <pad>, tokenize it with specials_in_text=False"
        )


def check_positions(positions: Tensor | None, input_ids: Tensor) -> None:
    """Checks the argument `positions` of `XLMRobertaForMaskedLM.forward`.

    Raises:
        ValueError: it is not boolean, or does not have the shape of `input_ids`.
    """
    if positions is not None and (positions.shape != input_ids.shape or positions.dtype != torch.bool):
        raise ValueError(
            f"positions must be boolean with the shape of input_ids, {tuple(input_ids.shape)}, "
            f"got {positions.dtype} with shape {tuple(positions.shape)}"
        )


def check_choices(given: Sequence[Tensor | None], lengths: Tensor | None) -> None:
    """Checks shapes of the arguments of `XLMRobertaForMultipleChoice.forward`.

    Args:
        given: the arguments that have the shape of input_ids; input_ids is one of them.
        lengths: those of a packed batch.

    Raises:
        ValueError: an argument does not have its axes.
    """
    shapes = [tuple(tensor.shape) for tensor in given if tensor is not None]
    if lengths is None and (len(shapes[0]) != 3 or len(set(shapes)) > 1):
        raise ValueError(
            f"every input must have the shape (batch, choices, sequence), got {', '.join(map(str, shapes))}"
        )
    if lengths is not None and lengths.dim() != 2:
        raise ValueError(f"lengths must have the shape (batch, choices), got {tuple(lengths.shape)}")
