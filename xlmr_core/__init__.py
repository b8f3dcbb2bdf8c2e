"""The reference XLM-R: short enough to read, exact enough to trust. Begin with `xlmr_core/model.py`."""

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
