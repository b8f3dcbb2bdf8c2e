"""Pseudo-log-likelihoods against transformers' model, one masked token at a time."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from xlmr_core.tasks import Score


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("XLMRobertaForMaskedLM")


@pytest.fixture(scope="module")
def score(folder: Path) -> Score:
    return Score.from_pretrained(folder)


def test_each_token_is_scored_where_it_alone_is_masked(score: Score, folder: Path, texts: list[str]) -> None:
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    some = [text[:25] for text in texts[2:60:8]]
    for text, found in zip(some, score.stream(some), strict=True):
        [ids] = score.tokenizer.encode([text])
        row = torch.tensor([0, *ids, 2])
        masked = row.repeat(len(ids), 1)
        places = torch.arange(len(ids))
        masked[places, places + 1] = score.tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(masked).logits[places, places + 1]
        expected = logits.double().log_softmax(dim=1)[places, torch.tensor(ids)].tolist()
        assert found.log_probabilities == pytest.approx(expected, abs=1e-5)
        assert found.pseudo_log_likelihood == pytest.approx(sum(expected), abs=1e-4)
        assert found.pseudo_perplexity == pytest.approx(math.exp(-sum(expected) / len(ids)), rel=1e-5)
        assert len(found.tokens) == len(ids)


def test_the_batch_size_does_not_change_a_score(score: Score) -> None:
    texts = ["Bonjour le monde", "a", "Guten Tag allerseits"]
    for small, large in zip(score.batch(texts, batch_tokens=5), score.batch(texts), strict=True):
        assert small.log_probabilities == pytest.approx(large.log_probabilities, abs=1e-5)


def test_an_empty_text_has_no_perplexity(score: Score) -> None:
    empty = score("")
    assert empty.pseudo_log_likelihood == 0
    assert math.isnan(empty.pseudo_perplexity)


def test_the_bundled_model_prefers_sense_to_nonsense() -> None:
    score = Score.from_pretrained("xlmr-tiny")
    sense, nonsense = score.batch(["I do not know what to do.", "what not to know I do do."])
    assert sense.pseudo_log_likelihood > nonsense.pseudo_log_likelihood
