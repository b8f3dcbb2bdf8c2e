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


def test_rows_are_full_and_consecutive_sentences_of_one_language(
    corpus: Corpus, tokenizer: XLMRobertaTokenizer
) -> None:
    batch = corpus.batch(torch.Generator().manual_seed(0), batch_size=50, max_tokens=24)
    assert batch.shape == (50, 24)
    streams = [[token for sentence in sentences * 2 for token in sentence] for sentences in corpus.sentences]
    texts = ["".join(f" {token}" for token in stream) + " " for stream in streams]
    for first, *rest in batch.tolist():
        assert first == tokenizer.bos_token_id
        row = "".join(f" {token}" for token in rest) + " "
        assert any(row in text for text in texts), "a row mixes languages, or leaves a sentence out"


def test_a_row_begins_with_a_sentence(corpus: Corpus) -> None:
    batch = corpus.batch(torch.Generator().manual_seed(0), batch_size=50, max_tokens=24)
    sentences = {tuple(sentence) for language in corpus.sentences for sentence in language}
    lengths = {len(sentence) for sentence in sentences}
    assert all(any(tuple(row[1 : 1 + n]) in sentences for n in lengths) for row in batch.tolist())


def test_a_short_text_fills_a_row_by_repetition(tmp_path: Path, tokenizer: XLMRobertaTokenizer) -> None:
    (tmp_path / "en.txt").write_text("cat\n", encoding="utf-8")
    corpus = Corpus([tmp_path / "en.txt"], tokenizer)
    [row] = corpus.batch(torch.Generator().manual_seed(0), 1, max_tokens=10).tolist()
    [[sentence]] = corpus.sentences
    assert row == [tokenizer.bos_token_id, *(sentence * 10)[:9]]


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
