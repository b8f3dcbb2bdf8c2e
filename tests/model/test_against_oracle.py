"""Our model and transformers' agree with a second opinion in plain loops, tap by tap, in float64."""

import math
from dataclasses import replace

import oracle
import pytest
import reference
import torch
from reference import CONFIGS, POST_NORM, PRE_NORM, build_pair, gpu_only

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind
from xlmr_core.model import position_ids_from

SMALL = replace(POST_NORM, num_hidden_layers=1)

CASES = {
    "post-norm": POST_NORM,
    "pre-norm": PRE_NORM,
    "tanh": replace(SMALL, hidden_act="gelu_pytorch_tanh"),
    "relu": replace(SMALL, hidden_act="relu"),
    "silu": replace(SMALL, hidden_act="silu", norm_first=True),
    "eps 1e-5": replace(SMALL, layer_norm_eps=1e-5),
    "eps 0.5": replace(SMALL, layer_norm_eps=0.5, norm_first=True),
    "pad 7": replace(SMALL, pad_token_id=7),
    "one head": replace(SMALL, num_attention_heads=1),
    "no layer": replace(POST_NORM, num_hidden_layers=0),
    "untied": replace(SMALL, tie_word_embeddings=False),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_every_tap(config: XLMRobertaConfig) -> None:
    reference.check_oracle(build_pair(config, dtype=torch.float64))


@gpu_only
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_tap_on_a_gpu(config: XLMRobertaConfig, device: str) -> None:
    pair = build_pair(config, dtype=torch.float64, device=device)
    truth = reference.oracle_taps(build_pair(config, dtype=torch.float64))
    reference.check_oracle(pair, truth)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_of_both_libraries(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    pair = build_pair(config, attention, torch.float64)
    truth = reference.oracle_taps(pair)["lm_head.logits"]
    assert max(reference.errors(pair, truth)) <= reference.ORACLE_TOLERANCE


def test_float32_is_far_from_the_tolerance() -> None:
    """The tolerance separates float64 from float32: it is not so wide that anything passes."""
    pair = build_pair(POST_NORM)
    with pytest.raises(AssertionError, match=r"embeddings\.sum is .* from the oracle: the first to differ"):
        reference.check_oracle(pair)


def test_a_row_of_only_padding() -> None:
    pair = build_pair(SMALL, dtype=torch.float64)
    pair.batch["input_ids"][3] = SMALL.pad_token_id
    pair.batch["attention_mask"][3] = 0
    truth = reference.oracle_taps(pair)
    with torch.no_grad():
        logits = pair.ours(**pair.batch).logits
    assert reference.gap(logits[3], truth["lm_head.logits"][3]) <= reference.ORACLE_TOLERANCE


def test_positions() -> None:
    assert oracle.positions([0, 9, 1, 8, 2, 1, 1], pad=1) == [2, 3, 1, 4, 5, 1, 1]
    random = torch.Generator().manual_seed(5)
    for pad in (0, 1, 3):
        ids = torch.randint(0, 5, (40, 9), generator=random)
        assert position_ids_from(ids, pad).tolist() == [oracle.positions(row, pad) for row in ids.tolist()]


def test_functions_of_the_oracle_at_known_points() -> None:
    assert oracle.gelu(1.0) == pytest.approx(0.8413447460685429, rel=1e-15)  # the normal distribution at 1
    assert oracle.gelu_tanh(1.0) == pytest.approx(0.8411919906082768, rel=1e-15)
    assert oracle.silu(0.0) == 0.0
    assert oracle.silu(2.0) == pytest.approx(2 / (1 + math.exp(-2)))
    assert oracle.relu(-1.0) == 0.0
    assert oracle.softmax([1000.0, 1000.0, -math.inf]) == [0.5, 0.5, 0.0]
    assert oracle.layer_norm([1.0, 3.0], [1.0, 2.0], [0.0, 1.0], eps=3.0) == [-0.5, 2.0]
