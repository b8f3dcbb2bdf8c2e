"""What enters the first layer: three tables and a norm."""

from __future__ import annotations

import torch
from torch import Tensor

from xlmr_course.material import Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import normalised


def _embedding_cases(material: Material) -> list[Case]:
    parameters, config = material.parameters, material.config

    def case(sample: Sample) -> Case:
        positions = (sample.mask.cumsum(1) * sample.mask) + config.pad_token_id
        arguments = {
            "input_ids": sample.input_ids,
            "positions": positions,
            "word": parameters["embeddings.word_embeddings.weight"],
            "position": parameters["embeddings.position_embeddings.weight"],
            "token_type": parameters["embeddings.token_type_embeddings.weight"],
            "weight": parameters["embeddings.norm.weight"],
            "bias": parameters["embeddings.norm.bias"],
            "eps": config.layer_norm_eps,
        }
        return Case(arguments, sample.taps["embeddings.output"], sample.about, counts=sample.mask)

    return material.cases(case)


def _norm_cases(material: Material) -> list[Case]:
    parameters, config = material.parameters, material.config

    def case(sample: Sample) -> Case:
        arguments = {
            "x": sample.taps["embeddings.sum"],
            "weight": parameters["embeddings.norm.weight"],
            "bias": parameters["embeddings.norm.bias"],
            "eps": config.layer_norm_eps,
        }
        return Case(arguments, sample.taps["embeddings.output"], sample.about, counts=sample.mask)

    return material.cases(case)


def _sum(input_ids: Tensor, positions: Tensor, word: Tensor, position: Tensor, token_type: Tensor) -> Tensor:
    return word[input_ids] + position[positions] + token_type[0]


def _norm_by(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / scale * weight + bias


def _norm_over(x: Tensor, weight: Tensor, bias: Tensor, eps: float, axes: tuple[int, ...]) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt() * weight + bias


def _variance(x: Tensor) -> Tensor:
    return x.var(-1, correction=0, keepdim=True)


EMBEDDINGS = Step(
    "embeddings",
    "Three tables and a norm",
    (
        Function(
            "norm",
            ("text", "token", "feature"),
            _norm_cases,
            (
                Fault(
                    "eps of another model",
                    "eps is left out, or is a number of its own, 1e-12 as in BERT. Use the argument `eps`.",
                    lambda x, weight, bias, eps: normalised(x, weight, bias, 1e-12),
                ),
                Fault(
                    "eps outside the root",
                    "eps is added to the standard deviation. It belongs to the variance, inside the root.",
                    lambda x, weight, bias, eps: _norm_by(x, weight, bias, x.std(-1, correction=0, keepdim=True) + eps),
                ),
                Fault(
                    "variance of a sample",
                    "The sum of squares is divided by H - 1, as in statistics; `torch.var` does so unless you ask, "
                    "`numpy.var` with ddof=1. The norm divides by H.",
                    lambda x, weight, bias, eps: _norm_by(x, weight, bias, (x.var(-1, keepdim=True) + eps).sqrt()),
                ),
                Fault(
                    "over the tokens",
                    "Mean and variance are taken over the tokens of a text. They belong to the features of one token.",
                    lambda x, weight, bias, eps: (
                        (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + eps).sqrt() * weight
                        + bias
                    ),
                ),
                Fault(
                    "over everything",
                    "There is one mean and one variance for all tokens: an axis is missing. Take them over the last axis.",
                    lambda x, weight, bias, eps: _norm_over(x, weight, bias, eps, (0, 1, 2)),
                ),
                Fault(
                    "over a whole text",
                    "Mean and variance are taken over tokens and features. They belong to the features of one token.",
                    lambda x, weight, bias, eps: _norm_over(x, weight, bias, eps, (1, 2)),
                ),
                Fault(
                    "over the texts",
                    "Mean and variance are taken over the texts of the batch. They belong to the features of one token.",
                    lambda x, weight, bias, eps: _norm_over(x, weight, bias, eps, (0,)),
                ),
                Fault(
                    "no root",
                    "The numbers are divided by the variance, not by its root.",
                    lambda x, weight, bias, eps: _norm_by(x, weight, bias, _variance(x) + eps),
                ),
                Fault(
                    "sum of squares",
                    "The squares are added up, not averaged: divide their sum by H.",
                    lambda x, weight, bias, eps: _norm_by(x, weight, bias, (_variance(x) * x.shape[-1] + eps).sqrt()),
                ),
                Fault(
                    "variance without the mean",
                    "The variance is the mean of x^2. Take the mean of x away before the square.",
                    lambda x, weight, bias, eps: _norm_by(
                        x, weight, bias, (x.square().mean(-1, keepdim=True) + eps).sqrt()
                    ),
                ),
                Fault(
                    "weight and bias exchanged",
                    "`weight` is added and `bias` multiplies.",
                    lambda x, weight, bias, eps: normalised(x, bias, weight, eps),
                ),
                Fault(
                    "no mean",
                    "The mean is not taken away: that is RMS norm, of other models.",
                    lambda x, weight, bias, eps: x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias,
                ),
                Fault(
                    "no weight and bias",
                    "The result is not multiplied by `weight` and moved by `bias`.",
                    lambda x, weight, bias, eps: normalised(x, torch.ones_like(weight), torch.zeros_like(bias), eps),
                ),
                Fault(
                    "bias before the weight",
                    "`bias` is added before the product with `weight`. Multiply by `weight` first.",
                    lambda x, weight, bias, eps: (
                        (normalised(x, torch.ones_like(weight), torch.zeros_like(bias), eps) + bias) * weight
                    ),
                ),
                Fault(
                    "no bias",
                    "`bias` is not added at the end.",
                    lambda x, weight, bias, eps: normalised(x, weight, torch.zeros_like(bias), eps),
                ),
            ),
        ),
        Function(
            "embed",
            ("text", "token", "feature"),
            _embedding_cases,
            (
                Fault(
                    "no token type",
                    "The token-type vector is left out, because there is only one type. It is not zero: it was trained.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: normalised(
                        word[input_ids] + position[positions], weight, bias, eps
                    ),
                ),
                Fault(
                    "no norm",
                    "The sum is returned without the norm.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: _sum(
                        input_ids, positions, word, position, token_type
                    ),
                ),
                Fault(
                    "no positions",
                    "The position vectors are not added: the model has no way to know the order of words.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: normalised(
                        word[input_ids] + token_type[0], weight, bias, eps
                    ),
                ),
                Fault(
                    "words scaled",
                    "Word vectors are multiplied by sqrt(H), as in the first Transformer. Not here.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: normalised(
                        word[input_ids] * word.shape[1] ** 0.5 + position[positions] + token_type[0], weight, bias, eps
                    ),
                ),
                Fault(
                    "positions counted again",
                    "The rows of the position table are taken from 0 up, whatever `positions` says.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: normalised(
                        word[input_ids] + position[: input_ids.shape[1]] + token_type[0], weight, bias, eps
                    ),
                ),
                Fault(
                    "weight and bias exchanged",
                    "The norm gets `bias` for its weight and `weight` for its bias.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: normalised(
                        _sum(input_ids, positions, word, position, token_type), bias, weight, eps
                    ),
                ),
                Fault(
                    "token type after the norm",
                    "The token-type vector is added after the norm. The norm is of the sum of all three.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: (
                        normalised(word[input_ids] + position[positions], weight, bias, eps) + token_type[0]
                    ),
                ),
                Fault(
                    "norm of the words only",
                    "Only the word vectors are normalised, and the rest is added afterwards. The norm is of the sum.",
                    lambda input_ids, positions, word, position, token_type, weight, bias, eps: (
                        normalised(word[input_ids], weight, bias, eps) + position[positions] + token_type[0]
                    ),
                ),
            ),
        ),
    ),
)
