"""Attention that rounds inside its kernel: weights before they are divided by their sum, or the running sum of values.

A kernel keeps e to the scores less the largest so far, and divides by their sum in the end (Dao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from xlmr_core.parity.grammar.edit import Edit
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.terms import Term, tap

KINDS = ("rounded to bfloat16", "rounded to float16")
WEIGHTS, SUMS = "weights before the division and values", "the running sum of values"
WHOLE = 0  # one tile with all keys
TILES = (WHOLE, 16, 32, 64, 128)


def rounded_inside(path: tuple[int, ...], part: Term) -> Iterator[Edit]:
    """The product of probs and values, as kernels compute it that round.

    Args:
        path: Of the product.
        part: It.
    """
    for kind in KINDS:
        for tile in TILES:
            yield Edit(path, flash(part, kind, tile), 1.7, f"in the kernel, {WEIGHTS} are {kind}{in_tiles(tile)}")
            if tile != WHOLE:
                new = flash(part, kind, tile, SUMS)
                yield Edit(path, new, 1.7, f"in the kernel, {SUMS} is {kind}{in_tiles(tile)}")


def in_tiles(tile: int) -> str:
    """The tile in words."""
    return f" in tiles of {tile} keys" if tile != WHOLE else ""


def flash(part: Term, kind: str, tile: int, what: str = WEIGHTS) -> Term:
    """In place of the product of probs and values."""
    probs, values = part.args
    scores = tap(probs.value.replace("attention.probs", "attention.scores")) if probs.op == "tap" else probs.args[0]
    return replace(part, op="flash", args=(scores, values), value=(kind, tile, what))


def computed(kind: tuple[str, int, str], scores: Tensor, values: Tensor) -> Tensor:
    """The context (B, N, S, D) of scores (B, N, S, S) and values (B, N, S, D), tile by tile."""
    precision, tile, what = kind
    rounded = PRECISIONS[precision]
    size = tile or scores.shape[-1]
    top = scores.new_full((*scores.shape[:-1], 1), torch.finfo(scores.dtype).min)
    total = torch.zeros_like(top)
    mixed = torch.zeros_like(scores[..., :1] * values[..., :1, :])
    for own, theirs in zip(scores.split(size, -1), values.split(size, -2), strict=True):
        new = torch.maximum(top, own.amax(-1, keepdim=True))
        weights, shrink = (own - new).exp(), (top - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        if what == WEIGHTS:
            mixed = mixed * shrink + rounded(weights) @ rounded(theirs)
        else:
            mixed = rounded(mixed * shrink + weights @ theirs)
        top = new
    return mixed / total
