"""BGE-M3's three representations and scores by their published formulas (Chen et al. 2024, section 3)."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from xlmr_core import XLMRobertaForM3, XLMRobertaTokenizer
from xlmr_core.tasks import M3, m3_scores


@pytest.fixture(scope="module")
def m3(toy_checkpoint: Path) -> M3:
    torch.manual_seed(1)
    model = XLMRobertaForM3.from_pretrained(toy_checkpoint, new_head=True)
    with torch.no_grad():
        for parameter in model.sparse_linear.parameters():
            parameter.uniform_(-1, 1)
    return M3(model, XLMRobertaTokenizer.from_pretrained(toy_checkpoint))


TEXTS = ["the cat sees the dog", "a bird sings", "кіт бачить пса"]


def test_representations_are_those_of_the_formulas(m3: M3) -> None:
    for text, found in zip(TEXTS, m3.batch(TEXTS), strict=True):
        ids = m3.tokenizer(text).input_ids
        with torch.no_grad():
            hidden = m3.model(ids).last_hidden_state[0]
        torch.testing.assert_close(found.dense, F.normalize(hidden[0], dim=0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            found.colbert, F.normalize(m3.model.colbert_linear(hidden[1:]), dim=-1).detach(), atol=1e-6, rtol=1e-5
        )
        weights = m3.model.sparse_linear(hidden).relu()[:, 0].tolist()
        expected: dict[int, float] = {}
        for number, weight in list(zip(ids[0].tolist(), weights, strict=True))[1:-1]:
            if weight > 0 and number != 3:
                expected[number] = max(weight, expected.get(number, 0.0))
        assert found.sparse == pytest.approx(expected, rel=1e-5)


def test_scores_are_those_of_the_formulas(m3: M3) -> None:
    query, passage = m3.batch(TEXTS[:2])
    scores = m3_scores(query, passage, weights=(0.4, 0.2, 0.4))
    shared = set(query.sparse) & set(passage.sparse)
    best = [max(float(q @ p) for p in passage.colbert) for q in query.colbert]
    assert scores.dense == pytest.approx(float(query.dense @ passage.dense))
    assert scores.sparse == pytest.approx(sum(query.sparse[token] * passage.sparse[token] for token in shared))
    assert scores.colbert == pytest.approx(sum(best) / len(best))
    assert scores.combined == pytest.approx(0.4 * scores.dense + 0.2 * scores.sparse + 0.4 * scores.colbert)
    same = m3_scores(query, query)
    assert same.dense == pytest.approx(1, abs=1e-6)
    assert same.colbert == pytest.approx(1, abs=1e-6)
