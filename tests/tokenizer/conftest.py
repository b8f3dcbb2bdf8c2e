"""The published tokenizer of transformers, whose file takes a second to read."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers


@pytest.fixture(scope="session")
def pipeline(shared: Path) -> Tokenizer:
    """The tokenizer of tokenizer.json."""
    return Tokenizer.from_file(str(shared / "tokenizer" / "xlm-roberta-base" / "tokenizer.json"))


@pytest.fixture(scope="session")
def unigram(shared: Path) -> Tokenizer:
    """The same without its normalisation."""
    found = Tokenizer.from_file(str(shared / "tokenizer" / "xlm-roberta-base" / "tokenizer.json"))
    found.normalizer = normalizers.Sequence([])
    return found
