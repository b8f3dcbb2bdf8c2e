"""The reference XLM-R: short enough to read, exact enough to trust. Begin with `xlmr_core/model.py`."""

import warnings

with warnings.catch_warnings():  # torch speaks of numpy where that is missing, and nothing here needs it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch as _torch  # noqa: F401  # pyright: ignore[reportUnusedImport]

from xlmr_core.config import XLMRobertaConfig
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
from xlmr_core.tasks import Filling, FillMask
from xlmr_core.tokenizer import XLMRobertaTokenizer

__version__ = "0.1.0"

__all__ = [
    "FillMask",
    "Filling",
    "LMHead",
    "M3Output",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceOutput",
    "QuestionAnsweringOutput",
    "SequenceClassifierOutput",
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
]
