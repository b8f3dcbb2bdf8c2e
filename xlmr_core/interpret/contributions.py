"""What each head and each sublayer adds to a vector, and to a logit.

A residual stream is a sum. Where a norm follows each sum (base and large), every norm rescales all that was added
before it. The parts add up to the result only if each norm is taken as the linear map that it was in this run, with the
variance that it had there; the GELU of the LM head is treated in the same way. Then the parts sum to the logits, up to
rounding. They describe one run, and do not predict what happens without a part: the variances, the GELU, and the
attention and the feed-forward layers above would then differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.interpret.runs import AnyBatch, check_model
from xlmr_core.model import EncoderLayer, XLMRobertaModel
from xlmr_core.parts import encoder_of
from xlmr_core.pretrained import PretrainedModel


@dataclass(frozen=True)
class Contributions:
    """Named parts of a sum.

    Attributes:
        names: the P parts in the order in which the model adds them.
        values: (P, K, H) of vectors, (P, K, M) of logits, at K tokens. `values.sum(dim=0)` is what the model computes.
    """

    names: tuple[str, ...]
    values: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """The values of one part, (K, ...)."""
        if name not in self.names:
            raise KeyError(f"no part has the name {name!r}: `names` lists them")
        return self.values[self.names.index(name)]


def head_outputs(model: PretrainedModel, layer: int, context: Tensor) -> Tensor:
    """What each head of a layer adds to the output of its attention.

    The output projection is linear, so its result is the sum of these over the heads, and the bias (Elhage et al. 2021,
    "A Mathematical Framework for Transformer Circuits").

    Args:
        model: of any class.
        layer: counted from 0, or from the end if negative.
        context: `layers.{layer}.attention.context`, (..., H), at all tokens or at some.

    Returns:
        (..., N, H).

    Raises:
        ValueError: the model has no such layer, or the context has another width.
    """
    config = model.config
    if not -config.num_hidden_layers <= layer < config.num_hidden_layers:
        raise ValueError(f"layer must lie between 0 and {config.num_hidden_layers - 1}, not {layer}")
    if context.shape[-1] != config.hidden_size:
        raise ValueError(f"the context must have {config.hidden_size} features, not {context.shape[-1]}")
    weight = _layers(encoder_of(model))[layer].attention.out_proj.weight  # (H, H): output, then input
    per_head = weight.unflatten(1, (config.num_attention_heads, config.head_dim))  # (H, N, D)
    return torch.einsum("...nd,hnd->...nh", context.unflatten(-1, per_head.shape[1:]), per_head)


@torch.no_grad()
def decompose(model: PretrainedModel, batch: AnyBatch, positions: Tensor) -> Contributions:
    """The last hidden state as a sum: the embeddings, each head, each feed-forward layer, and the biases.

    Each norm is the linear map that it was in this run (Kobayashi et al. 2021, "Incorporating Residual and
    Normalization Layers into Analysis of Masked Language Models"). In XL and XXL this concerns the final norm only.

    Args:
        model: of any class, in eval mode.
        batch: padded or packed.
        positions: boolean with the shape of `input_ids`, True at the K tokens of interest.

    Returns:
        Vectors (P, K, H), named "embeddings.word", "layers.0.head.2", "layers.0.attention.bias",
        "layers.0.feed_forward", "layers.0.attention_norm.bias", ...

    Raises:
        ValueError: the model is in train mode, or `positions` does not fit the batch.
    """
    check_model(model)
    if positions.dtype != torch.bool or positions.shape != batch["input_ids"].shape:
        shape = tuple(batch["input_ids"].shape)
        raise ValueError(f"positions must be boolean with the shape {shape}, got {positions.dtype} {positions.shape}")
    wanted = ("embeddings.*", "layers.*.attention.context", "layers.*.feed_forward.output")
    with model.capture(*wanted) as acts:
        model(**batch)
    return _added_up(encoder_of(model), {name: tensor[positions] for name, tensor in acts.items()})


def _added_up(encoder: XLMRobertaModel, acts: dict[str, Tensor]) -> Contributions:  # (K, H) each
    parts = _Sum([], [])
    for table in ("word", "token_type", "position"):
        parts.add(f"embeddings.{table}", acts[f"embeddings.{table}"])
    parts.normalise("embeddings.norm", encoder.embeddings.norm)
    for i, layer in enumerate(_layers(encoder)):
        for head, output in enumerate(head_outputs(encoder, i, acts[f"layers.{i}.attention.context"]).unbind(1)):
            parts.add(f"layers.{i}.head.{head}", output)
        parts.add(f"layers.{i}.attention.bias", layer.attention.out_proj.bias)
        if not encoder.config.norm_first:
            parts.normalise(f"layers.{i}.attention_norm", layer.attention_norm)
        parts.add(f"layers.{i}.feed_forward", acts[f"layers.{i}.feed_forward.output"])
        if not encoder.config.norm_first:
            parts.normalise(f"layers.{i}.feed_forward_norm", layer.feed_forward_norm)
    parts.normalise("final_norm", encoder.final_norm)
    return parts.contributions()


@torch.no_grad()
def direct_logit_attribution(
    model: XLMRobertaForMaskedLM, batch: AnyBatch, positions: Tensor, tokens: Sequence[int]
) -> Contributions:
    """The logits of some tokens of the vocabulary as a sum over the parts of `decompose` and the biases of the LM head.

    The LM head has a GELU, x * Phi(x), which is taken as a multiplication with the Phi(x) of this run, so that its
    effect is shared out among the parts in proportion (as the gates in Ali et al. 2022, "XAI for Transformers").

    Args:
        model: a masked language model, in eval mode.
        batch: padded or packed.
        positions: as in `decompose`.
        tokens: M ids of the vocabulary.

    Returns:
        Logits (P, K, M), whose sum over the parts is that of the model.

    Raises:
        TypeError: the model has no LM head.
        ValueError: as in `decompose`.
    """
    if not isinstance(model, XLMRobertaForMaskedLM):
        raise TypeError(f"direct_logit_attribution needs an XLMRobertaForMaskedLM, not a {type(model).__name__}")
    found = decompose(model, batch, positions)
    head = model.lm_head
    parts = _Sum(list(found.names), list(found.values))
    parts.map(lambda part: part @ head.dense.weight.T)
    parts.add("lm_head.dense.bias", head.dense.bias)
    gate = 0.5 * (1 + torch.erf(parts.total() * 0.5**0.5))  # Phi(x)
    parts.map(lambda part: part * gate)
    parts.normalise("lm_head.norm", head.norm)
    rows = head.decoder.weight[list(tokens)]  # (M, H)
    parts.map(lambda part: part @ rows.T)
    parts.add("lm_head.decoder.bias", head.decoder.bias[list(tokens)])
    return parts.contributions()


def _layers(encoder: XLMRobertaModel) -> Sequence[EncoderLayer]:
    return cast(Sequence[EncoderLayer], encoder.layers)  # torch's ModuleList does not name its class


class _Sum:
    """A residual stream as the list of what was added to it, each (K, H)."""

    def __init__(self, names: list[str], values: list[Tensor]) -> None:
        self.names = names
        self.values = values

    def add(self, name: str, value: Tensor) -> None:
        """A vector for each token, or a bias (H,)."""
        self.names.append(name)
        self.values.append(value.expand_as(self.values[0]) if self.values else value)

    def map(self, linear: Callable[[Tensor], Tensor]) -> None:
        self.values = [linear(value) for value in self.values]

    def normalise(self, name: str, norm: nn.Module) -> None:
        """The norm as a linear map: its variance is that of the whole sum."""
        if not isinstance(norm, nn.LayerNorm):  # the identity, where the model has no norm
            return
        variance = self.total().var(dim=-1, unbiased=False, keepdim=True)
        scale = norm.weight / (variance + norm.eps).sqrt()
        self.map(lambda part: (part - part.mean(dim=-1, keepdim=True)) * scale)
        self.add(f"{name}.bias", norm.bias)

    def total(self) -> Tensor:
        return torch.stack(self.values).sum(dim=0)

    def contributions(self) -> Contributions:
        return Contributions(tuple(self.names), torch.stack(self.values))
