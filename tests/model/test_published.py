"""The published checkpoints give the numbers that were published with them.

These tests download weights (1.1 GB for base, 2.2 GB for large) and so run only when asked, where the hub answers:

    pytest -m hub tests/model/test_published.py

Each number carries its source. Where the hub cannot be reached they fail, and say so: a skip would look like success.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xlmr_core import FillMask, XLMRobertaModel, XLMRobertaTokenizer

pytestmark = [
    pytest.mark.hub,
    pytest.mark.filterwarnings("ignore"),  # of the download client: proxies, symlinks, unauthenticated requests
]

BASE = "FacebookAI/xlm-roberta-base"
LARGE = "FacebookAI/xlm-roberta-large"

# huggingface/transformers @00ee70b, tests/models/xlm_roberta/test_modeling_xlm_roberta.py: the last feature of each
# token, computed with fairseq's xlmr.base and xlmr.large.
GARDEN = "The dog is cute and lives in the garden house"
GARDEN_IDS = [0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2]
GARDEN_LAST_FEATURE = {
    BASE: [-0.0101, 0.1218, -0.0803, 0.0801, 0.1327, 0.0776, -0.1215, 0.2383, 0.3338, 0.3106, 0.0300, 0.0252],
    LARGE: [-0.0699, -0.0318, 0.0705, -0.1241, 0.0999, -0.0520, 0.1004, -0.1838, -0.4704, 0.1437, 0.0821, 0.0126],
}

# huggingface/transformers @15ea02a, tests/models/xlm_roberta/test_modeling_tf_xlm_roberta.py
CUTE_IDS = [0, 2646, 10269, 83, 99942, 2]  # "My dog is cute"
CUTE_CORNER = [
    [0.0681762, 0.10894451, 0.06772504],
    [-0.06423668, 0.02366615, 0.04329344],
    [-0.06057295, 0.09974135, -0.00070584],
]

# keras-team/keras-hub @71453d0, keras_hub/src/models/xlm_roberta/xlm_roberta_backbone_test.py
FOX_IDS = [0, 581, 63773, 2]
FOX_FIRST_FIVE = [0.084763, 0.097018, 0.051329, -0.000805, 0.028415]

# The model card of xlm-roberta-base: its fill-mask example
FASHION = "Hello I'm a <mask> model."
FASHION_IDS = [0, 35378, 87, 25, 39, 10, 250001, 3299, 5, 2]
FASHION_TOP5 = [
    (54543, "fashion", 0.10563907772302628),
    (3525, "new", 0.08015287667512894),
    (3299, "model", 0.033413201570510864),
    (92265, "French", 0.030217764899134636),
    (17473, "sexy", 0.026436051353812218),
]

# pytorch/text @a5e6106, test/integration_tests/test_roberta_models.py, with its stored whole last hidden states
COMPARISON = "XLMR base Model Comparison"
COMPARISON_IDS = [0, 43523, 52005, 3647, 13293, 113307, 40514, 2]


def _last_hidden_state(name: str, text: str, ids: list[int]) -> torch.Tensor:
    tokenizer = XLMRobertaTokenizer.from_pretrained(name)
    batch = tokenizer(text)
    assert batch.input_ids.tolist() == [ids]
    with torch.inference_mode():
        return XLMRobertaModel.from_pretrained(name)(**batch).last_hidden_state[0]


@pytest.mark.parametrize("name", [BASE, LARGE])
def test_last_feature_of_every_token(name: str) -> None:
    hidden = _last_hidden_state(name, GARDEN, GARDEN_IDS)
    torch.testing.assert_close(hidden[:, -1], torch.tensor(GARDEN_LAST_FEATURE[name]), atol=1e-3, rtol=0)


def test_corner_of_the_hidden_state() -> None:
    hidden = _last_hidden_state(BASE, "My dog is cute", CUTE_IDS)
    torch.testing.assert_close(hidden[:3, :3], torch.tensor(CUTE_CORNER), atol=1e-4, rtol=0)


def test_first_five_features() -> None:
    with torch.inference_mode():
        hidden = XLMRobertaModel.from_pretrained(BASE)(torch.tensor([FOX_IDS])).last_hidden_state
    torch.testing.assert_close(hidden.flatten()[:5], torch.tensor(FOX_FIRST_FIVE), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("name", "size"), [(BASE, "base"), (LARGE, "large")])
def test_whole_hidden_state(name: str, size: str, shared: Path) -> None:
    [expected] = load_file(shared / "golden" / f"xlmr.{size}.last_hidden_state.safetensors").values()
    hidden = _last_hidden_state(name, COMPARISON, COMPARISON_IDS)
    torch.testing.assert_close(hidden, expected.reshape(hidden.shape))  # rtol 1.3e-6, atol 1e-5, as there


def test_fill_mask() -> None:
    fill = FillMask.from_pretrained(BASE)
    assert fill.tokenizer(FASHION).input_ids.tolist() == [FASHION_IDS]
    [fillings] = fill(FASHION)
    assert [(filling.token, filling.token_str) for filling in fillings] == [(t, word) for t, word, _ in FASHION_TOP5]
    assert [filling.score for filling in fillings] == pytest.approx([score for *_, score in FASHION_TOP5], abs=2e-5)


def test_first_choices_in_half_precision() -> None:
    # huggingface/candle @2a13b0f, candle-examples/examples/xlm-roberta
    fill = FillMask.from_pretrained(BASE, dtype=torch.float16)
    texts = ["Hello I'm a <mask> model.", "I'm a <mask> boy.", "I'm <mask> in berlin."]
    assert [masks[0][0].token_str for masks in fill.batch(texts)] == ["fashion", "little", "living"]
