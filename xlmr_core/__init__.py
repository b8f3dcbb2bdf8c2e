"""The reference XLM-R: short enough to read, exact enough to trust. Begin with `xlmr_core/model.py`.

Importing the package imports nothing else: each name below is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmr_core._lazy import lazy

if TYPE_CHECKING:
    from xlmr_core.checkpoint.convert import convert
    from xlmr_core.checkpoint.inspection import inspect_checkpoint
    from xlmr_core.config import XLMRobertaConfig
    from xlmr_core.errors import CheckpointError
    from xlmr_core.heads import (
        LMHead,
        M3Output,
        MaskedLMOutput,
        MultipleChoiceOutput,
        QuestionAnsweringOutput,
        SequenceClassifierOutput,
        TokenClassifierOutput,
        XLMRobertaForM3,
        XLMRobertaForMaskedLM,
        XLMRobertaForMultipleChoice,
        XLMRobertaForQuestionAnswering,
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
    )
    from xlmr_core.model import ModelOutput, XLMRobertaModel
    from xlmr_core.tasks import (
        M3,
        Answer,
        Classify,
        Embed,
        EmbeddingConfig,
        Entity,
        Filling,
        FillMask,
        LabelScore,
        M3Scores,
        M3Vectors,
        Pair,
        Ranked,
        Rerank,
        Score,
        Span,
        Tag,
        TextScore,
        ZeroShot,
    )
    from xlmr_core.tokenizer import XLMRobertaTokenizer

__version__ = "0.1.0"

__all__ = [
    "M3",
    "Answer",
    "CheckpointError",
    "Classify",
    "Embed",
    "EmbeddingConfig",
    "Entity",
    "FillMask",
    "Filling",
    "LMHead",
    "LabelScore",
    "M3Output",
    "M3Scores",
    "M3Vectors",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceOutput",
    "Pair",
    "QuestionAnsweringOutput",
    "Ranked",
    "Rerank",
    "Score",
    "SequenceClassifierOutput",
    "Span",
    "Tag",
    "TextScore",
    "TokenClassifierOutput",
    "XLMRobertaConfig",
    "XLMRobertaForM3",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForMultipleChoice",
    "XLMRobertaForQuestionAnswering",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForTokenClassification",
    "XLMRobertaModel",
    "XLMRobertaTokenizer",
    "ZeroShot",
    "convert",
    "inspect_checkpoint",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "checkpoint.convert": ["convert"],
        "checkpoint.inspection": ["inspect_checkpoint"],
        "config": ["XLMRobertaConfig"],
        "errors": ["CheckpointError"],
        "heads": [
            "LMHead",
            "M3Output",
            "MaskedLMOutput",
            "MultipleChoiceOutput",
            "QuestionAnsweringOutput",
            "SequenceClassifierOutput",
            "TokenClassifierOutput",
            "XLMRobertaForM3",
            "XLMRobertaForMaskedLM",
            "XLMRobertaForMultipleChoice",
            "XLMRobertaForQuestionAnswering",
            "XLMRobertaForSequenceClassification",
            "XLMRobertaForTokenClassification",
        ],
        "model": ["ModelOutput", "XLMRobertaModel"],
        "tasks": [
            "Answer",
            "Classify",
            "Embed",
            "EmbeddingConfig",
            "Entity",
            "FillMask",
            "Filling",
            "LabelScore",
            "M3",
            "M3Scores",
            "M3Vectors",
            "Pair",
            "Ranked",
            "Rerank",
            "Score",
            "Span",
            "Tag",
            "TextScore",
            "ZeroShot",
        ],
        "tokenizer": ["XLMRobertaTokenizer"],
    },
)
