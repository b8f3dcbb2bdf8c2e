"""Faults that change no output in eval mode: they show with dropout on, or only in gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import LMHead
from xlmr_core.model import Embeddings, EncoderLayer, FeedForward, SelfAttention
from xlmr_core.parity.faults.patching import (
    Fault,
    Patch,
    attributes_set,
    change_output,
    each,
    identity,
    override_method,
    set_attribute,
)


def _dropout_moved(kind: type[nn.Module], dropout_name: str, norm_name: str) -> Patch:
    """Dropout on what goes into the norm, instead of where it belongs."""

    def change(undo: ExitStack, part: nn.Module, _config: XLMRobertaConfig) -> None:
        dropout = part.get_submodule(dropout_name)
        assert isinstance(dropout, nn.Dropout)
        norm = part.get_submodule(norm_name)
        override_method(undo, dropout, "forward", identity)
        override_method(undo, norm, "forward", partial(_dropped_out_first, dropout, norm.forward))

    return each(kind, change)


def _dropped_out_first(dropout: nn.Dropout, norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return norm(F.dropout(x, dropout.p, dropout.training))


def _lm_head_copied(undo: ExitStack, head: LMHead, _config: XLMRobertaConfig) -> None:
    set_attribute(undo, head.decoder, "weight", nn.Parameter(head.decoder.weight.detach().clone()))


def _dropout_after_activation(undo: ExitStack, feed_forward: FeedForward, config: XLMRobertaConfig) -> None:
    change_output(undo, feed_forward.activation, partial(_dropped_out, feed_forward, config))


def _dropped_out(module: nn.Module, config: XLMRobertaConfig, x: Tensor) -> Tensor:
    return F.dropout(x, config.hidden_dropout_prob, module.training)


TRAINING_FAULTS: tuple[Fault, ...] = (
    Fault(
        "embedding_dropout_missing",
        cause="there is no dropout after the embeddings",
        symptom="right in eval mode; in train mode no entry of the embeddings is exactly 0",
        tap="embeddings.output",
        patch=attributes_set(Embeddings, {"dropout.p": 0.0}),
        shows="training",
    ),
    Fault(
        "embedding_dropout_before_norm",
        cause="embeddings are dropped out before their norm, not after it",
        symptom="right in eval mode; in train mode no entry of the embeddings is exactly 0",
        tap="embeddings.output",
        patch=_dropout_moved(Embeddings, "dropout", "norm"),
        shows="training",
        norm="post",
    ),
    Fault(
        "probs_dropout_missing",
        cause="attention probabilities are not dropped out",
        symptom="right in eval mode; in train mode context is less noisy than it should be",
        tap="layers.0.attention.context",
        patch=attributes_set(SelfAttention, {"dropout.p": 0.0}),
        shows="training",
    ),
    Fault(
        "attention_output_dropout_missing",
        cause="the attention's output is not dropped out before the residual",
        symptom="right in eval mode; in train mode the residual sum never equals the layer's input",
        tap="layers.0.attention.residual",
        patch=attributes_set(EncoderLayer, {"attention_dropout.p": 0.0}),
        shows="training",
    ),
    Fault(
        "dropout_after_residual",
        cause="dropout is applied to the sum of residual and attention, not to the attention's output only",
        symptom="right in eval mode; in train mode entries of what goes into the norm are exactly 0",
        tap="layers.0.attention.residual",
        patch=_dropout_moved(EncoderLayer, "attention_dropout", "attention_norm"),
        shows="training",
        norm="post",
    ),
    Fault(
        "dropout_after_activation",
        cause="there is a dropout after the activation, where fairseq has activation_dropout, which is 0 in XLM-R",
        symptom="right in eval mode; in train mode entries after the activation are exactly 0",
        tap="layers.0.feed_forward.post",
        patch=each(FeedForward, _dropout_after_activation),
        shows="training",
    ),
    Fault(
        "feed_forward_output_dropout_missing",
        cause="the feed-forward output is not dropped out before the residual, as in transformers' XL",
        symptom="right in eval mode; in train mode the residual sum never equals what went into the feed-forward",
        tap="layers.0.feed_forward.residual",
        patch=attributes_set(EncoderLayer, {"feed_forward_dropout.p": 0.0}),
        shows="training",
    ),
    Fault(
        "lm_head_tied_by_copy",
        cause="the decoder is a copy of the word table, not the same tensor",
        symptom="right until the first optimiser step; the word table lacks the decoder's share of the gradient",
        tap="embeddings.word",
        patch=each(LMHead, _lm_head_copied),
        shows="gradients",
    ),
    Fault(
        "padding_idx_lost",
        cause="the tables have lost their padding_idx, as after resizing the vocabulary",
        symptom="outputs are right; the padding row gets a gradient wherever a pad is attended to",
        tap="embeddings.word",
        patch=attributes_set(
            Embeddings, {"word_embeddings.padding_idx": None, "position_embeddings.padding_idx": None}
        ),
        shows="gradients",
    ),
)
