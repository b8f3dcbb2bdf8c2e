"""The reference XLM-R: short enough to read, exact enough to trust. Begin with `xlmr_core/model.py`."""

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import LMHead, MaskedLMOutput, XLMRobertaForMaskedLM
from xlmr_core.model import ModelOutput, XLMRobertaModel
from xlmr_core.tasks import Filling, FillMask
from xlmr_core.tokenizer import XLMRobertaTokenizer

__version__ = "0.1.0"

__all__ = [
    "FillMask",
    "Filling",
    "LMHead",
    "MaskedLMOutput",
    "ModelOutput",
    "XLMRobertaConfig",
    "XLMRobertaForMaskedLM",
    "XLMRobertaModel",
    "XLMRobertaTokenizer",
]
