"""Masked-LM pre-training: masking, corpus, vocabulary, the loop and its evaluation."""

from xlmr_core.training.loop import PretrainSettings, pretrain

__all__ = ["PretrainSettings", "pretrain"]
