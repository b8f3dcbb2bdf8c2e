"""The XLM-RoBERTa encoder. Read this first, top to bottom: the classes stand in the order a token meets them.

Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale": RoBERTa (Liu et al. 2019), which is
BERT's encoder (Devlin et al. 2019, section 3) with positions counted from pad + 1. XL and XXL (Goyal et al. 2021)
normalise before each sublayer; `config.norm_first` is that one difference.

What has nothing to do with the mathematics stands elsewhere: faster attention and packed batches in kernels.py,
reading and writing in pretrained.py, errors for input that the model cannot take in inputs.py. Two modules change no
number, and are there only so that taps.py can hook them: the softmax, and `mid` of a pre-norm layer.

Letters: B batch, S sequence, H hidden, N heads, D head_dim (H = N * D), F intermediate, V vocabulary, T tokens of a
packed batch; * is B, S where the batch is padded, and T where it is packed. A comment such as `# (*) -> (*, H)` after a
signature gives the shapes of its tensors; the tests check each against the code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.inputs import check_shapes, check_values
from xlmr_core.kernels import AnyBatch, AttentionKind, FusedAttention, batch_of, first_token, packed_position_ids
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.spec import POOLER, ModelSpec

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
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> Tensor:  # (*), (*), (*) -> (*, H)
        # Float addition is not associative: this order is the reference's, and bit-equality needs it.
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

    def forward(self, hidden: Tensor, batch: AnyBatch) -> Tensor:  # (*, H) -> (*, H)
        q, k, v = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.fused:
            return self.out_proj(self.fused_attention(q, k, v, batch))
        q, k, v = (self._split_heads(batch.to_rows(x)) for x in (q, k, v))
        context = self._eager_context(q, k, v, batch.mask)
        return self.out_proj(batch.from_rows(self._merge_heads(context)))

    def _eager_context(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:  # (B, N, S, D), (B, N, S, D), (B, N, S, D), (B, 1, 1, S) -> (B, N, S, D)
        scores = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5  # (B, N, S, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # exp of it is 0: pads get no attention
        probs = self.softmax(scores)
        return torch.matmul(self.dropout(probs), v)


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between, each token alone. No dropout inside: the layer has it."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # (*, H) -> (*, H)
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
            self.mid = nn.Identity()  # only for taps: no norm stands here, at which the residual stream could be seen

    def forward(self, hidden: Tensor, batch: AnyBatch) -> Tensor:  # (*, H) -> (*, H)
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

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:  # (*, H), (B) -> (B, H)
        return self.activation(self.dense(hidden[first_token(lengths)]))


@dataclass(frozen=True)
class ModelOutput:
    """What the encoder gives back."""

    last_hidden_state: Tensor  # (*, H); rows of padding hold junk
    pooler_output: Tensor | None = None  # (B, H); None where the model has no pooler


class XLMRobertaModel(PretrainedModel):
    """The encoder: token ids in, one vector a token out."""

    spec = ModelSpec(groups=(), optional=(POOLER,), transformers_name="Model", is_encoder=True)

    def __init__(
        self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager", add_pooling_layer: bool = False
    ) -> None:
        super().__init__()
        if attention not in ("eager", "sdpa"):
            raise ValueError(f"attention {attention!r} is neither 'eager' nor 'sdpa'")
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, attention) for _ in range(config.num_hidden_layers))
        self.final_norm = _layer_norm(config) if config.norm_first else nn.Identity()
        self.pooler = Pooler(config) if add_pooling_layer else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> ModelOutput:  # (*), (B, S), (*), (*), (B)
        """Encodes a padded batch, or a packed one.

        input_ids: token ids. attention_mask: 1 for a token to attend to, 0 for padding; by default every token but
        pad. token_type_ids: all 0 in XLM-R. position_ids: by default counted from pad + 1 over the tokens that are
        not pad. A row with no real token attends to all its padding: finite, and of no use.

        lengths: makes the batch a packed one. Its sequences stand one after the other without padding, and these are
        their numbers of tokens. There is no attention_mask then, and what comes out is packed, too.

        Raises ValueError or TypeError, naming the argument and the limit, for input the model cannot take.
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


def position_ids_from(input_ids: Tensor, pad_token_id: int) -> Tensor:  # (B, S) -> (B, S)
    """Positions counted from pad + 1 over the tokens that are not pad; a pad's is pad (fairseq, make_positions)."""
    real = (input_ids != pad_token_id).long()
    return real.cumsum(dim=-1) * real + pad_token_id


def _layer_norm(config: XLMRobertaConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
