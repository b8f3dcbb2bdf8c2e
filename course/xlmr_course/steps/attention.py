"""Attention: heads, scores, context, output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import normalised

LAYER = 1  # of the bundled model; the first has plain embeddings below it


def _rows(tensor: Tensor, heads: int) -> Tensor:  # (B, S, H) -> (B, N, S, D)
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _in_layer(sample: Sample, arguments: dict[str, Any], expected: Tensor, counts: Tensor | None) -> Case:
    return Case(arguments, expected, f"layer {LAYER}, {sample.about}", counts=counts)


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
            found.append(_in_layer(sample, arguments, expected, counts))
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
                    "queries and keys exchanged",
                    "Rows are keys and columns are queries. The softmax over the last axis would then be over queries.",
                    lambda q, k, mask: _masked(_scores(k, q), _keys(mask)),
                ),
                Fault(
                    "no mask",
                    "Padding is not hidden from the tokens. The mask lies on the columns, the keys: no token may look at padding.",
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
                    "mask multiplied",
                    "Padding gets the score 0. That is no small score: exp(0) is 1. It needs a very negative number.",
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
        return _in_layer(sample, arguments, layer["attention.context"], sample.mask)

    return material.cases(case)


def _merged(context: Tensor) -> Tensor:  # (B, N, S, D) -> (B, S, H)
    return context.transpose(1, 2).flatten(2)


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
                    lambda scores, v: _merged((scores - scores.amax(-1, keepdim=True)).exp() @ v),
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

# ---- output ----------------------------------------------------------------------------------------------------------

NORM = ("norm_weight", "norm_bias", "eps")


def _output_cases(material: Material) -> list[Case]:
    prefix = f"layers.{LAYER}."
    parameters = material.parameters

    def case(sample: Sample) -> Case:
        layer = sample.layer(LAYER)
        arguments = {
            "context": layer["attention.context"],
            "x": layer["input"],
            "weight": parameters[prefix + "attention.out_proj.weight"],
            "bias": parameters[prefix + "attention.out_proj.bias"],
            "norm_weight": parameters[prefix + "attention_norm.weight"],
            "norm_bias": parameters[prefix + "attention_norm.bias"],
            "eps": material.config.layer_norm_eps,
        }
        return _in_layer(sample, arguments, layer["mid"], sample.mask)

    return material.cases(case)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


def _output_by(rule: Rule) -> Callable[..., Tensor]:
    def wrong(
        context: Tensor, x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
    ) -> Tensor:
        return rule(context, x, weight, bias, lambda y: normalised(y, norm_weight, norm_bias, eps))

    return wrong


OUTPUT = Step(
    "output",
    "Back into the stream: output, residual, norm",
    (
        Function(
            "attention_output",
            ("text", "token", "feature"),
            _output_cases,
            (
                Fault(
                    "no residual",
                    "What the layer read, `x`, is not added. Without it a deep model forgets its input, and does not train.",
                    _output_by(lambda c, x, w, b, norm: norm(linear(c, w, b))),
                ),
                Fault(
                    "residual after the norm",
                    "`x` is added after the norm. In XLM-R base and large the norm comes last, over the sum.",
                    _output_by(lambda c, x, w, b, norm: x + norm(linear(c, w, b))),
                ),
                Fault(
                    "residual twice",
                    "`x` is added before the norm and again after it. Only the sum before the norm has it.",
                    _output_by(lambda c, x, w, b, norm: x + norm(x + linear(c, w, b))),
                ),
                Fault(
                    "norm before",
                    "`x` is normalised, not the sum: that is half of the pre-norm order of XL.",
                    _output_by(lambda c, x, w, b, norm: norm(x) + linear(c, w, b)),
                ),
                Fault(
                    "no norm", "The sum is not normalised.", _output_by(lambda c, x, w, b, norm: x + linear(c, w, b))
                ),
                Fault(
                    "weight transposed",
                    "The weight is (out, in): x @ weight.T. It is square, so no error stops you.",
                    _output_by(lambda c, x, w, b, norm: norm(x + c @ w + b)),
                ),
                Fault("no bias", "The bias is not added.", _output_by(lambda c, x, w, b, norm: norm(x + c @ w.T))),
                Fault(
                    "no projection",
                    "`context` is added as it is: the output projection, which mixes the heads, is left out.",
                    _output_by(lambda c, x, w, b, norm: norm(x + c)),
                ),
                Fault(
                    "context for the residual",
                    "`context` is added to its own projection. The residual is `x`, what the layer read.",
                    _output_by(lambda c, x, w, b, norm: norm(c + linear(c, w, b))),
                ),
            ),
        ),
    ),
)
