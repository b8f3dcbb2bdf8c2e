"""Tagging against transformers' pipeline."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xlmr_core.tasks import Entity, Tag
from xlmr_core.tasks.tag import _grouped, _with_most_context

KIND = "XLMRobertaForTokenClassification"
LABELS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(KIND, id2label=LABELS, label2id={name: i for i, name in LABELS.items()})


@pytest.fixture(scope="module")
def tag(folder: Path) -> Tag:
    return Tag.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path, make_pipeline: Callable[..., Any]) -> Any:
    return make_pipeline("token-classification", folder, KIND)


def same_words(tag: Tag, text: str) -> bool:
    """transformers takes other white space than U+0020 for the inside of a word, and a lone "▁" for a word."""
    pieces = [token.piece for token in tag.tokenizer.tokenize(text)]
    return all(c == " " or not c.isspace() for c in text) and "▁" not in pieces


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_entities_are_those_of_transformers(tag: Tag, theirs: Any, texts: list[str], aggregation: str) -> None:
    chosen = [text for text in texts if text]
    if aggregation not in ("none", "simple"):
        chosen = [text for text in chosen if same_words(tag, text)]
        assert len(chosen) > 250
    ours = list(tag.stream(chosen, aggregation=aggregation))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        expected = theirs(chosen, aggregation_strategy=aggregation)
    for text, found, wanted in zip(chosen, ours, expected, strict=True):
        names = [(x.label, x.start, x.end) for x in found]
        assert names == [(x.get("entity") or x["entity_group"], x["start"], x["end"]) for x in wanted], text
        assert [x.score for x in found] == pytest.approx([x["score"] for x in wanted], abs=1e-6)
        assert all(x.word == text[x.start : x.end] for x in found)
        if aggregation == "none":
            assert [x.index for x in found] == [x["index"] for x in wanted]
        assert [set(x.as_dict()) for x in found] == [set(x) for x in wanted]


def words(tag: Tag, text: str) -> list[str]:
    tokens = tag.tokenizer.tokenize(text)
    return ["".join(tokens[i].piece for i in word) for word in tag._words(text, tokens)]


def test_a_lone_space_piece_belongs_to_the_word_after_it(tag: Tag) -> None:
    assert words(tag, "문장 ไทยไม่มี") == ["▁문장", "▁ไทยไม่มี"]


def test_white_space_of_every_kind_parts_words(tag: Tag) -> None:
    assert words(tag, "one\ntwo\u3000three") == ["▁one", "▁two", "▁three"]


def test_a_joiner_does_not_part_a_word(tag: Tag) -> None:
    """SentencePiece normalises U+200C, which Persian writes inside of words, to a space."""
    assert words(tag, "می\u200cگوید که") == ["▁می▁گوید", "▁که"]


def test_a_long_text_is_read_in_windows(tag: Tag) -> None:
    """Each token of a text of three windows has the probabilities of the window that shows most around it."""
    text = " ".join(f"word{i}" for i in range(500))
    entities = tag(text, aggregation="none", ignore=())
    count = len(tag.tokenizer.tokenize(text))
    assert count > 2 * tag.max_tokens
    assert [x.index for x in entities] == list(range(1, count + 1))
    with pytest.raises(ValueError, match="overlap must lie between 0 and the 510 tokens of a window, not be 510"):
        tag(text, overlap=510)


def test_the_window_with_most_context_is_chosen() -> None:
    windows = [range(4), range(2, 6)]
    chosen = _with_most_context(windows, [torch.zeros(4, 1), torch.ones(4, 1)])
    assert chosen[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_iobes_marks_end_entities() -> None:
    labels = ["B-PER", "E-PER", "S-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC"]
    pieces = [Entity(label, 0.5, "x", i, i + 1, i + 1) for i, label in enumerate(labels)]
    assert [(x.label, x.start, x.end) for x in _grouped(pieces, "abcdefg", iobes=True)] == [
        ("PER", 0, 2),
        ("PER", 2, 3),
        ("PER", 3, 4),
        ("LOC", 4, 7),
    ]


def test_an_empty_text_has_no_entities(tag: Tag) -> None:
    assert tag.batch(["", "  "]) == [[], []]


def test_an_unknown_aggregation_is_refused(tag: Tag) -> None:
    with pytest.raises(ValueError, match="aggregation 'mean' is not one of none, simple, first, average, max"):
        tag("a", aggregation="mean")
