"""Corpus files to batches."""

from pathlib import Path

import pytest
import torch

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.corpus import Corpus


@pytest.fixture(scope="module")
def corpus(corpus_files: list[Path], tokenizer: XLMRobertaTokenizer) -> Corpus:
    return Corpus(corpus_files, tokenizer)


def test_small_languages_are_seen_more_often_than_their_share(corpus: Corpus) -> None:
    assert corpus.languages == ["en", "uk"]
    expected = torch.tensor([400.0, 100.0]) ** 0.3
    assert torch.allclose(corpus.probabilities, expected / expected.sum())


def test_rows_are_whole_consecutive_sentences_of_one_language(corpus: Corpus, tokenizer: XLMRobertaTokenizer) -> None:
    batch = corpus.batch(torch.Generator().manual_seed(0), batch_size=50, max_tokens=24)
    assert batch.shape[1] <= 24
    text = {name: corpus.sentences[i] for i, name in enumerate(corpus.languages)}
    for row in batch.tolist():
        ids = [token for token in row if token != tokenizer.pad_token_id]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        parts: list[list[int]] = [[]]
        for token in ids[1:]:
            parts[-1].append(token)
            if token == tokenizer.eos_token_id:
                parts.append([])
        assert any(all(part in sentences for part in parts[:-1]) for sentences in text.values()), (
            "a row mixes languages or cuts a sentence"
        )


def test_a_row_holds_as_many_sentences_as_fit(corpus: Corpus, tokenizer: XLMRobertaTokenizer) -> None:
    batch = corpus.batch(torch.Generator().manual_seed(0), batch_size=50, max_tokens=24)
    longest = max(len(sentence) for sentences in corpus.sentences for sentence in sentences)
    used = (batch != tokenizer.pad_token_id).sum(dim=1)
    assert (used > 24 - longest).all()


def test_a_sentence_longer_than_a_row_is_cut_and_still_ends(tmp_path: Path, tokenizer: XLMRobertaTokenizer) -> None:
    (tmp_path / "en.txt").write_text("cat sees dog " * 30 + "\n", encoding="utf-8")
    batch = Corpus([tmp_path / "en.txt"], tokenizer).batch(torch.Generator().manual_seed(0), 2, max_tokens=10)
    assert batch.shape == (2, 10)
    assert (batch[:, -1] == tokenizer.eos_token_id).all()


def test_a_batch_depends_only_on_its_generator(corpus: Corpus) -> None:
    first = corpus.batch(torch.Generator().manual_seed(3), 8, 24)
    corpus.batch(torch.Generator().manual_seed(4), 8, 24)
    assert torch.equal(first, corpus.batch(torch.Generator().manual_seed(3), 8, 24))


def test_special_tokens_in_a_corpus_are_text(tmp_path: Path, tokenizer: XLMRobertaTokenizer) -> None:
    (tmp_path / "en.txt").write_text("cat <mask> dog\n", encoding="utf-8")
    [[ids]] = Corpus([tmp_path / "en.txt"], tokenizer).sentences
    assert tokenizer.mask_token_id not in ids


def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, tokenizer: XLMRobertaTokenizer) -> None:
    (tmp_path / "xx.txt").write_text("\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"xx\.txt holds no sentence"):
        Corpus([tmp_path / "xx.txt"], tokenizer)
