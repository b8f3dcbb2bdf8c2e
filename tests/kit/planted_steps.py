"""Bugs that no list has, as other functions for one step of `step_port`, one or more for each rule of the grammar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from kit import step_port as port
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Bug:
    """The first tap that it changes, words of the name that it must be given, and other functions for some steps."""

    tap: str
    words: tuple[str, ...]
    steps: dict[str, Callable[..., Any]]


def _bug(tap: str, words: str, **steps: Callable[..., Any]) -> Bug:
    return Bug(tap if "." in tap else f"layers.0.attention.{tap}", tuple(words.split(" & ")), steps)


def _at(module: str, rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another linear map in the modules whose name has this."""
    return lambda x, w, b, name: rule(x, w, b) if module in name else port.linear(x, w, b, name)


def _hiding(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another mask: which keys are seen, of the real tokens and the ids, in a shape for scores."""
    return lambda scores, real, ids: scores.masked_fill(~rule(real, ids), -1e9)


def _apart(size: int) -> Tensor:
    return torch.arange(size)[:, None] - torch.arange(size)


def _keys(x: Tensor) -> Tensor:
    return x[:, None, None, :]


def _placed(rule: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Other positions of real tokens, of their number from 0 and of pad."""
    return lambda ids, pad: torch.where(ids != pad, rule(port.positions(ids, pad) - pad - 1, pad), pad)


def _short(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _pruned(w: Tensor) -> Tensor:
    limit = w.abs().flatten().kthvalue(w.numel() // 4).values
    return w.masked_fill(w.abs() <= limit, 0)


def _turned(x: Tensor, *, halves: bool) -> Tensor:
    """Rotary positions for (B, S, N, D)."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    a, b = x.chunk(2, -1) if halves else (x[..., ::2], x[..., 1::2])
    new = (a * cos - b * sin, b * cos + a * sin)
    return torch.cat(new, -1) if halves else torch.stack(new, -1).flatten(-2)


def _of_rank(w: Tensor, rank: int) -> Tensor:
    left, sizes, right = torch.linalg.svd(w, full_matrices=False)
    return left[:, :rank] @ sizes[:rank].diag() @ right[:rank]


def _rotated(q: Tensor, k: Tensor) -> Tensor:
    """Of (B, N, S, D)."""
    turned = (_turned(x.transpose(1, 2), halves=False).transpose(1, 2) for x in (q, k))
    return port.scaled(*turned)


def _half_rotated(q: Tensor, k: Tensor) -> Tensor:
    """Of the first half of each head, (B, N, S, D)."""
    half = q.shape[-1] // 4 * 2
    turned = (
        torch.cat([_turned(x[..., :half].transpose(1, 2), halves=False).transpose(1, 2), x[..., half:]], -1)
        for x in (q, k)
    )
    return port.scaled(*turned)


def _over_queries(scores: Tensor, real: Tensor) -> Tensor:
    of_text = scores.masked_fill(~real[:, None, :, None], -math.inf).softmax(-2)
    return of_text.nan_to_num(0.0) * _keys(real)


def _merged_by_largest(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
    tiles, parts = scores.split(4, -1), v.split(4, -2)
    weights = torch.cat([tile.amax(-1, keepdim=True) for tile in tiles], -1).softmax(-1).split(1, -1)
    return sum(weight * (tile.softmax(-1) @ part) for weight, tile, part in zip(weights, tiles, parts, strict=True))


def _by_first_half(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    half = x.chunk(2, -1)[0]
    return (x - half.mean(-1, keepdim=True)) / (half.var(-1, correction=0, keepdim=True) + eps).sqrt() * w + b


def _in_float16(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    short = x.half()
    centred = short - short.float().mean(-1, keepdim=True).half()
    variance = centred.square().float().mean(-1, keepdim=True).half()
    return (centred / (variance + eps).sqrt()).float() * w + b


def _ends(real: Tensor, first: int, last: int) -> Tensor:
    """The real tokens that are among the first or the last of their text."""
    place = real.long().cumsum(1)
    return real & ((place <= first) | (place > real.sum(1, keepdim=True) - last))


def _shards(w: Tensor, *order: int) -> Tensor:
    parts = w.chunk(len(order), 1)
    return torch.cat([parts[part] for part in order], 1)


def _nf4_as_even_steps(w: Tensor, size: int) -> Tensor:
    table = torch.tensor([-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
                          0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0])  # fmt: skip
    groups = w.unflatten(1, (-1, size))
    largest = groups.abs().amax(-1, keepdim=True)
    codes = ((groups / largest)[..., None] - table).abs().argmin(-1)
    return ((codes / 7.5 - 1) * largest).flatten(1)


def _nibbles_exchanged(w: Tensor, size: int) -> Tensor:
    groups = w.unflatten(1, (-1, 2)).flip(-1).flatten(1).unflatten(1, (-1, size))
    step = groups.abs().amax(-1, keepdim=True) / 7
    return ((groups / step).round() * step).flatten(1)


def _from_zero(x: Tensor) -> Tensor:
    step = x.max() / 255
    return (x / step).round().clamp(min=0) * step


def _tiled(
    size: int, *, values: bool, sums: bool, power: Callable[[Tensor], Tensor] = torch.exp
) -> Callable[..., Tensor]:
    """Attention by tiles of keys; whether what earlier tiles gave is rescaled, and by which power."""

    def mixed(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
        top = torch.full((*scores.shape[:-1], 1), -1e30)
        total, out = torch.zeros_like(top), torch.zeros(())
        for own, theirs in zip(scores.split(size, -1), v.split(size, -2), strict=True):
            new = torch.maximum(top, own.amax(-1, keepdim=True))
            exponentials, scale = (own - new).exp(), power(top - new)
            out = out * (scale if values else 1) + exponentials @ theirs
            total, top = total * (scale if sums else 1) + exponentials.sum(-1, keepdim=True), new
        return out / total

    return mixed


def _tail_dropped(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
    whole = scores.shape[-1] // 4 * 4
    return scores[..., :whole].softmax(-1) @ v[..., :whole, :]


def _real(scores: Tensor) -> Tensor:
    """Which tokens are real, (B, 1, S, 1), by the scores of the first query."""
    return (scores[:, :1, :1] > -1e8).transpose(-1, -2)


def _exchanged(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
    """A text has no padding: each token gets the values of those that attend to it."""
    return (probs * _real(scores)).transpose(-1, -2) @ v


def _averaged(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
    """Each tile of 4 keys by itself, then the mean over the tiles that have real keys."""
    mixed, used = torch.zeros(()), torch.zeros(())
    for own, real, theirs in zip(
        scores.split(4, -1), _real(scores).split(4, -2), v.split(4, -2), strict=True
    ):  # fmt: skip
        some = real.any(-2, keepdim=True)
        mixed, used = mixed + own.softmax(-1) @ theirs * some, used + some.float()
    return mixed / used


def _by_reciprocal(scores: Tensor, probs: Tensor, v: Tensor) -> Tensor:
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials @ v * _short(1 / exponentials.sum(-1, keepdim=True))


def _by_power(scores: Tensor, real: Tensor) -> Tensor:
    powers = (1 + (scores - scores.amax(-1, keepdim=True)) / 128).clamp(min=0) ** 128
    return powers / powers.sum(-1, keepdim=True)


def _cut(x: Tensor) -> Tensor:
    """The first 10 bits of the fraction."""
    return (x.view(torch.int32) & -8192).view(torch.float32)


def _in_blocks(w: Tensor) -> Tensor:
    rows = [torch.cat([block.T for block in row.split(8, 1)], 1) for row in w.split(8)]
    return torch.cat(rows)


def _scales_of_the_group_before(w: Tensor) -> Tensor:
    groups = w.split(8, 1)
    steps = [group.abs().amax(1, keepdim=True) / 127 for group in groups]
    read = [(group / steps[i]).round() * steps[i - 1] for i, group in enumerate(groups)]
    return torch.cat(read, 1)


def _zero_one_too_high(w: Tensor) -> Tensor:
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / 255
    return (((w - low) / step).round() - 1) * step + low


def _cut_off_to_int8(w: Tensor) -> Tensor:
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).trunc() * step


def _scales_of_the_other_axis(w: Tensor) -> Tensor:
    """One scale for each row, multiplied with the columns: a square matrix lets it pass."""
    step = w.abs().amax(1) / 127
    return (w / step[:, None]).round() * step


def _read_as_another_shape(w: Tensor) -> Tensor:
    """The matrix that a linear map of (in, out) stores, from numbers that were reshaped and not transposed."""
    return w.reshape(w.shape[1], w.shape[0]).T


def _of_another_padding(ids: Tensor, pad: int) -> Tensor:
    real = (ids != 0).long()
    return real.cumsum(1) * real + pad


def _overflowing(w: Tensor) -> Tensor:
    step = w.abs().amax(1, keepdim=True) / 128
    return (w / step).round().to(torch.int16).to(torch.int8) * step


def _head_by_head(real: Tensor, heads: int) -> Tensor:
    """(B, N, 1, S): for the flat axis of texts and heads the masks are put one batch after the other."""
    return torch.cat([real] * heads).unflatten(0, (len(real), heads))[:, :, None]


def _of_two_parts(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    variances = torch.stack([part.var(-1, correction=0) for part in x.chunk(2, -1)])
    return (x - x.mean(-1, keepdim=True)) / (variances.mean(0) + eps).sqrt()[..., None] * w + b


def _after_padding(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    begin = real.sum(1).max() - real.sum(1, keepdim=True)
    return torch.where(ids != pad, begin + real.cumsum(1) + pad, pad)


def _logarithm(real: Tensor) -> Tensor:
    return (real.sum(1).float().log() / math.log(512))[:, None, None, None]


def _packed_tail(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The last tokens of the batch, which fill no whole tile, are left out of the product."""
    tokens = torch.arange(x[..., 0].numel()).view(x.shape[:2])
    return x * (tokens < x[..., 0].numel() - 4)[..., None] @ w.T + b


def _heads_exchanged(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x @ w.T + b).unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2)


def _polynomial(x: Tensor) -> Tensor:
    z = (x.abs() / math.sqrt(2)).clamp(max=1.769)
    return 0.5 * x * (1 + x.sign() * (-0.2888 * (z - 1.769).square() + 1))


def _by_table(x: Tensor) -> Tensor:
    return F.gelu((x * 32).round() / 32)


BUGS: dict[str, Bug] = {
    # ---- positions and ids
    "positions clamped": _bug(
        "embeddings.position", "clamped at 6", positions=_placed(lambda n, pad: n.clamp(max=4) + 2)
    ),
    "positions modulo": _bug("embeddings.position", "modulo 7", positions=_placed(lambda n, pad: (n + 2) % 7)),
    "positions anew after 4": _bug("embeddings.position", "anew & 4", positions=_placed(lambda n, pad: n % 4 + 2)),
    "positions in steps of two": _bug(
        "embeddings.position", "steps of 2 from 1", positions=_placed(lambda n, pad: 2 * n + 1)
    ),
    "positions for pairs": _bug(
        "embeddings.position", "same for 2 tokens", positions=_placed(lambda n, pad: n // 2 + 2)
    ),
    "positions counted down": _bug(
        "embeddings.position", "counted down from 20", positions=_placed(lambda n, pad: 20 - n)
    ),
    "positions along the batch": _bug(
        "embeddings.position",
        "batch",
        positions=lambda ids, pad: torch.arange(len(ids))[:, None].expand_as(ids) + pad + 1,
    ),
    "positions after padding": _bug("embeddings.position", "later by the padding", positions=_after_padding),
    "rows of the batch exchanged": _bug(
        "embeddings.word", "first two", word=lambda x, real: x[[1, 0, *range(2, len(x))]]
    ),
    "tokens moved by one": _bug("embeddings.word", "token before", word=lambda x, real: x.roll(1, 1)),
    "upper ids one too high": _bug(
        "embeddings.word", "moved by +1 from", ids=lambda ids, real: torch.where(ids >= 30, ids + 1, ids).clamp(max=52)
    ),
    "ids of a smaller vocabulary": _bug("embeddings.word", "clamped at 39", ids=lambda ids, real: ids.clamp(max=39)),
    "upper ids unknown": _bug("embeddings.word", "3 from", ids=lambda ids, real: torch.where(ids >= 30, 3, ids)),
    "token types at the first token only": _bug(
        "embeddings.token_type", "but the first", kind=lambda x, real: x * (torch.arange(x.shape[1]) == 0)[:, None]
    ),
    "positions added after the norm": _bug(
        "embeddings.sum",
        "embeddings.position is added after the norm",
        summed=lambda word, kind, place: word + kind,
        embedded=lambda normed, place: normed + place,
    ),
    "table split over two devices": _bug(
        "embeddings.word",
        "word_embeddings.weight is split over 2 devices",
        word_rows=lambda table, ids: table[ids.clamp(max=25).where(ids < 26, 0)] + table[ids.where(ids >= 26, 26)],
    ),
    "position table stretched": _bug(
        "embeddings.position",
        "interpolated to 2 times its length, centres",
        place_rows=lambda table, places: F.interpolate(table.T[None], scale_factor=2, mode="linear")[0].T[places],
    ),
    # ---- scores
    "rotary positions on scores": _bug("scores", "rotary & pairs", scaled=_rotated),
    "rotary positions on queries and keys": _bug(
        "q",
        "rotary & halves & queries and keys",
        turned=lambda q, k: (_turned(q, halves=True), _turned(k, halves=True)),
    ),
    "queries and keys of length 1": _bug(
        "scores", "length 1", scaled=lambda q, k: port.scaled(F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    ),
    "queries and keys in bfloat16": _bug(
        "scores", "queries and keys & bfloat16", scaled=lambda q, k: port.scaled(_short(q), _short(k))
    ),
    "scores capped": _bug("scores", "capped", scaled=lambda q, k: 2 * torch.tanh(port.scaled(q, k) / 2)),
    "linear bias by distance": _bug(
        "scores",
        "-0.07 & distance",
        hidden=lambda s, real, ids: port.hidden(s - 0.07 * _apart(s.shape[-1]).abs(), real, ids),
    ),
    "scores scaled by the length of the text": _bug(
        "scores",
        "log(n) / log(512) & every layer",
        hidden=lambda s, real, ids: port.hidden(s * _logarithm(real), real, ids),
    ),
    # ---- masks
    "window of five": _bug(
        "scores", "more than 5 places", hidden=_hiding(lambda real, ids: _keys(real) & (_apart(11).abs() <= 5))
    ),
    "window of earlier tokens": _bug(
        "scores", "more than 3 places before", hidden=_hiding(lambda real, ids: _keys(real) & (_apart(11) <= 3))
    ),
    "keys beyond the eighth": _bug(
        "scores", "all keys but the first 8", hidden=_hiding(lambda real, ids: _keys(real & (torch.arange(11) < 8)))
    ),
    "mask by another id": _bug("scores", "id 2", hidden=_hiding(lambda real, ids: _keys(ids != 2))),
    "mask after the softmax": _bug(
        "scores",
        "mask is applied after the softmax",
        hidden=lambda scores, real, ids: scores,
        probs=lambda scores, real: scores.softmax(-1) * _keys(real),
    ),
    "scores kept before the mask": _bug(
        "scores",
        "before the mask",
        hidden=lambda scores, real, ids: scores,
        probs=lambda scores, real: port.hidden(scores, real, real).softmax(-1),
    ),
    # ---- kernels
    "tiles without rescaling": _bug(
        "context", "tiles of 4 & what is summed", mixed=_tiled(4, values=False, sums=False)
    ),
    "tiles whose values are not rescaled": _bug(
        "context", "tiles of 4 & values of earlier", mixed=_tiled(4, values=False, sums=True)
    ),
    "tiles whose sum is not rescaled": _bug(
        "context", "tiles of 4 & sum of earlier", mixed=_tiled(4, values=True, sums=False)
    ),
    "tiles averaged": _bug("context", "each tile of 4 & averaged over the tiles with real keys", mixed=_averaged),
    "probs transposed without padding": _bug(
        "context", "probs is queries and keys exchanged, padding left out & every layer", mixed=_exchanged
    ),
    "reciprocal of the sum in bfloat16": _bug("context", "reciprocal & bfloat16", mixed=_by_reciprocal),
    "exponential by a power": _bug("probs", "(1 + x / 128)^128 & every layer", probs=_by_power),
    "last tile dropped": _bug("context", "whole tile", mixed=_tail_dropped),
    "probs divided by the share that dropout keeps": _bug(
        "probs", "1.42857", probs=lambda s, real: s.softmax(-1) / 0.7
    ),
    # ---- linear maps, norms, activations, residuals
    "heads exchanged": _bug(
        "layers.1.attention.v",
        "heads 1 and 2 exchanged & layer 1 only",
        linear=_at("layers.1.attention.v", _heads_exchanged),
    ),
    "last tokens left out": _bug(
        "layers.0.feed_forward.output",
        "down_proj.weight is all zeros, for tokens from token 34 of the packed batch on & every layer",
        linear=_at("feed_forward.down", _packed_tail),
    ),
    "small values cut": _bug(
        "layers.0.feed_forward.post",
        "smaller than 0.03 are 0 & every layer",
        bent=lambda x: F.hardshrink(F.gelu(x), 0.03),
    ),
    "gelu with a short cut": _bug(
        "layers.0.feed_forward.post",
        "relu beyond -2.5 and 2.5 & every layer",
        bent=lambda x: torch.where(x.abs() > 2.5, x.relu(), F.gelu(x)),
    ),
    "weights pruned": _bug(
        "layers.1.feed_forward.output",
        "25 % & layer 1",
        linear=_at("layers.1.feed_forward.down", lambda x, w, b: x @ _pruned(w).T + b),
    ),
    "blocks of a weight transposed": _bug(
        "layers.1.attention.k",
        "k_proj.weight is transposed in each block of 8 x 8 & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ _in_blocks(w).T + b),
    ),
    "scales of other groups": _bug(
        "layers.1.feed_forward.output",
        "groups of 8, with the scales of the groups before & layer 1 only",
        linear=_at("layers.1.feed_forward.down", lambda x, w, b: x @ _scales_of_the_group_before(w).T + b),
    ),
    "zero points one too high": _bug(
        "layers.1.feed_forward.output",
        "uint8 by row & one too high & layer 1 only",
        linear=_at("layers.1.feed_forward.down", lambda x, w, b: x @ _zero_one_too_high(w).T + b),
    ),
    "int8 cut off": _bug(
        "q",
        "q_proj.weight is cut off to int8 by row, not rounded & every linear map",
        linear=lambda x, w, b, name: x @ _cut_off_to_int8(w).T + b,
    ),
    "scales of the other axis": _bug(
        "layers.1.attention.k",
        "int8 by row, and its columns multiplied by the scales of the rows & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ _scales_of_the_other_axis(w).T + b),
    ),
    "reshaped, not transposed": _bug(
        "layers.1.feed_forward.output",
        "down_proj.weight is reshaped where it should be transposed & layer 1 only",
        linear=_at("layers.1.feed_forward.down", lambda x, w, b: x @ _read_as_another_shape(w).T + b),
    ),
    "columns of the output weight": _bug(
        "layers.1.attention.output",
        "heads in turn, or the columns of layers.1.attention.out_proj.weight in that order & layer 1 only",
        linear=_at("layers.1.attention.out", lambda x, w, b: x @ w.unflatten(1, (-1, 4)).mT.flatten(1).T + b),
    ),
    "softmax in bfloat16": _bug(
        "layers.0.attention.probs",
        "the softmax reads and gives numbers rounded to bfloat16 & every layer",
        probs=lambda scores, real: _short(_short(scores).softmax(-1)),
    ),
    "zeros in the last tile": _bug(
        "layers.0.attention.context",
        "scores of 0 that fill the last tile of 2, 3, 4 or 6 & every layer",
        mixed=lambda scores, probs, v: F.pad(scores, (0, -scores.shape[-1] % 4)).softmax(-1)[..., : v.shape[-2]] @ v,
    ),
    "int8 that overflows": _bug(
        "q",
        "of 128 steps, and +128 read as -128 & every linear map",
        linear=lambda x, w, b, name: x @ _overflowing(w).T + b,
    ),
    "masks repeated in the wrong order": _bug(
        "layers.0.attention.scores",
        "masks repeated for the heads stand head by head & every layer",
        hidden=lambda scores, real, ids: scores.masked_fill(~_head_by_head(real, scores.shape[1]), -1e9),
    ),
    "biases of both outputs twice": _bug(
        "layers.0.attention.output",
        "bias is added twice & of attention.out_proj and feed_forward.down_proj",
        linear=lambda x, w, b, name: x @ w.T + b * (2 if name.endswith(("out_proj", "down_proj")) else 1),
    ),
    "norms as they are made": _bug(
        "embeddings.output",
        "weight 1 and the bias 0 & everywhere",
        norm=lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], eps=eps),
    ),
    "feed-forward in bfloat16": _bug(
        "layers.0.feed_forward.pre",
        "rounded to bfloat16 & of every linear map of the feed-forward",
        linear=lambda x, w, b, name: _short(x) @ _short(w).T + b if ".feed_forward." in name else x @ w.T + b,
    ),
    "bfloat16 in what reads hidden states": _bug(
        "q",
        "input and weights & rounded to bfloat16 & of q_proj, k_proj, v_proj and up_proj",
        linear=lambda x, w, b, name: (
            x @ w.T + b if name.endswith(("out_proj", "down_proj")) else _short(x) @ _short(w).T + b
        ),
    ),
    "norm by what is not centred": _bug(
        "embeddings.output",
        "centred, divided by the mean square of what is not centred & everywhere",
        norm=lambda x, w, b, eps: (
            (x - x.mean(-1, keepdim=True)) / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w + b
        ),
    ),
    "weight of low rank": _bug(
        "layers.1.attention.k",
        "k_proj.weight is of rank 6 & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ _of_rank(w, 6).T + b),
    ),
    "weights of low rank": _bug(
        "layers.0.feed_forward.pre",
        "up_proj.weight is of rank 8 & every layer",
        linear=_at("up_proj", lambda x, w, b: x @ _of_rank(w, 8).T + b),
    ),
    "shards joined in another order": _bug(
        "layers.1.feed_forward.output",
        "joined from 4 parts of its columns in the order 0, 2, 1, 3 & layer 1 only",
        linear=_at("layers.1.feed_forward.down", lambda x, w, b: x @ _shards(w, 0, 2, 1, 3).T + b),
    ),
    "queries scaled once more for each text": _bug(
        "scores",
        "0.5 once more for each text & every layer",
        scaled=lambda q, k: port.scaled(q * 0.5 ** torch.arange(len(q))[:, None, None, None], k),
    ),
    "a factor for each head": _bug(
        "context",
        "multiplied by 1, 1.25, 1.5, 1.75 in the heads & every layer",
        mixed=lambda scores, probs, v: probs @ v * (1 + torch.arange(v.shape[1]) / 4)[:, None, None],
    ),
    "nearest rows of other devices added": _bug(
        "embeddings.word",
        "split over 2 devices & its nearest row",
        word_rows=lambda table, ids: table[ids.clamp(max=25)] + table[ids.clamp(min=26)],
    ),
    "linear maps under autocast": _bug(
        "q",
        "input, weights, bias and result are rounded to bfloat16, as under autocast & of every linear map",
        linear=lambda x, w, b, name: _short(_short(x) @ _short(w).T + _short(b)),
    ),
    "both maps read without transposing": _bug(
        "layers.0.feed_forward.pre",
        "up_proj.weight is reshaped where it should be transposed & both maps of every feed-forward",
        linear=lambda x, w, b, name: x @ (w.T.reshape(w.shape) if "feed_forward" in name else w).T + b,
    ),
    "norms in float16": _bug(
        "embeddings.output", "the norm is computed otherwise: in float16 & everywhere", norm=_in_float16
    ),
    "a bias with other numbers": _bug(
        "layers.1.attention.k",
        "k_proj.bias holds other numbers than the checkpoint & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ w.T + b.square() - 0.2),
    ),
    "activations quantised from 0": _bug(
        "layers.0.feed_forward.output",
        "feed_forward.post is quantised to uint8 by tensor, from 0 & every layer",
        linear=_at("down_proj", lambda x, w, b: _from_zero(x) @ w.T + b),
    ),
    "probs in steps of 1/255": _bug(
        "context", "probs, rounded to steps of 1/255 & every layer", mixed=lambda s, p, v: (p * 255).round() / 255 @ v
    ),
    "rotary positions on half of each head": _bug(
        "scores", "rotary & first half of each head & every layer", scaled=_half_rotated
    ),
    "keys reshaped": _bug(
        "scores",
        "reshaped where they should be transposed & every layer",
        scaled=lambda q, k: q @ k.reshape(*k.shape[:2], k.shape[3], k.shape[2]) / q.shape[-1] ** 0.5,
    ),
    "scores that are not cleared between heads": _bug(
        "scores", "summed over the heads before & every layer", scaled=lambda q, k: port.scaled(q, k).cumsum(1)
    ),
    "softmax over the queries of a text": _bug("probs", "queries of the text & every layer", probs=_over_queries),
    "tiles rescaled by a power of 2": _bug(
        "context", "tiles of 4 & power of 2", mixed=_tiled(4, values=True, sums=True, power=torch.exp2)
    ),
    "tiles merged by their largest scores": _bug("context", "tile of 4 & largest scores", mixed=_merged_by_largest),
    "statistics of half of the features": _bug(
        "embeddings.output", "the first half of the features & everywhere", norm=_by_first_half
    ),
    "weight and bias of the norms exchanged": _bug(
        "embeddings.output",
        "the weight and the bias of the norm are exchanged & everywhere",
        norm=lambda x, w, b, eps: port.norm(x, b, w, eps),
    ),
    "gelu without the sign of erf": _bug(
        "layers.0.feed_forward.post",
        "erf of |x|, without its sign & every layer",
        bent=lambda x: x * (1 + torch.erf(x.abs() / 2**0.5)) / 2,
    ),
    "positions without special tokens": _bug(
        "embeddings.position",
        "counted without <s> and </s>",
        positions=lambda ids, pad: (ids > 2).long().cumsum(1) * (ids > 2).long() + pad,
    ),
    "sinks and a window": _bug(
        "scores",
        "but the first 2 and the last 3 & every layer",
        hidden=_hiding(lambda real, ids: _keys(_ends(real, 2, 3))),
    ),
    "another id for padding": _bug(
        "embeddings.position",
        "id 0 is taken for padding",
        positions=_of_another_padding,
        hidden=lambda scores, real, ids: scores.masked_fill((ids == 0)[:, None, None, :], -1e9),
    ),
    "linear maps in tf32 by cutting": _bug(
        "q",
        "input and weights & cut off to tf32 & every linear map",
        linear=lambda x, w, b, name: _cut(x) @ _cut(w).T + b,
    ),
    "variance of two parts": _bug("embeddings.output", "variances of 2 parts & everywhere", norm=_of_two_parts),
    "linear maps in bfloat16": _bug(
        "q", "input and weights & bfloat16 & every linear map", linear=lambda x, w, b, name: _short(x) @ _short(w).T + b
    ),
    "bias added after the activation": _bug(
        "layers.0.feed_forward.pre",
        "up_proj.bias is added after the activation & every layer",
        linear=_at("feed_forward.up", lambda x, w, b: x @ w.T),
        late=lambda x, b: x + b,
    ),
    "gelu by a table": _bug("layers.0.feed_forward.post", "steps of 1/32 & nearest", bent=_by_table),
    "gelu by a polynomial": _bug("layers.0.feed_forward.post", "polynomial", bent=_polynomial),
    "gelu by another sigmoid": _bug("layers.0.feed_forward.post", "1.5", bent=lambda x: x * torch.sigmoid(1.5 * x)),
    "gelu with a short constant": _bug(
        "layers.0.feed_forward.post",
        "erf(0.7 x) & every layer",
        bent=lambda x: 0.5 * x * (1 + torch.erf(0.7 * x)),
    ),
    "residual scaled": _bug("residual", "1.3 & both sums", residual=lambda x, y: 1.3 * x + y),
    "norm weights plus 1": _bug(
        "embeddings.output", "1 is added & everywhere", norm=lambda x, w, b, eps: port.norm(x, w + 1, b, eps)
    ),
    "layers read the sum before the norm": _bug(
        "layers.1.attention.q",
        "feed_forward.residual is used for layers.1.input & every layer",
        given=lambda outputs, sums: sums[-1] if len(sums) > 1 else outputs[-1],
    ),
    "another activation for some features": _bug(
        "layers.0.feed_forward.post",
        "relu & features from feature 20",
        bent=lambda x: torch.cat([F.gelu(x[..., :20]), x[..., 20:].relu()], -1),
    ),
}
# In a model whose rows split into groups of 32.
WIDE_BUGS = {
    "nf4 read as even steps": _bug(
        "layers.1.attention.k",
        "NF4 in groups of 32 & from -1 to 1 & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ _nf4_as_even_steps(w, 32).T + b),
    ),
    "int4 with the halves of bytes exchanged": _bug(
        "layers.1.attention.k",
        "int4 in groups of 32, with each two columns exchanged & layer 1 only",
        linear=_at("layers.1.attention.k", lambda x, w, b: x @ _nibbles_exchanged(w, 32).T + b),
    ),
}
