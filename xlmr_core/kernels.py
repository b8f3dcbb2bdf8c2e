"""What makes attention fast, and what packed batches need. A reader of the model may skip this file.

model.py has the equation, which is the attention kernel "eager". The kernel "sdpa" computes the same by
`torch.nn.functional.scaled_dot_product_attention`, and on a GPU that has it a packed batch by `varlen_attn`
(FlashAttention, Dao 2023). Letters as in model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

AttentionKind = Literal["eager", "sdpa"]
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 and later


# ---- how the sequences of a batch lie in memory: only positions and attention need to know ---------------------------


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of one width, filled up with padding."""

    mask: Tensor | None  # (B, 1, 1, S): True where a key may be attended to; None: everywhere

    def to_rows(self, tokens: Tensor) -> Tensor:  # (B, S, ...) -> (B, S, ...)
        return tokens

    def from_rows(self, rows: Tensor) -> Tensor:  # (B, S, ...) -> (B, S, ...)
        return rows


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after the other, without padding."""

    mask: Tensor | None  # (B, 1, 1, S): for `to_rows`
    lengths: list[int]  # the number of tokens of each sequence
    offsets: Tensor  # (B + 1): where each sequence begins, and where the last one ends

    def to_rows(self, tokens: Tensor) -> Tensor:  # (T, ...) -> (B, S, ...)
        """A row for each sequence, filled up with zeros."""
        return pad_sequence(list(tokens.split(self.lengths)), batch_first=True)

    def from_rows(self, rows: Tensor) -> Tensor:  # (B, S, ...) -> (T, ...)
        """The inverse: what was filled up goes."""
        return torch.cat([row[:length] for row, length in zip(rows, self.lengths, strict=True)])


AnyBatch = PaddedBatch | PackedBatch


def batch_of(attention_mask: Tensor, lengths: Tensor | None) -> AnyBatch:  # (*), (B)
    """The batch that the arguments of `XLMRobertaModel.forward` describe."""
    if lengths is None:
        return PaddedBatch(_broadcast_mask(attention_mask))
    counts: list[int] = lengths.tolist()
    places = torch.arange(max(counts), device=lengths.device)
    offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
    return PackedBatch(_broadcast_mask(places < lengths[:, None]), counts, offsets)


def _broadcast_mask(attention_mask: Tensor) -> Tensor | None:  # (B, S) -> (B, 1, 1, S)
    real = attention_mask.bool()
    if not torch.compiler.is_compiling() and not real.is_meta and real.all():
        return None  # nothing to hide: fused kernels are fastest without a mask
    real = real | ~real.any(dim=1, keepdim=True)  # softmax over nothing is NaN: an empty row attends to all of itself
    return real[:, None, None, :]


def first_token(lengths: Tensor | None) -> tuple[slice, int] | Tensor:  # (B)
    """The index of <s>: `hidden[first_token(lengths)]` is (B, H). lengths: those of a packed batch, else None."""
    return (slice(None), 0) if lengths is None else lengths.cumsum(0) - lengths


def packed_position_ids(lengths: Tensor, num_tokens: int, pad_token_id: int) -> Tensor:  # (B) -> (T)
    """Positions that count from pad + 1 in each sequence."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=num_tokens)
    return torch.arange(num_tokens, device=lengths.device) - starts + pad_token_id + 1


# ---- the kernels -----------------------------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """What `SelfAttention` computes between its projections, by fused kernels: scores and probs are never seen."""

    num_heads: int
    head_dim: int
    dropout: nn.Dropout

    def fused_attention(self, q: Tensor, k: Tensor, v: Tensor, batch: AnyBatch) -> Tensor:  # (*, H) x 3 -> (*, H)
        if isinstance(batch, PackedBatch):
            if self._takes_varlen(q):
                return self._varlen_context(q, k, v, batch.offsets, max(batch.lengths))
            if q.device.type == "cpu":
                return self._context_by_sequence(q, k, v, batch.lengths)
        # A GPU likes one large call best: packed sequences become rows.
        q, k, v = (self._split_heads(batch.to_rows(x)) for x in (q, k, v))
        return batch.from_rows(self._merge_heads(self._fused_context(q, k, v, batch.mask)))

    def _fused_context(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:  # (B, N, S, D), (B, N, S, D), (B, N, S, D), (B, 1, 1, S) -> (B, N, S, D)
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.head_dim**-0.5)

    def _context_by_sequence(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]
    ) -> Tensor:  # (T, H), (T, H), (T, H) -> (T, H)
        """One sequence after the other: there is no padding to compute or to hide."""
        contexts: list[Tensor] = []
        for sequence in zip(*(x[None].split(lengths, dim=1) for x in (q, k, v)), strict=True):  # three of (1, S, H)
            own_q, own_k, own_v = (self._split_heads(x) for x in sequence)
            contexts.append(self._merge_heads(self._fused_context(own_q, own_k, own_v, None)))
        return torch.cat(contexts, dim=1)[0]

    def _varlen_context(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int
    ) -> Tensor:  # (T, H), (T, H), (T, H), (B + 1) -> (T, H)
        """The same in one call, by the kernel for sequences of various lengths."""
        from torch.nn.attention.varlen import varlen_attn  # here: importing it takes a second

        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))  # (T, N, D)
        context: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest)
        return context.flatten(1)

    def _takes_varlen(self, q: Tensor) -> bool:  # (T, H)
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

    def _split_heads(self, x: Tensor) -> Tensor:  # (B, S, H) -> (B, N, S, D)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_heads(self, x: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
        return x.transpose(1, 2).flatten(2)
