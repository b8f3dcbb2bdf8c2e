"""Text to ids and positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlmr_core.model import position_ids_from
from xlmr_course.material import TEXTS, Material
from xlmr_course.step import Case, Fault, Function, Step

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
                    "unknown pieces at 4",
                    "<unk> is set to 3 and then shifted with the rest. It is 3 in the model: shift the others only.",
                    lambda spm_ids: [0, *(i + 1 if i else 4 for i in spm_ids), 2],
                ),
                Fault(
                    "special tokens added to the ids",
                    "2 is added to every id: [0] + row + [2] joins lists, but adds when row is a NumPy array.",
                    lambda spm_ids: [i + 2 for i in _shifted(spm_ids)],
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
                    "down the batch",
                    "The running sum goes from text to text. It goes along the tokens of each: axis 1.",
                    lambda input_ids, pad: _real(input_ids, pad).cumsum(0) * _real(input_ids, pad) + pad,
                ),
                Fault(
                    "columns counted",
                    "Real tokens have the numbers of their columns. With padding in front the first token is not in "
                    "column 0.",
                    lambda input_ids, pad: torch.where(
                        input_ids == pad, pad, torch.arange(input_ids.shape[1]).expand_as(input_ids) + pad + 1
                    ),
                ),
                Fault(
                    "padding for real",
                    "Padding is counted, and real tokens are not: the comparison with pad is the wrong way round.",
                    lambda input_ids, pad: (input_ids == pad).cumsum(1) * (input_ids == pad) + pad,
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
