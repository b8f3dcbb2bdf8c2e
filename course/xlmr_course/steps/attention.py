"""Attention: heads, scores, context."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import LAYER, in_layer


def _rows(tensor: Tensor, heads: int) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


# ---- heads -----------------------------------------------------------------------------------------------------------


def _head_cases(material: Material) -> list[Case]:
    heads = material.config.num_attention_heads
    found: list[Case] = []
    for sample in material.samples:
        for name in ("q", "v"):
            prefix = f"layers.{LAYER}.attention.{name}_proj."
            arguments = {
                "x": sample.layer(LAYER)["input"],
                "weight": material.parameters[prefix + "weight"],
                "bias": material.parameters[prefix + "bias"],
                "heads": heads,
            }
            expected = _rows(sample.layer(LAYER)[f"attention.{name}"], heads)
            counts = sample.mask[:, None, :].expand(expected.shape[:3])
            found.append(in_layer(sample, arguments, expected, counts))
    return found


HEADS = Step(
    "heads",
    "Queries, keys and values, in heads",
    (
        Function(
            "project",
            ("text", "head", "token", "feature of the head"),
            _head_cases,
            (
                Fault(
                    "weight transposed",
                    "The weight is (out, in), as torch stores it: multiply by its transpose, x @ weight.T. It is square, "
                    "so no error stops you.",
                    lambda x, weight, bias, heads: _rows(x @ weight + bias, heads),
                ),
                Fault("no bias", "The bias is not added.", lambda x, weight, bias, heads: _rows(x @ weight.T, heads)),
                Fault(
                    "reshape without transpose",
                    "(B, S, H) is reshaped to (B, N, S, D) in one go: that mixes tokens with heads. Split the last axis "
                    "first, (B, S, N, D), then exchange two axes.",
                    lambda x, weight, bias, heads: linear(x, weight, bias).reshape(x.shape[0], heads, x.shape[1], -1),
                ),
                Fault(
                    "heads interleaved",
                    "The features of a head lie side by side: head 0 has the first D. Here each head takes every N-th.",
                    lambda x, weight, bias, heads: (
                        linear(x, weight, bias).unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
                    ),
                ),
                Fault(
                    "tokens last",
                    "The axes are (B, N, D, S), as the keys are needed later. Here the tokens come before the features.",
                    lambda x, weight, bias, heads: _rows(linear(x, weight, bias), heads).transpose(2, 3),
                ),
                Fault(
                    "heads backwards",
                    "The heads are in the opposite order.",
                    lambda x, weight, bias, heads: _rows(linear(x, weight, bias), heads).flip(1),
                ),
                Fault(
                    "bias before the map",
                    "The bias is added to x. It is added to the product.",
                    lambda x, weight, bias, heads: _rows((x + bias) @ weight.T, heads),
                ),
                Fault(
                    "scaled here",
                    "The result is divided by sqrt(D). Only scores are scaled, once, in the next step.",
                    lambda x, weight, bias, heads: (
                        _rows(linear(x, weight, bias), heads) / (x.shape[-1] // heads) ** 0.5
                    ),
                ),
            ),
        ),
    ),
)

# ---- scores ----------------------------------------------------------------------------------------------------------


def _score_cases(material: Material) -> list[Case]:
    heads = material.config.num_attention_heads

    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        expected = layer["attention.scores"]
        arguments = {
            "q": _rows(layer["attention.q"], heads),
            "k": _rows(layer["attention.k"], heads),
            "mask": sample.mask,
        }
        counts = sample.mask[:, None, :, None].expand(expected.shape)  # rows of padding have no meaning
        hidden = ~sample.mask[:, None, None, :].expand(expected.shape)
        return Case(arguments, expected, f"layer {LAYER}, {sample.about}", counts=counts, hidden=hidden)

    return material.cases(case)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)


def _keys(mask: Tensor) -> Tensor:
    return mask[:, None, None, :]


SCORES = Step(
    "scores",
    "Who looks at whom",
    (
        Function(
            "scores",
            ("text", "head", "query", "key"),
            _score_cases,
            (
                Fault(
                    "not scaled",
                    "The products are not divided by sqrt(D). The softmax then sees numbers that are too far apart.",
                    lambda q, k, mask: _masked(_scores(q, k, 1.0), _keys(mask)),
                ),
                Fault(
                    "scaled by the width of the model",
                    "The products are divided by sqrt(H). D is the width of one head, the last axis of q.",
                    lambda q, k, mask: _masked(_scores(q, k, (q.shape[1] * q.shape[-1]) ** -0.5), _keys(mask)),
                ),
                Fault(
                    "divided by D",
                    "The products are divided by D, not by its root.",
                    lambda q, k, mask: _masked(_scores(q, k, 1 / q.shape[-1]), _keys(mask)),
                ),
                Fault(
                    "scaled by the number of tokens",
                    "The products are divided by sqrt(S). D is the width of one head, the last axis of q.",
                    lambda q, k, mask: _masked(_scores(q, k, q.shape[2] ** -0.5), _keys(mask)),
                ),
                Fault(
                    "keys reshaped",
                    "The keys are reshaped from (S, D) to (D, S), which mixes tokens and features. Exchange the two axes.",
                    lambda q, k, mask: _masked(
                        _scores(q, k.reshape(*k.shape[:2], k.shape[3], k.shape[2]).transpose(2, 3)), _keys(mask)
                    ),
                ),
                Fault(
                    "queries and keys exchanged",
                    "Rows are keys and columns are queries. The softmax over the last axis would then be over queries.",
                    lambda q, k, mask: _masked(_scores(k, q), _keys(mask)),
                ),
                Fault(
                    "keys not masked",
                    "Padding is not hidden from the tokens: there is no mask, or it lies on the rows. It belongs to the columns, "
                    "the keys.",
                    lambda q, k, mask: _scores(q, k),
                ),
                Fault(
                    "mask inverted",
                    "The mask is True for real tokens; here these are the ones that are hidden.",
                    lambda q, k, mask: _masked(_scores(q, k), ~_keys(mask)),
                ),
                Fault(
                    "mask of 1 and 0 added",
                    "The mask is added as it is: a real key gets 1 more, padding is not hidden.",
                    lambda q, k, mask: _scores(q, k) + _keys(mask),
                ),
                Fault(
                    "padding at 0",
                    "Padding gets the score 0, or a number near it, such as that of `finfo.tiny`. exp(0) is 1: padding needs "
                    "a very negative number, such as that of `finfo.min`.",
                    lambda q, k, mask: _scores(q, k) * _keys(mask),
                ),
                Fault(
                    "causal",
                    "A token sees only what is before it. That is a decoder; XLM-R reads in both directions.",
                    lambda q, k, mask: _masked(
                        _scores(q, k), _keys(mask) & torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
                    ),
                ),
            ),
        ),
    ),
)

# ---- context ---------------------------------------------------------------------------------------------------------


def _context_cases(material: Material) -> list[Case]:
    heads = material.config.num_attention_heads

    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments = {"scores": layer["attention.scores"], "v": _rows(layer["attention.v"], heads)}
        return in_layer(sample, arguments, layer["attention.context"], sample.mask)

    return material.cases(case)


def _merged(context: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
    return context.transpose(1, 2).flatten(2)


def _exp(scores: Tensor) -> Tensor:
    return (scores - scores.amax(-1, keepdim=True)).exp()


CONTEXT = Step(
    "context",
    "Softmax and the weighted mean",
    (
        Function(
            "context",
            ("text", "token", "feature"),
            _context_cases,
            (
                Fault(
                    "softmax over queries",
                    "The softmax runs over the queries. For each query, the weights of the keys must add up to 1: the "
                    "last axis.",
                    lambda scores, v: _merged(scores.softmax(dim=2) @ v),
                ),
                Fault(
                    "softmax over heads",
                    "The softmax runs over the heads. It is the last axis, the keys.",
                    lambda scores, v: _merged(scores.softmax(dim=1) @ v),
                ),
                Fault(
                    "softmax over the texts",
                    "The softmax runs over the texts of the batch. It is the last axis, the keys.",
                    lambda scores, v: _merged(scores.softmax(dim=0) @ v),
                ),
                Fault(
                    "sum over everything",
                    "The weights of a row are divided by the sum over all rows: the sum lacks an axis. Sum over the last "
                    "axis, and keep it (keepdims=True).",
                    lambda scores, v: _merged(_exp(scores) / _exp(scores).sum() @ v),
                ),
                Fault(
                    "sums along the wrong axis",
                    "The sum of row i divides column i: it lies along the last axis. Keep the axis of the sum "
                    "(keepdims=True).",
                    lambda scores, v: _merged(_exp(scores) / _exp(scores).sum(-1)[..., None, :] @ v),
                ),
                Fault(
                    "softmax over everything",
                    "All weights of all rows together add up to 1: the sum lacks an axis. Those of each row must: sum "
                    "over the last axis, and keep it (keepdims=True).",
                    lambda scores, v: _merged(scores.flatten().softmax(0).view_as(scores) @ v),
                ),
                Fault(
                    "merged without transpose",
                    "(B, N, S, D) is reshaped to (B, S, H) in one go. Exchange tokens and heads first.",
                    lambda scores, v: (scores.softmax(-1) @ v).reshape(v.shape[0], v.shape[2], -1),
                ),
                Fault(
                    "heads interleaved",
                    "The features of a head must lie side by side; here they alternate with those of the others.",
                    lambda scores, v: (scores.softmax(-1) @ v).permute(0, 2, 3, 1).flatten(2),
                ),
                Fault(
                    "not divided by the sum",
                    "exp is taken, but not divided by its sum over the keys.",
                    lambda scores, v: _merged(_exp(scores) @ v),
                ),
                Fault(
                    "weights transposed",
                    "The weights are transposed before they meet the values: each token collects what looks at it.",
                    lambda scores, v: _merged(scores.softmax(-1).transpose(2, 3) @ v),
                ),
                Fault(
                    "softmax twice",
                    "The softmax is taken twice: the second makes all weights nearly equal.",
                    lambda scores, v: _merged(scores.softmax(-1).softmax(-1) @ v),
                ),
                Fault(
                    "scaled again",
                    "The scores are divided by sqrt(D) once more: the step before has done that.",
                    lambda scores, v: _merged((scores / v.shape[-1] ** 0.5).softmax(-1) @ v),
                ),
            ),
        ),
    ),
)
