"""Attention that reads keys and values of other texts of the batch, as a kernel for packed batches may.

A dump shows the keys of each text only: its probs are then too small, for their sum has more keys than are shown, and
the context has values of other texts in it. A port that keeps keys and values in a buffer may show what is behind the
end of a text, where another one has padding.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from xlmr_core.parity.grammar.terms import Term, Terms
from xlmr_core.parity.grammar.tokens import in_rows


def _lengths(real: Tensor) -> Tensor:
    return real.sum(1, keepdim=True)


def _starts(real: Tensor) -> Tensor:
    """(B, 1): the number of the first token of each text in the packed batch."""
    return _lengths(real).cumsum(0) - _lengths(real)


def _places(real: Tensor) -> Tensor:
    """(B, S): the number of each token in its text; padding counts on from the end of the text."""
    return torch.where(real, real.long().cumsum(1), _lengths(real) + (~real).long().cumsum(1)) - 1


def _own(real: Tensor) -> Tensor:
    """(B, S): the numbers of the keys of each text in the packed batch; -1 for padding."""
    return (_starts(real) + _places(real)).masked_fill(~real, -1)


def _read_on(real: Tensor) -> Tensor:
    """Each text is read from its start for the length of the longest."""
    keys = _starts(real) + _places(real)
    inside = (_places(real) < _lengths(real).max()) & (keys < real.sum())
    return keys.masked_fill(~inside, -1)


def _left_behind(real: Tensor) -> Tensor:
    """Each text is written to the start of a buffer, which is read as far as it was ever filled."""
    buffer = torch.full_like(real[0], -1, dtype=torch.long)
    read: list[Tensor] = []
    for start, length, places in zip(_starts(real), _lengths(real), _places(real), strict=True):
        buffer[:length] = start + torch.arange(int(length), device=real.device)
        read.append(buffer[places])
    return torch.stack(read)


def _whole_texts(chosen: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The keys of a text, and of the others that are chosen by their numbers and its own."""

    def keys(real: Tensor) -> Tensor:
        text = torch.arange(len(real), device=real.device)[:, None]
        other = text[:, 0].repeat_interleave(_lengths(real)[:, 0])
        numbers = torch.arange(len(other), device=real.device)
        others = torch.where(chosen(other, text) & (other != text), numbers, -1)
        return torch.cat([_own(real), others], dim=1)

    return keys


def _beside(by: int) -> Callable[[Tensor], Tensor]:
    """The keys of a text, and the token before its first (-1) or behind its last (1)."""

    def keys(real: Tensor) -> Tensor:
        other = _starts(real) - 1 if by < 0 else _starts(real) + _lengths(real)
        inside = (other >= 0) & (other < real.sum())
        return torch.cat([_own(real), other.masked_fill(~inside, -1)], dim=1)

    return keys


def _whole_blocks(size: int) -> Callable[[Tensor], Tensor]:
    """The keys of a text, and those behind its end that fill its last block."""

    def keys(real: Tensor) -> Tensor:
        more = torch.arange(size, device=real.device)
        behind = _starts(real) + _lengths(real) + more
        inside = (more < -_lengths(real) % size) & (behind < real.sum())
        return torch.cat([_own(real), behind.masked_fill(~inside, -1)], dim=1)

    return keys


# From which tokens are real, (B, S): the keys that each text reads, (B, E), by their numbers in the packed batch; -1 is
# none.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {  # E is S: other texts stand where this one has padding
    "the texts that follow it in the packed batch, up to the length of the longest": _read_on,
    "what longer texts before it left in the buffers of keys and values": _left_behind,
}
KEYS: dict[str, Callable[[Tensor], Tensor]] = {
    **IN_PLACE,
    "all other texts of the packed batch": _whole_texts(lambda other, text: other != text),
    "all texts before it in the packed batch": _whole_texts(lambda other, text: other < text),
    "all texts after it in the packed batch": _whole_texts(lambda other, text: other > text),
    "the text before it in the packed batch": _whole_texts(lambda other, text: other == text - 1),
    "the text after it in the packed batch": _whole_texts(lambda other, text: other == text + 1),
    "the last token of the text before it in the packed batch": _beside(-1),
    "the first token of the text after it in the packed batch": _beside(1),
    **{
        f"the tokens that follow it in the packed batch, up to whole blocks of {size} keys": _whole_blocks(size)
        for size in (4, 8, 16, 32, 64, 128)
    },
}


def with_others(kind: str, x: Tensor, real: Tensor, rows: int) -> Tensor:
    """The keys or values that each text reads.

    Args:
        kind: One of `KEYS`.
        x: The keys or values of each text, (B, N, S, D).
        real: Which tokens are real, (B, S).
        rows: How many rows of the batch belong together.

    Returns:
        (B, N, E, D).
    """
    parts: list[Tensor] = []
    for own, its in zip(x.split(rows), real.split(rows), strict=True):
        packed = own.transpose(1, 2)[its]
        parts.append(packed[KEYS[kind](its).clamp(min=0)].transpose(1, 2))
    return torch.cat(parts)


def hide_unread(kind: str, scores: Tensor, real: Tensor, rows: int) -> Tensor:
    """The scores (B, N, S, E) of the keys that `with_others` gives, without those that a text does not read."""
    keys = in_rows(real, rows, KEYS[kind])
    return scores.masked_fill((keys < 0)[:, None, None, :], torch.finfo(scores.dtype).min)


def own_keys(probs: Tensor, real: Tensor) -> Tensor:
    """What a dump shows of probs (B, N, S, E): those of the text's own keys, (B, N, S, S)."""
    return probs[..., : real.shape[1]] * real[:, None, None, :]


def attends_to_others(terms: Terms, name: str) -> Iterator[tuple[str, Terms]]:
    """In words, and the new terms of a layer.

    Args:
        terms: Of the right model.
        name: The first wrong tap of the layer: its scores, its probs, or its context or a tap behind it, whose scores
            and probs are right or unknown.
    """
    layer = ".".join(name.split(".")[:2])
    of_scores, of_probs, of_context = (f"{layer}.attention.{tap}" for tap in ("scores", "probs", "context"))
    scaled, mixed = terms[of_scores].args[0], terms[of_context].args[0]
    (q, k), (shown, v) = scaled.args[0].args, mixed.args
    for kind in KEYS:
        dot = Term("dot", (q, Term("with others", (k,), kind)))
        scores = Term("hide unread", (replace(scaled, args=(dot, scaled.args[1])),), kind)
        probs = replace(terms[of_probs], args=(scores,))
        values = Term("with others", (v,), kind)
        new = {of_context: _context(probs, values)}
        if name == of_probs:
            new = {of_probs: Term("own keys", (probs,)), **new}
        elif name == of_scores:
            new = {of_scores: scores, of_context: _context(shown, values)}
        if name != of_scores or kind in IN_PLACE:
            yield f"each text also attends to {kind}", new


def _context(probs: Term, values: Term) -> Term:
    return Term("merge", (Term("mix", (probs, values)),))
