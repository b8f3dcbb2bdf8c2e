"""Fixtures for all tests."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoint import write_checkpoint

from xlmr_core import XLMRobertaTokenizer
from xlmr_core.training.vocabulary import train_vocabulary

LINES = ("the cat sees the dog", "the dog sees the cat", "a bird sings in the tree", "кіт бачить пса", "पक्षी गाता है")

torch.set_num_threads(1)  # most tensors here are tiny: a second thread costs ten times what it saves
# Each pass of the garbage collector goes over the modules of torch and transformers: with the 700 new objects between
# two passes that Python starts with, they take a tenth of the suite's time.
gc.set_threshold(20_000)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that is not part of the project (tokenizer files, published tensors, corpora)."""
    folder = os.environ.get("XLMR_SHARED")
    if not folder:
        pytest.skip("XLMR_SHARED is not set: point it at the folder with tokenizer/, golden/ and corpus/")
    return Path(folder)


@pytest.fixture(scope="session")
def their_tokenizer(shared: Path) -> Any:
    """transformers' tokenizer of the published files, which takes seconds to load."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(shared / "tokenizer" / "xlm-roberta-base")


@pytest.fixture(autouse=True)
def _seeded() -> None:  # pyright: ignore[reportUnusedFunction]
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the key layout hf: random weights large enough to matter, and a vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("toy-checkpoint")
    text = folder / "lines.txt"
    text.write_text("\n".join(LINES * 20), encoding="utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(train_vocabulary([text], size=40))
    tokenizer = XLMRobertaTokenizer(folder / "sentencepiece.bpe.model", max_tokens=20)
    return write_checkpoint(folder, tokenizer, seed=0, initializer_range=0.3)
