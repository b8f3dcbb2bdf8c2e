"""Checkpoints for the tasks: written by transformers with random weights, real vocabulary, few and narrow layers."""

import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from xlmr_core import XLMRobertaTokenizer

ODD_TEXTS = [
    "",
    " ",
    "a",
    "Hello,   world!  ",
    "naïve café, Ångström; e\u0301 and n\u0303",  # combining accents
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag, thumbs 👍🏽",  # joined emoji
    "שלום עולם, ימין לשמאל",
    "مرحبا بالعالم، من اليمين",
    "Mixed עברית and русский und 日本語 text",
    "ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ",
    "line\nbreak\ttab\u00a0nbsp\u3000ideographic",
    "한국어 문장입니다. ไทยไม่มีช่องว่าง ខ្មែរ",
    "word " * 60,
]


@pytest.fixture(scope="session")
def texts(shared: Path, their_tokenizer: Any) -> list[str]:
    """500 texts in 83 languages, and odd ones, that transformers splits into the same tokens (docs list the others)."""
    found = list(ODD_TEXTS)
    for file in sorted((shared / "corpus" / "ntrex128_ccbysa4").glob("*.txt")):
        found += file.read_text(encoding="utf-8").splitlines()[3:10]
    ours = XLMRobertaTokenizer.from_pretrained(shared / "tokenizer" / "xlm-roberta-base")
    theirs = their_tokenizer(found, add_special_tokens=False, return_offsets_mapping=True)
    same = [
        text
        for text, ids, offsets in zip(found, theirs["input_ids"], theirs["offset_mapping"], strict=True)
        if [(token.id, token.start, token.end) for token in ours.tokenize(text)]
        == [(number, *place) for number, place in zip(ids, offsets, strict=True)]
    ]
    assert [token.id for text in found for token in ours.tokenize(text)] == list(chain(*ours.encode(found)))
    assert len(same) >= max(500, 0.98 * len(found))
    return same


@pytest.fixture(scope="session")
def make_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a checkpoint with the transformers class of that name, and returns its folder."""

    def make(kind: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(sum(map(ord, kind)))
        sizes = {
            "vocab_size": 250002,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "initializer_range": 0.3,
        }
        model = getattr(transformers, kind)(transformers.XLMRobertaConfig(**(sizes | config)))
        model.save_pretrained(folder)
        for name in ("sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(shared / "tokenizer" / "xlm-roberta-base" / name, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def make_pipeline(their_tokenizer: Any) -> Callable[..., Any]:
    """transformers' pipeline of a task for a folder."""

    def make(task: str, folder: Path, kind: str) -> Any:
        model = getattr(transformers, kind).from_pretrained(folder)
        return transformers.pipeline(task, model=model, tokenizer=their_tokenizer, device="cpu")  # type: ignore[call-overload]

    return make
