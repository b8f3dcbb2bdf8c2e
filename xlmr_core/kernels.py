"""Faster attention, and packed batches. A reader of the model may skip this file.

model.py has the equation, which is the attention kernel "eager". The kernel "sdpa" computes the same with
`torch.nn.functional.scaled_dot_product_attention`, and a packed batch with `varlen_attn` (FlashAttention, Dao 2023)
on a GPU that has it. Axes as in model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

AttentionKind = Literal["eager", "sdpa"]
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 and later


# ---- how the sequences of a batch lie in memory: only positions and attention need to know ---------------------------


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of one width, filled up with padding.

    Args:
        mask: True where a key may be attended to; None means everywhere.
    """

    mask: Bool[Tensor, "batch 1 1 seq"] | None

    def to_rows(self, tokens: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """The same tensor: it has rows already."""
        return tokens

    def from_rows(self, rows: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """The same tensor."""
        return rows


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after the other, without padding.

    Args:
        mask: as in `PaddedBatch`, for the result of `to_rows`.
        lengths: the number of tokens of each sequence.
        offsets: the first token of each sequence, and the end of the last: one number more than sequences.
    """

    mask: Bool[Tensor, "batch 1 1 seq"] | None
    lengths: list[int]
    offsets: Int[Tensor, "offsets"]

    def to_rows(self, tokens: Float[Tensor, "packed hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """A row for each sequence, filled up with zeros."""
        return pad_sequence(list(tokens.split(self.lengths)), batch_first=True)

    def from_rows(self, rows: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "packed hidden"]:
        """The inverse, without what was filled up."""
        return torch.cat([row[:length] for row, length in zip(rows, self.lengths, strict=True)])


AnyBatch = PaddedBatch | PackedBatch


def batch_of(attention_mask: Shaped[Tensor, "*tokens"], lengths: Int[Tensor, "batch"] | None) -> AnyBatch:
    """The batch that the arguments of `XLMRobertaModel.forward` describe."""
    if lengths is None:
        return PaddedBatch(_broadcast_mask(attention_mask))
    counts: list[int] = lengths.tolist()
    places = torch.arange(max(counts), device=lengths.device)
    offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
    return PackedBatch(_broadcast_mask(places < lengths[:, None]), counts, offsets)


def _broadcast_mask(attention_mask: Shaped[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 1 seq"] | None:
    real = attention_mask.bool()
    if not torch.compiler.is_compiling() and not real.is_meta and real.all():
        return None  # nothing to hide: fused kernels are fastest without a mask
    real = real | ~real.any(dim=1, keepdim=True)  # softmax over nothing is NaN: an empty row attends to all of itself
    return real[:, None, None, :]


def first_token(lengths: Int[Tensor, "batch"] | None) -> tuple[slice, int] | Int[Tensor, "batch"]:
    """The index of `<s>` in each sequence: `hidden[first_token(lengths)]` has the shape (B, H).

    Args:
        lengths: the number of tokens of each sequence of a packed batch; None for a padded batch.
    """
    return (slice(None), 0) if lengths is None else lengths.cumsum(0) - lengths


def packed_position_ids(lengths: Int[Tensor, "batch"], num_tokens: int, pad_token_id: int) -> Int[Tensor, "packed"]:
    """Positions of a packed batch: in each sequence they count from pad + 1."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=num_tokens)
    return torch.arange(num_tokens, device=lengths.device) - starts + pad_token_id + 1


# ---- the kernels -----------------------------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """What `SelfAttention` computes between its projections, by fused kernels: no scores or probs to hook."""

    num_heads: int
    head_dim: int
    dropout: nn.Dropout

    def fused_attention(
        self,
        q: Float[Tensor, "*tokens hidden"],
        k: Float[Tensor, "*tokens hidden"],
        v: Float[Tensor, "*tokens hidden"],
        batch: AnyBatch,
    ) -> Float[Tensor, "*tokens hidden"]:
        """The context of every token, from queries, keys and values of all heads side by side."""
        if isinstance(batch, PackedBatch):
            if self._takes_varlen(q):
                return self._varlen_context(q, k, v, batch.offsets, max(batch.lengths))
            if q.device.type == "cpu":
                return self._context_by_sequence(q, k, v, batch.lengths)
        # A GPU is fastest with one large call: packed sequences become rows.
        q, k, v = (self._split_heads(batch.to_rows(x)) for x in (q, k, v))
        return batch.from_rows(self._merge_heads(self._fused_context(q, k, v, batch.mask)))

    def _fused_context(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch heads seq head_dim"],
        v: Float[Tensor, "batch heads seq head_dim"],
        mask: Bool[Tensor, "batch 1 1 seq"] | None,
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.head_dim**-0.5)

    def _context_by_sequence(
        self,
        q: Float[Tensor, "packed hidden"],
        k: Float[Tensor, "packed hidden"],
        v: Float[Tensor, "packed hidden"],
        lengths: list[int],
    ) -> Float[Tensor, "packed hidden"]:
        """One sequence after the other: there is no padding to compute or to hide."""
        contexts: list[Tensor] = []
        for sequence in zip(*(x[None].split(lengths, dim=1) for x in (q, k, v)), strict=True):  # three of (1, S, H)
            own_q, own_k, own_v = (self._split_heads(x) for x in sequence)
            contexts.append(self._merge_heads(self._fused_context(own_q, own_k, own_v, None)))
        return torch.cat(contexts, dim=1)[0]

    def _varlen_context(
        self,
        q: Float[Tensor, "packed hidden"],
        k: Float[Tensor, "packed hidden"],
        v: Float[Tensor, "packed hidden"],
        offsets: Int[Tensor, "offsets"],
        longest: int,
    ) -> Float[Tensor, "packed hidden"]:
        """The same in one call, by the kernel for sequences of various lengths."""
        from torch.nn.attention.varlen import varlen_attn  # here: importing it takes a second

        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))  # (T, N, D)
        context: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest)
        return context.flatten(1)

    def _takes_varlen(self, q: Float[Tensor, "packed hidden"]) -> bool:
        """Whether that kernel, FlashAttention, is here and takes these queries. It has no dropout."""
        return (
            HAS_VARLEN
            and q.is_cuda
            and q.dtype in (torch.float16, torch.bfloat16)
            and self.head_dim % 8 == 0
            and self.head_dim <= 256
            and not (self.training and self.dropout.p)
            and torch.backends.cuda.is_flash_attention_available()
            and torch.cuda.get_device_capability(q.device) >= (8, 0)  # Ampere, of 2020, and later
        )

    def _split_heads(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch heads seq head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_heads(self, x: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq hidden"]:
        return x.transpose(1, 2).flatten(2)
