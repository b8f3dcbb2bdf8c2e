"""The vocabulary that pre-training makes for itself."""

from pathlib import Path

import pytest

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.vocabulary import train_vocabulary


def test_it_has_the_size_asked_for_and_xlm_rs_numbering(tokenizer: XLMRobertaTokenizer) -> None:
    assert tokenizer.vocab_size == 57  # 55 pieces, <pad> and <mask>
    assert tokenizer.mask_token_id == 56
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]


def test_the_same_text_gives_the_same_bytes(corpus_files: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_vocabulary(corpus_files, tmp_path / name / "m.model", size=55)
    assert (tmp_path / "a" / "m.model").read_bytes() == (tmp_path / "b" / "m.model").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.model"]  # nothing temporary stays


def test_too_little_text_for_the_size_is_an_error(corpus_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot train a vocabulary of 5000 pieces"):
        train_vocabulary(corpus_files, tmp_path / "m.model", size=5000)
    assert not (tmp_path / "m.model").exists()
