"""Text to the first layer: ids, positions, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlmr_core.model import position_ids_from
from xlmr_course.material import TEXTS, Material, Sample
from xlmr_course.step import Case, Fault, Function, Step
from xlmr_course.steps.parts import normalised

# ---- ids -------------------------------------------------------------------------------------------------------------

PLAIN = [text.replace("<mask>", "") for text in TEXTS] + ["𒀀𒀁 is cuneiform"]


def _id_cases(material: Material) -> list[Case]:
    return [
        Case({"spm_ids": material.spm_ids(text)}, material.tokenizer(text).input_ids[0].tolist(), f"the text {text!r}")
        for text in PLAIN
    ]


def _pair_cases(material: Material) -> list[Case]:
    found: list[Case] = []
    for first, second in ((PLAIN[0], PLAIN[1]), (PLAIN[2], "")):
        expected = material.tokenizer(first, second).input_ids[0].tolist()
        given = {"first": material.spm_ids(first), "second": material.spm_ids(second)}
        found.append(Case(given, expected, f"the texts {first!r} and {second!r}"))
    return found


def _shifted(spm_ids: Sequence[int]) -> list[int]:
    return [3 if number == 0 else number + 1 for number in spm_ids]


IDS = Step(
    "ids",
    "Text becomes ids",
    (
        Function(
            "model_ids",
            ("token",),
            _id_cases,
            (
                Fault(
                    "no offset",
                    "SentencePiece's own ids are used. The model's are one higher, because fairseq has put <pad> among "
                    "the special tokens: every word is taken for its neighbour in the list.",
                    lambda spm_ids: [0, *(3 if i == 0 else i for i in spm_ids), 2],
                ),
                Fault(
                    "unknown pieces shifted as well",
                    "SentencePiece's <unk> is 0; plus one that is <pad>, which attention hides. The model's <unk> is 3.",
                    lambda spm_ids: [0, *(i + 1 for i in spm_ids), 2],
                ),
                Fault(
                    "no special tokens",
                    "The row lacks <s> (0) in front and </s> (2) at the end. The model has never seen a row without.",
                    lambda spm_ids: _shifted(spm_ids),
                ),
                Fault(
                    "SentencePiece's special ids",
                    "In SentencePiece's own list <s> is 1 and </s> is 2. In the model <s> is 0, and 1 is <pad>.",
                    lambda spm_ids: [1, *_shifted(spm_ids), 2],
                ),
                Fault(
                    "<s> and </s> exchanged",
                    "The row begins with 2 and ends with 0. <s>, the begin, is 0; </s>, the end, is 2.",
                    lambda spm_ids: [2, *_shifted(spm_ids), 0],
                ),
                Fault(
                    "special tokens shifted",
                    "The special tokens are counted in the model's own numbering already: they are not shifted.",
                    lambda spm_ids: [1, *_shifted(spm_ids), 3],
                ),
                Fault(
                    "no end",
                    "</s> (2) is missing at the end.",
                    lambda spm_ids: [0, *_shifted(spm_ids)],
                ),
            ),
        ),
        Function(
            "pair_ids",
            ("token",),
            _pair_cases,
            (
                Fault(
                    "one separator",
                    "Between two texts there are two </s>, not one: RoBERTa closes the first text and opens the second.",
                    lambda first, second: [0, *_shifted(first), 2, *_shifted(second), 2],
                ),
                Fault(
                    "a second <s>",
                    "The second text begins with </s>, not with <s>.",
                    lambda first, second: [0, *_shifted(first), 2, 0, *_shifted(second), 2],
                ),
                Fault(
                    "texts exchanged",
                    "The second text comes first.",
                    lambda first, second: [0, *_shifted(second), 2, 2, *_shifted(first), 2],
                ),
                Fault(
                    "texts joined",
                    "Nothing parts the two texts.",
                    lambda first, second: [0, *_shifted(first), *_shifted(second), 2],
                ),
                Fault(
                    "no end",
                    "</s> (2) is missing at the end.",
                    lambda first, second: [0, *_shifted(first), 2, 2, *_shifted(second)],
                ),
            ),
        ),
    ),
)

# ---- positions -------------------------------------------------------------------------------------------------------


def _position_cases(material: Material) -> list[Case]:
    right = material.samples[0].input_ids
    pad = material.config.pad_token_id
    left = torch.stack([torch.cat([row[row == pad], row[row != pad]]) for row in right])  # padding in front
    found: list[Case] = []
    for ids, about in ((right, "padding behind"), (left, "padding in front"), (right[:1], "one text")):
        found.append(Case({"input_ids": ids, "pad": pad}, position_ids_from(ids, pad), about))
    return found


def _real(input_ids: Tensor, pad: int) -> Tensor:
    return (input_ids != pad).long()


POSITIONS = Step(
    "positions",
    "Positions begin at 2",
    (
        Function(
            "position_ids",
            ("text", "token"),
            _position_cases,
            (
                Fault(
                    "from zero",
                    "Positions are counted from 0, as in BERT. XLM-R counts from pad + 1 = 2: rows 0 and 1 of the table "
                    "were never trained.",
                    lambda input_ids, pad: torch.arange(input_ids.shape[1]).expand_as(input_ids),
                ),
                Fault(
                    "padding counts",
                    "Padding is counted, too. Behind the text that changes nothing; in front of it every token is moved.",
                    lambda input_ids, pad: torch.arange(input_ids.shape[1]).expand_as(input_ids) + pad + 1,
                ),
                Fault(
                    "from one",
                    "The count begins at 1: the number of <pad> is not added to it.",
                    lambda input_ids, pad: _real(input_ids, pad).cumsum(1) * _real(input_ids, pad),
                ),
                Fault(
                    "padding has a position",
                    "A pad has the position pad, whose row of the table is zero; here it has the position of the token "
                    "before it.",
                    lambda input_ids, pad: _real(input_ids, pad).cumsum(1) + pad,
                ),
                Fault(
                    "padding at zero",
                    "Every position of a pad is multiplied to 0 after pad was added: add it last.",
                    lambda input_ids, pad: (_real(input_ids, pad).cumsum(1) + pad) * _real(input_ids, pad),
                ),
                Fault(
                    "through the batch",
                    "The count goes on from one text to the next. Each row begins at pad + 1 again.",
                    lambda input_ids, pad: (
                        _real(input_ids, pad).flatten().cumsum(0).view_as(input_ids) * _real(input_ids, pad) + pad
                    ),
                ),
                Fault(
                    "from three",
                    "The count begins one too late, at 3: a running sum begins at 1 already, so add pad, not pad + 1.",
                    lambda input_ids, pad: (_real(input_ids, pad).cumsum(1) + 1) * _real(input_ids, pad) + pad,
                ),
            ),
        ),
    ),
)

# ---- embeddings ------------------------------------------------------------------------------------------------------


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
                    "eps is not the argument but a number of its own, 1e-12 as in BERT. Pass `eps` on.",
                    lambda x, weight, bias, eps: normalised(x, weight, bias, 1e-12),
                ),
                Fault(
                    "eps outside the root",
                    "eps is added to the standard deviation. It belongs to the variance, inside the root.",
                    lambda x, weight, bias, eps: _norm_by(x, weight, bias, x.std(-1, correction=0, keepdim=True) + eps),
                ),
                Fault(
                    "variance of a sample",
                    "The sum of squares is divided by H - 1, as in statistics; `torch.var` does so unless you ask. The "
                    "norm divides by H.",
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
