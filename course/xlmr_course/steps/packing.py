"""Packed batches: no padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xlmr_core.kernels import packed_position_ids
from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import LAYER


def _pack_cases(material: Material) -> list[Case]:
    def case(sample: Sample) -> Case:
        expected = (sample.input_ids[sample.mask], sample.mask.sum(dim=1))
        return Case({"input_ids": sample.input_ids, "mask": sample.mask}, expected, sample.about)

    return material.cases(case)


def _packed_position_cases(material: Material) -> list[Case]:
    pad = material.config.pad_token_id

    def case(sample: Sample) -> Case:
        lengths = sample.mask.sum(dim=1)
        expected = packed_position_ids(lengths, int(lengths.sum()), pad)
        return Case({"lengths": lengths, "pad": pad}, expected, sample.about)

    return material.cases(case)


def _packed_context_cases(material: Material) -> list[Case]:
    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments: dict[str, Any] = {name: layer[f"attention.{name}"][sample.mask] for name in "qkv"}
        arguments |= {"lengths": sample.mask.sum(dim=1), "heads": material.config.num_attention_heads}
        return Case(arguments, layer["attention.context"][sample.mask], f"layer {LAYER}, {sample.about}")

    return material.cases(case)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """(T, H) each, all in one row -> (T, H)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _groups(lengths: Tensor) -> Tensor:  # (T): the number of each token's text
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def _counted_from(lengths: Tensor, starts: Tensor, pad: int) -> Tensor:
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths) + pad + 1


def _texts(lengths: Tensor, *packed: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(lengths.tolist()) for x in packed), strict=True))


def _softmax_over(axis: int) -> Callable[..., Tensor]:
    def wrong(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, heads: int) -> Tensor:
        found: list[Tensor] = []
        for part in _texts(lengths, q, k, v):
            a, b, c = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in part)
            weights = (a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(axis)
            found.append((weights @ c).transpose(0, 1).flatten(1))
        return torch.cat(found)

    return wrong


def _reshaped(split: bool, join: bool) -> Callable[..., Tensor]:
    """Heads by one reshape, without an exchange of the axes: when they are split, or when they are joined."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, heads: int) -> Tensor:
        found: list[Tensor] = []
        for part in _texts(lengths, q, k, v):
            n = len(part[0])
            a, b, c = (x.reshape(heads, n, -1) if split else x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in part)
            mixed = (a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(-1) @ c
            found.append(mixed.reshape(n, -1) if join else mixed.transpose(0, 1).flatten(1))
        return torch.cat(found)

    return wrong


def _first_again(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, heads: int) -> Tensor:
    return torch.cat([_attention(q[:n], k[:n], v[:n], heads) for n in lengths.tolist()])


def _each_alone(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, heads: int, scale: float = 1.0) -> Tensor:
    return torch.cat([_attention(*part, heads) for part in _texts(lengths, q * scale, k, v)])


PACKING = Step(
    "packing",
    "Batches without padding",
    (
        Function(
            "pack",
            ("part",),
            _pack_cases,
            (
                Fault(
                    "padding kept",
                    "The rows are joined with their padding. Only real tokens go into a packed batch.",
                    lambda input_ids, mask: (input_ids.flatten(), mask.sum(1)),
                ),
                Fault(
                    "not packed",
                    "The ids are still (B, S). A packed batch has one axis: the real tokens of all texts.",
                    lambda input_ids, mask: (input_ids, mask.sum(1)),
                ),
                Fault(
                    "counted over the texts",
                    "The real tokens of each column are counted. A length is the sum over a row: axis 1.",
                    lambda input_ids, mask: (input_ids[mask], mask.sum(0)),
                ),
                Fault(
                    "widths for lengths",
                    "The lengths are those of the padded rows. Count the real tokens of each.",
                    lambda input_ids, mask: (input_ids[mask], torch.full((len(mask),), mask.shape[1])),
                ),
                Fault(
                    "token by token",
                    "The first tokens of all texts come first, then the second ones. A packed batch has text after text.",
                    lambda input_ids, mask: (input_ids.T[mask.T], mask.sum(1)),
                ),
                Fault(
                    "offsets for lengths",
                    "These are the ends of the texts. `lengths` are their numbers of tokens.",
                    lambda input_ids, mask: (input_ids[mask], mask.sum(1).cumsum(0)),
                ),
                Fault(
                    "special tokens dropped",
                    "<s> and </s> are gone. They are real tokens: the model reads them.",
                    lambda input_ids, mask: (
                        input_ids[mask & (input_ids != 0) & (input_ids != 2)],
                        (mask & (input_ids != 0) & (input_ids != 2)).sum(1),
                    ),
                ),
            ),
        ),
        Function(
            "packed_positions",
            ("token",),
            _packed_position_cases,
            (
                Fault(
                    "no restart",
                    "The count goes on from text to text. Each text begins at pad + 1 again.",
                    lambda lengths, pad: torch.arange(int(lengths.sum())) + pad + 1,
                ),
                Fault(
                    "from zero",
                    "Each text begins at 0. XLM-R counts from pad + 1, packed or not.",
                    lambda lengths, pad: torch.cat([torch.arange(n) for n in lengths.tolist()]),
                ),
                Fault(
                    "from one",
                    "Each text begins at 1. XLM-R counts from pad + 1 = 2.",
                    lambda lengths, pad: torch.cat([torch.arange(n) + 1 for n in lengths.tolist()]),
                ),
                Fault(
                    "one too few",
                    "Each text lacks its last position: a range ends before its end.",
                    lambda lengths, pad: torch.cat([torch.arange(pad + 1, pad + n) for n in lengths.tolist()]),
                ),
                Fault(
                    "ends for starts",
                    "The end of each text is taken away, not its start: the starts are cumsum(lengths) - lengths.",
                    lambda lengths, pad: _counted_from(lengths, lengths.cumsum(0), pad),
                ),
                Fault(
                    "starts not added up",
                    "The length of the text before is taken for the start of a text. A start is the sum of all lengths "
                    "before.",
                    lambda lengths, pad: _counted_from(
                        lengths, lengths.roll(1) * (torch.arange(len(lengths)) > 0), pad
                    ),
                ),
                Fault(
                    "from three",
                    "Each text begins at 3, one too late.",
                    lambda lengths, pad: torch.cat([torch.arange(n) + pad + 2 for n in lengths.tolist()]),
                ),
                Fault(
                    "numbers of texts",
                    "These are the numbers of the texts, not the positions of the tokens in them.",
                    lambda lengths, pad: _groups(lengths),
                ),
            ),
        ),
        Function(
            "packed_context",
            ("token", "feature"),
            _packed_context_cases,
            (
                Fault(
                    "across texts",
                    "Every token looks at all texts of the batch. It may only look at its own.",
                    lambda q, k, v, lengths, heads: _attention(q, k, v, heads),
                ),
                Fault(
                    "to texts before",
                    "A token looks at its own text and at those before it: the mask is a triangle of blocks.",
                    lambda q, k, v, lengths, heads: _attention(
                        q, k, v, heads, _groups(lengths)[:, None] >= _groups(lengths)[None]
                    ),
                ),
                Fault(
                    "to other texts only",
                    "The mask is inverted: each token looks at the other texts and at itself.",
                    lambda q, k, v, lengths, heads: _attention(
                        q,
                        k,
                        v,
                        heads,
                        (_groups(lengths)[:, None] != _groups(lengths)[None]) | torch.eye(len(q), dtype=torch.bool),
                    ),
                ),
                Fault(
                    "not scaled",
                    "The products are not divided by sqrt(D).",
                    lambda q, k, v, lengths, heads: _each_alone(q, k, v, lengths, heads, (q.shape[-1] // heads) ** 0.5),
                ),
                Fault(
                    "scaled by the width of the model",
                    "The products are divided by sqrt(H). D is the width of one head, H / N.",
                    lambda q, k, v, lengths, heads: _each_alone(q, k, v, lengths, heads, heads**-0.5),
                ),
                Fault(
                    "softmax over queries",
                    "The softmax runs over the queries. It is the last axis, the keys.",
                    _softmax_over(1),
                ),
                Fault(
                    "softmax over heads",
                    "The softmax runs over the heads. It is the last axis, the keys.",
                    _softmax_over(0),
                ),
                Fault(
                    "heads reshaped",
                    "(n, H) is reshaped to (N, n, D) in one go, and back: that mixes tokens with heads. Split the last axis "
                    "first, (n, N, D), then exchange two axes.",
                    _reshaped(split=True, join=True),
                ),
                Fault(
                    "split by reshape",
                    "(n, H) is reshaped to (N, n, D) in one go. Split the last axis first, then exchange two axes.",
                    _reshaped(split=True, join=False),
                ),
                Fault(
                    "joined by reshape",
                    "(N, n, D) is reshaped to (n, H) in one go. Exchange tokens and heads first.",
                    _reshaped(split=False, join=True),
                ),
                Fault(
                    "the first text again",
                    "Each text begins at token 0: the start does not move on by the length of a text.",
                    _first_again,
                ),
                Fault(
                    "one head",
                    "The features are not split into heads.",
                    lambda q, k, v, lengths, heads: _each_alone(q, k, v, lengths, 1),
                ),
            ),
        ),
    ),
)
