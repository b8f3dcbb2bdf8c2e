"""The XLM-RoBERTa encoder. Read it top to bottom: the classes are in the order in which a token meets them.

Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale": RoBERTa (Liu et al. 2019), which is
BERT's encoder (Devlin et al. 2019, section 3) with positions counted from pad + 1. XL and XXL (Goyal et al. 2021)
normalise before each sublayer; `config.norm_first` is that one difference.

Other files have what is not mathematics: kernels.py faster attention and packed batches, pretrained.py reading and
writing, inputs.py the errors for input that the model cannot take. Two modules change no number and exist only so that
taps.py can hook them: the softmax, and `mid` of a pre-norm layer.

`Float[Tensor, "*tokens hidden"]` is a floating-point tensor with these axes. The axes, with the letter of each in
comments and tables: batch (B), seq (S), hidden (H), heads (N), head_dim (D; H = N * D), intermediate (F), vocab (V),
classes (C), choices (K), packed (T), the tokens of a packed batch. `*tokens`, or * for short, is `batch seq` in a
padded batch and `packed` in a packed one. The tests check every signature in a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.inputs import check_shapes, check_values
from xlmr_core.kernels import AnyBatch, AttentionKind, FusedAttention, batch_of, first_token, packed_position_ids
from xlmr_core.parameter_groups import POOLER
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.spec import ModelSpec

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

ACTIVATIONS = {
    "gelu": nn.GELU,  # exact, by erf: XLM-R's
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Embeddings(nn.Module):
    """Token ids to vectors: word + token type + position, then norm and dropout."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, config.pad_token_id)
        self.norm = nn.Identity() if config.norm_first else _layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Int[Tensor, "*tokens"],
        token_type_ids: Int[Tensor, "*tokens"],
        position_ids: Int[Tensor, "*tokens"],
    ) -> Float[Tensor, "*tokens hidden"]:
        # Float addition is not associative: this order is that of transformers, for equal bits.
        total = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        total = total + self.position_embeddings(position_ids)
        return self.dropout(self.norm(total))


class SelfAttention(FusedAttention):
    """Multi-head attention of every token to every real token (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: XLMRobertaConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.fused = attention == "sdpa"
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.softmax = nn.Softmax(dim=-1)  # a module only for taps: scores and probs are its two ends
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "*tokens hidden"], batch: AnyBatch) -> Float[Tensor, "*tokens hidden"]:
        q, k, v = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.fused:
            return self.out_proj(self.fused_attention(q, k, v, batch))
        q, k, v = (self._split_heads(batch.to_rows(x)) for x in (q, k, v))
        context = self._eager_context(q, k, v, batch.mask)
        return self.out_proj(batch.from_rows(self._merge_heads(context)))

    def _eager_context(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch heads seq head_dim"],
        v: Float[Tensor, "batch heads seq head_dim"],
        mask: Bool[Tensor, "batch 1 1 seq"] | None,
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        scores = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5  # (B, N, S, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # exp of it is 0: pads get no attention
        probs = self.softmax(scores)
        return torch.matmul(self.dropout(probs), v)


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between, for each token by itself. The layer has the dropout."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        return self.down_proj(self.activation(self.up_proj(hidden)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with dropout, a residual connection and a norm."""

    def __init__(self, config: XLMRobertaConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config, attention)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_norm = _layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.feed_forward_norm = _layer_norm(config)
        if config.norm_first:
            self.mid = nn.Identity()  # only for taps: there is no norm here whose output they could hook

    def forward(self, hidden: Float[Tensor, "*tokens hidden"], batch: AnyBatch) -> Float[Tensor, "*tokens hidden"]:
        if self.norm_first:
            attended = self.attention(self.attention_norm(hidden), batch)
            mid = self.mid(hidden + self.attention_dropout(attended))
            transformed = self.feed_forward(self.feed_forward_norm(mid))
            return mid + self.feed_forward_dropout(transformed)
        attended = self.attention(hidden, batch)
        mid = self.attention_norm(hidden + self.attention_dropout(attended))
        transformed = self.feed_forward(mid)
        return self.feed_forward_norm(mid + self.feed_forward_dropout(transformed))


class Pooler(nn.Module):
    """The first token through a linear map and tanh. Published poolers were not trained to be an embedding."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(
        self, hidden: Float[Tensor, "*tokens hidden"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch hidden"]:
        return self.activation(self.dense(hidden[first_token(lengths)]))


@dataclass(frozen=True)
class ModelOutput:
    """The output of `XLMRobertaModel`.

    Args:
        last_hidden_state: a vector for each token. Those of padding have no meaning.
        pooler_output: the pooled vector of each sequence; None if the model has no pooler.
    """

    last_hidden_state: Float[Tensor, "*tokens hidden"]
    pooler_output: Float[Tensor, "batch hidden"] | None = None


class XLMRobertaModel(PretrainedModel[ModelOutput]):
    """The encoder: token ids in, one vector for each token out.

    Args:
        config: sizes and numerics.
        attention: the attention kernel: "eager" is the equation in this file, "sdpa" the faster one of kernels.py.
        add_pooling_layer: whether the model has a `Pooler`.

    Raises:
        ValueError: `attention` is not one of the two.
    """

    spec = ModelSpec(groups=(), optional=(POOLER,), transformers_name="Model", is_encoder=True)

    def __init__(
        self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager", add_pooling_layer: bool = False
    ) -> None:
        super().__init__()
        if attention not in ("eager", "sdpa"):
            raise ValueError(f"attention must be 'eager' or 'sdpa', got {attention!r}")
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, attention) for _ in range(config.num_hidden_layers))
        self.final_norm = _layer_norm(config) if config.norm_first else nn.Identity()
        self.pooler = Pooler(config) if add_pooling_layer else None

    def forward(
        self,
        input_ids: Int[Tensor, "*tokens"],
        attention_mask: Shaped[Tensor, "*tokens"] | None = None,
        token_type_ids: Int[Tensor, "*tokens"] | None = None,
        position_ids: Int[Tensor, "*tokens"] | None = None,
        *,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> ModelOutput:
        """Encodes a padded batch, or a packed one.

        Args:
            input_ids: token ids, int64 or int32.
            attention_mask: 1 for a token to attend to, 0 for padding; of a padded batch only. By default every token
                but pad. In a row without any real token the padding attends to all of the row: finite, without meaning.
            token_type_ids: 0 for every token, which is the default: XLM-R has one type.
            position_ids: rows of the position table. By default counted from pad + 1 over the tokens that are not pad.
            lengths: makes the batch a packed one: its sequences follow one another without padding, and `lengths` are
                their numbers of tokens.

        Returns:
            The vectors of all tokens, packed if the batch is, and the pooled vectors if the model has a pooler.

        Raises:
            ValueError, TypeError: the model cannot take the input. The message names the argument and the limit.
        """
        pad = self.config.pad_token_id
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        check_shapes(input_ids, attention_mask, token_type_ids, position_ids, lengths)
        batch = batch_of(input_ids != pad if attention_mask is None else attention_mask, lengths)
        if position_ids is None:
            if lengths is None:
                position_ids = position_ids_from(input_ids, pad)
            else:
                position_ids = packed_position_ids(lengths, len(input_ids), pad)
        check_values(self.config, input_ids, token_type_ids, position_ids, packed=lengths is not None)

        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, batch)
        hidden = self.final_norm(hidden)
        return ModelOutput(hidden, self.pooler(hidden, lengths) if self.pooler is not None else None)


def position_ids_from(input_ids: Int[Tensor, "batch seq"], pad_token_id: int) -> Int[Tensor, "batch seq"]:
    """Positions counted from pad + 1 over the tokens that are not pad; a pad has pad (fairseq/utils.py)."""
    real = (input_ids != pad_token_id).long()
    return real.cumsum(dim=-1) * real + pad_token_id


def _layer_norm(config: XLMRobertaConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
