"""Classification, tagging, question answering and multiple choice are transformers', bit for bit."""

from dataclasses import replace

import pytest
import reference
import torch
from reference import CONFIGS, HEAD_KEYS, Pair, build_head_pair
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind

LABELS = tuple("ABCDEFG")
SETTINGS = {
    "seven labels": {"labels": LABELS},
    "one label": {"labels": ("score",)},
    "its own dropout": {"labels": LABELS, "classifier_dropout": 0.45},
    "no dropout": {"labels": LABELS, "classifier_dropout": 0.0},
}


def config_of(norms: str, kind: str, setting: str = "its own dropout") -> XLMRobertaConfig:
    options = SETTINGS[setting] | ({"labels": ("start", "end")} if kind == "ForQuestionAnswering" else {})
    return replace(CONFIGS[norms], **options)


def logits_of(output: object) -> dict[str, Tensor]:
    names = ("logits", "start_logits", "end_logits")
    return {name: getattr(output, name) for name in names if getattr(output, name, None) is not None}


def compare(pair: Pair) -> None:
    """All logits, those of padding left out, under one seed."""
    torch.manual_seed(3)
    ours = logits_of(pair.ours(**pair.batch))
    torch.manual_seed(3)
    theirs = logits_of(pair.theirs(**pair.batch))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        per_token = expected.shape[:2] == pair.real.shape and pair.real.dim() == 2
        real = pair.real if per_token else slice(None)
        reference.assert_equal(name, ours[name][real], expected[real])


@pytest.mark.parametrize("setting", ["seven labels", "one label"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", HEAD_KEYS)
@pytest.mark.parametrize("norms", CONFIGS)
def test_logits(norms: str, kind: str, attention: AttentionKind, setting: str) -> None:
    with torch.no_grad():
        compare(build_head_pair(config_of(norms, kind, setting), kind, attention))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", HEAD_KEYS)
@pytest.mark.parametrize("norms", CONFIGS)
def test_train_mode(norms: str, kind: str, setting: str) -> None:
    """Dropout is where transformers has it, with the same rate."""
    pair = build_head_pair(config_of(norms, kind, setting), kind)
    with reference.training(pair), torch.no_grad():
        compare(pair)


@pytest.mark.parametrize("kind", HEAD_KEYS)
@pytest.mark.parametrize("norms", CONFIGS)
def test_gradients(norms: str, kind: str) -> None:
    """The gradient of every parameter, with dropout."""
    pair = build_head_pair(config_of(norms, kind), kind)
    for model in (pair.ours, pair.theirs):
        with reference.training(pair):
            torch.manual_seed(3)
            logits = logits_of(model(**pair.batch))
        sum(tensor.square().mean() for tensor in logits.values()).backward()
    keys = reference.keys_of(pair.config, kind)
    theirs = dict(pair.theirs.named_parameters())
    assert keys.keys() == dict(pair.ours.named_parameters()).keys()
    for name, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None, name
        reference.assert_equal(f"gradient of {name}", parameter.grad, theirs[keys[name]].grad)
