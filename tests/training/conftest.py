"""A corpus of the two toy languages, and a vocabulary of it."""

from pathlib import Path

import pytest
from small_checkpoint import write_checkpoint
from toy_language import sentences

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.vocabulary import train_vocabulary


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    for language, count in (("en", 400), ("uk", 100)):
        (folder / f"{language}.txt").write_text("\n".join(sentences(language, count, seed=1)) + "\n", encoding="utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def held_out_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("held-out")
    for language in ("en", "uk"):
        (folder / f"{language}.txt").write_text("\n".join(sentences(language, 60, seed=2)) + "\n", encoding="utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def tokenizer(corpus_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> XLMRobertaTokenizer:
    model_file = tmp_path_factory.mktemp("vocabulary") / "sentencepiece.bpe.model"
    model_file.write_bytes(train_vocabulary(corpus_files, size=55))
    return XLMRobertaTokenizer(model_file, max_tokens=24)


@pytest.fixture(scope="session")
def checkpoint(tokenizer: XLMRobertaTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder with random weights and an LM head, to be fine-tuned."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, tokenizer, seed=5, initializer_range=0.2, max_position_embeddings=50)
