"""bfloat16 and float16: our error against float64 is at most transformers' own in the same precision."""

import pytest
import reference
import torch
from reference import CONFIGS, build_pair, devices

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind

norms = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@norms
@attentions
@dtypes
@devices
def test_error_against_float64(
    config: XLMRobertaConfig, attention: AttentionKind, dtype: torch.dtype, device: str
) -> None:
    reference.check_precision(build_pair(config, attention, dtype, device))


@norms
@attentions
@dtypes
def test_bit_for_bit_on_the_cpu(config: XLMRobertaConfig, attention: AttentionKind, dtype: torch.dtype) -> None:
    pair = build_pair(config, attention, dtype)
    reference.check_outputs(pair)
    with torch.no_grad():
        assert pair.ours(**pair.batch).logits.dtype == dtype


@norms
def test_the_error_grows_with_the_rounding(config: XLMRobertaConfig) -> None:
    """The truth is the right one: in units of its own rounding, each dtype is about equally far from it."""
    distances: list[float] = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        pair = build_pair(config, dtype=dtype)
        ours, _ = reference.errors(pair, reference.float64_logits(pair))
        distances.append(ours / torch.finfo(dtype).eps)
    assert max(distances) < 4 * min(distances)
