"""Faults of the pooler and of the heads."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import (
    ClassificationHead,
    LMHead,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForTokenClassification,
)
from xlmr_core.model import Pooler
from xlmr_core.parity.faults.patching import (
    Fault,
    each,
    identity,
    input_changed,
    missing_bias,
    module_replaced,
    parameters_changed,
    set_attribute,
)
from xlmr_core.parity.grammar.activations import ACTIVATIONS


def _lm_head_untied(undo: ExitStack, head: LMHead, config: XLMRobertaConfig) -> None:
    tied = head.decoder.weight
    fresh = torch.randn(tied.shape, generator=torch.Generator().manual_seed(0)) * config.initializer_range
    set_attribute(undo, head.decoder, "weight", nn.Parameter(fresh.to(tied)))


def _reversed_tokens(_config: XLMRobertaConfig, hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (hidden.flip(1), None) if lengths is None else (hidden.flip(0), lengths.flip(0))


def _mean_everywhere(_config: XLMRobertaConfig, hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if lengths is None:
        return hidden.mean(dim=1, keepdim=True).expand_as(hidden), None
    means = torch.stack([tokens.mean(dim=0) for tokens in hidden.split(lengths.tolist())])
    return means.repeat_interleave(lengths, dim=0), lengths


HEAD_FAULTS: tuple[Fault, ...] = (
    missing_bias("lm_head_dense_bias_missing", LMHead, "dense", "lm_head.dense", of="the LM head's dense map"),
    Fault(
        "lm_head_activation_missing",
        cause="the LM head has no GELU between dense map and norm",
        symptom="the dense map is right, the norm's output is not",
        tap="lm_head.norm",
        patch=module_replaced(LMHead, "activation", identity),
    ),
    Fault(
        "lm_head_gelu_tanh",
        cause="the LM head's GELU is the tanh approximation",
        symptom="the dense map is right, the norm's output has errors of about 5e-4",
        tap="lm_head.norm",
        patch=module_replaced(LMHead, "activation", ACTIVATIONS["gelu_pytorch_tanh"]),
    ),
    Fault(
        "lm_head_norm_missing",
        cause="the LM head has no norm",
        symptom="the dense map is right, the decoder gets it unnormalised",
        tap="lm_head.norm",
        patch=module_replaced(LMHead, "norm", identity),
    ),
    missing_bias("lm_head_norm_bias_missing", LMHead, "norm", "lm_head.norm", of="the LM head's norm"),
    Fault(
        "lm_head_untied",
        cause="the decoder is not tied to the word table and stayed as it was initialised",
        symptom="everything is right except the logits, which are noise",
        tap="lm_head.logits",
        patch=each(LMHead, _lm_head_untied),
    ),
    missing_bias(
        "vocabulary_bias_missing",
        LMHead,
        "decoder",
        "lm_head.logits",
        of="the LM head's decoder (one number a vocabulary entry, with two names in checkpoints)",
        symptom="the same number is missing from the logit of a token at every position; frequent tokens lose most",
    ),
    Fault(
        "pooler_last_token",
        cause="the pooler takes the last token, as decoders do",
        symptom="hidden states are right, the pooler's input is another token",
        tap="pooler.dense",
        patch=input_changed(Pooler, "", _reversed_tokens),
    ),
    missing_bias("pooler_bias_missing", Pooler, "dense", "pooler.dense", of="the pooler"),
    Fault(
        "pooler_tanh_missing",
        cause="the pooler has no tanh",
        symptom="the dense map is right; outputs lie outside -1 to 1",
        tap="pooler.output",
        patch=module_replaced(Pooler, "activation", identity),
    ),
    Fault(
        "classifier_mean_pooled",
        cause="the classifier takes the mean of all positions of a row, but was trained on <s>",
        symptom="hidden states are right, the classifier's input is another vector",
        tap="classifier.dense",
        patch=input_changed(ClassificationHead, "", _mean_everywhere),
    ),
    missing_bias(
        "classifier_dense_bias_missing",
        ClassificationHead,
        "dense",
        "classifier.dense",
        of="the classifier's first map",
    ),
    Fault(
        "classifier_tanh_missing",
        cause="the classifier has no tanh between its two maps",
        symptom="the first map is right, the logits are not",
        tap="classifier.logits",
        patch=module_replaced(ClassificationHead, "activation", identity),
    ),
    missing_bias(
        "classifier_out_bias_missing",
        ClassificationHead,
        "out_proj",
        "classifier.logits",
        of="the classifier's last map",
        symptom="the same number is missing from the logit of a label in every text",
    ),
    missing_bias(
        "tagger_bias_missing",
        XLMRobertaForTokenClassification,
        "classifier",
        "tagger.logits",
        of="the token classifier",
        symptom="the same number is missing from the logit of a label at every token",
    ),
    missing_bias(
        "answer_bias_missing",
        XLMRobertaForQuestionAnswering,
        "qa_outputs",
        "answer.logits",
        of="the question-answering head",
        symptom="one number is missing from all start logits, another from all end logits: no answer changes",
    ),
    Fault(
        "answer_ends_exchanged",
        cause="the question answerer's two outputs are exchanged: the first is the start",
        symptom="start logits are at the place of end logits",
        tap="answer.logits",
        patch=parameters_changed(
            XLMRobertaForQuestionAnswering, ["qa_outputs.weight", "qa_outputs.bias"], lambda values: values.flip(0)
        ),
    ),
)
