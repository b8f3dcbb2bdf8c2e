"""Masked-LM pre-training and fine-tuning: two loops, and what they share."""

from xlmr_core.training.finetuning import FinetuneSettings, finetune
from xlmr_core.training.loop import PretrainSettings, pretrain

__all__ = ["FinetuneSettings", "PretrainSettings", "finetune", "pretrain"]
