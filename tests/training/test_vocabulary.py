"""The vocabulary that pre-training trains."""

from pathlib import Path

import pytest

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.vocabulary import train_vocabulary


def test_it_has_the_given_size_and_the_ids_of_xlm_r(tokenizer: XLMRobertaTokenizer) -> None:
    assert tokenizer.vocab_size == 57  # 55 pieces, <pad> and <mask>
    assert tokenizer.mask_token_id == 56
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]


def test_the_same_text_gives_the_same_bytes(corpus_files: list[Path]) -> None:
    assert train_vocabulary(corpus_files, size=55) == train_vocabulary(corpus_files, size=55)


def test_the_error_for_too_little_text_gives_the_limit(corpus_files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 5000 pieces on this text: it is enough for \d+ at") as raised:
        train_vocabulary(corpus_files, size=5000)
    limit = int(str(raised.value).split("enough for ")[1].split()[0])
    assert train_vocabulary(corpus_files, size=limit)


def test_the_error_for_too_many_characters_gives_the_limit(corpus_files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"of 5 pieces on this text: its characters need \d+\. Raise") as raised:
        train_vocabulary(corpus_files, size=5)
    limit = int(str(raised.value).split("characters need ")[1].split(".")[0])
    assert train_vocabulary(corpus_files, size=limit)
