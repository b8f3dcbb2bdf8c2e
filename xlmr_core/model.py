"""The XLM-RoBERTa encoder. Read this first, top to bottom: the classes stand in the order a token meets them.

Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale": RoBERTa (Liu et al. 2019), which is
BERT's encoder (Devlin et al. 2019, section 3) with positions counted from pad + 1. XL and XXL (Goyal et al. 2021)
normalise before each sublayer; `config.norm_first` is that one difference.

What has nothing to do with the mathematics stands elsewhere: reading and writing in pretrained.py, errors for input
that the model cannot take in inputs.py.

Letters: B batch, S sequence, H hidden, N heads, D head_dim (H = N * D), F intermediate, V vocabulary, T tokens of a
packed batch; * is B, S where the batch is padded, and T where it is packed. A comment such as `# (*) -> (*, H)` after a
signature gives the shapes of its tensors; the tests check each against the code.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.inputs import check_shapes, check_values
from xlmr_core.pretrained import PretrainedModel

AttentionKind = Literal["eager", "sdpa"]

ACTIVATIONS = {
    "gelu": nn.GELU,  # exact, by erf: XLM-R's
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True)
class Layout:
    """How the sequences of a batch lie in memory: padded, as rows of one width, or packed, one after the other.

    All but positions and attention works on each token alone, and need not know.
    """

    mask: Tensor | None  # (B, 1, 1, S): True where a key may be attended to; None: everywhere
    lengths: list[int] | None = None  # packed: the number of tokens of each sequence
    offsets: Tensor | None = None  # (B + 1): packed: where each sequence begins, and where the last one ends

    def to_rows(self, tokens: Tensor) -> Tensor:  # (*, ...) -> (B, S, ...)
        """A row for each sequence. Packed ones are filled up with zeros."""
        return tokens if self.lengths is None else pad_sequence(list(tokens.split(self.lengths)), batch_first=True)

    def from_rows(self, rows: Tensor) -> Tensor:  # (B, S, ...) -> (*, ...)
        """The inverse: what was filled up goes."""
        if self.lengths is None:
            return rows
        return torch.cat([row[:length] for row, length in zip(rows, self.lengths, strict=True)])


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


class SelfAttention(nn.Module):
    """Multi-head attention of every token to every real token (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: XLMRobertaConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.fused = attention == "sdpa"
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.softmax = nn.Softmax(dim=-1)  # a module, so that scores and probs can be seen at its two ends
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:  # (*, H) -> (*, H)
        q, k, v = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.fused and layout.lengths is not None and layout.offsets is not None:
            if self._takes_varlen(q):
                return self.out_proj(self._varlen_context(q, k, v, layout.offsets, max(layout.lengths)))
            if q.device.type == "cpu":
                return self.out_proj(self._context_by_sequence(q, k, v, layout.lengths))
        # Rows for everything else: scores and probs look the same in both layouts, and a GPU likes one large call best.
        q, k, v = (self._split_heads(layout.to_rows(x)) for x in (q, k, v))
        context = self._fused_context(q, k, v, layout.mask) if self.fused else self._eager_context(q, k, v, layout.mask)
        return self.out_proj(layout.from_rows(self._merge_heads(context)))

    def _eager_context(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:  # (B, N, S, D), (B, N, S, D), (B, N, S, D), (B, 1, 1, S) -> (B, N, S, D)
        scores = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5  # (B, N, S, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # exp of it is 0: pads get no attention
        probs = self.softmax(scores)
        return torch.matmul(self.dropout(probs), v)

    def _fused_context(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:  # (B, N, S, D), (B, N, S, D), (B, N, S, D), (B, 1, 1, S) -> (B, N, S, D)
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.head_dim**-0.5)

    def _context_by_sequence(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]
    ) -> Tensor:  # (T, H), (T, H), (T, H) -> (T, H)
        """Fused attention, one sequence after the other: there is no padding to compute or to hide."""
        contexts: list[Tensor] = []
        for sequence in zip(*(x[None].split(lengths, dim=1) for x in (q, k, v)), strict=True):  # three of (1, S, H)
            own_q, own_k, own_v = (self._split_heads(x) for x in sequence)
            contexts.append(self._merge_heads(self._fused_context(own_q, own_k, own_v, None)))
        return torch.cat(contexts, dim=1)[0]

    def _varlen_context(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int
    ) -> Tensor:  # (T, H), (T, H), (T, H), (B + 1) -> (T, H)
        """The same in one call, by the kernel for sequences of various lengths."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))  # (T, N, D)
        context: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest)
        return context.flatten(1)

    def _takes_varlen(self, q: Tensor) -> bool:  # (T, H)
        """Whether that kernel, FlashAttention, is here and takes these queries. It has no dropout."""
        return (
            q.is_cuda
            and q.dtype in (torch.float16, torch.bfloat16)
            and self.head_dim % 8 == 0
            and self.head_dim <= 256
            and not (self.training and self.dropout.p)
            and torch.backends.cuda.is_flash_attention_available()
            and torch.cuda.get_device_capability(q.device) >= (8, 0)  # Ampere, of 2020, and later
            and importlib.util.find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 and later
        )

    def _split_heads(self, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_heads(self, x: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
        return x.transpose(1, 2).flatten(2)


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
            self.mid = nn.Identity()  # a boundary: no norm stands here at which the residual stream could be changed

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:  # (*, H) -> (*, H)
        if self.norm_first:
            attended = self.attention(self.attention_norm(hidden), layout)
            mid = self.mid(hidden + self.attention_dropout(attended))
            transformed = self.feed_forward(self.feed_forward_norm(mid))
            return mid + self.feed_forward_dropout(transformed)
        attended = self.attention(hidden, layout)
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
        return self.activation(self.dense(hidden[first_places(lengths)]))


@dataclass(frozen=True)
class ModelOutput:
    """What the encoder gives back."""

    last_hidden_state: Tensor  # (*, H); rows of padding hold junk
    pooler_output: Tensor | None = None  # (B, H); None where the model has no pooler


class XLMRobertaModel(PretrainedModel):
    """The encoder: token ids in, one vector a token out."""

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
        layout = _layout_of(input_ids != pad if attention_mask is None else attention_mask, lengths)
        if position_ids is None:
            position_ids = layout.from_rows(position_ids_from(layout.to_rows(input_ids), pad))
        check_values(self.config, input_ids, token_type_ids, position_ids, packed=lengths is not None)

        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, layout)
        hidden = self.final_norm(hidden)
        return ModelOutput(hidden, self.pooler(hidden, lengths) if self.pooler is not None else None)


def position_ids_from(input_ids: Tensor, pad_token_id: int) -> Tensor:  # (B, S) -> (B, S)
    """Positions counted from pad + 1 over the tokens that are not pad; a pad's is pad (fairseq, make_positions)."""
    real = (input_ids != pad_token_id).long()
    return real.cumsum(dim=-1) * real + pad_token_id


def first_places(lengths: Tensor | None) -> Any:  # (B)
    """Where <s> stands: `hidden[first_places(lengths)]` is (B, H). lengths: those of a packed batch, else None."""
    return (slice(None), 0) if lengths is None else lengths.cumsum(0) - lengths


def _layout_of(attention_mask: Tensor, lengths: Tensor | None) -> Layout:  # (*), (B)
    if lengths is None:
        return Layout(_broadcast_mask(attention_mask))
    counts: list[int] = lengths.tolist()
    places = torch.arange(max(counts), device=lengths.device)
    offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
    return Layout(_broadcast_mask(places < lengths[:, None]), counts, offsets)


def _broadcast_mask(attention_mask: Tensor) -> Tensor | None:  # (B, S) -> (B, 1, 1, S)
    real = attention_mask.bool()
    if not torch.compiler.is_compiling() and not real.is_meta and real.all():
        return None  # nothing to hide: fused kernels are fastest without a mask
    real = real | ~real.any(dim=1, keepdim=True)  # softmax over nothing is NaN: an empty row attends to all of itself
    return real[:, None, None, :]


def _layer_norm(config: XLMRobertaConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
