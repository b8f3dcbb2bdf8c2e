"""Normalisations of a text that other projects have in place of SentencePiece's, each a fault of a pipeline."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from xlmr_core.tokenizer import XLMRobertaTokenizer

Normalization = Literal["none", "spaces kept", "nfkc", "graphemes"]

# Fields of SentencePiece's ModelProto that come a second time replace the first: 3 is normalizer_spec, in it 2 is the
# table of replacements and 4 is remove_extra_whitespaces.
WITHOUT_TABLE = b"\x1a\x02\x12\x00"
SPACES_KEPT = b"\x1a\x02\x20\x00"
# What transformers.js does in place of the table: these characters go, these are spaces, the full-width tilde stays.
REMOVED = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]")
SPACES = re.compile("[\t\n\f\r\xa0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u2581\u3000\ufeff\ufffd]")
TILDE = "\uff5e"
# tokenizers looks up a grapheme with fewer bytes of UTF-8 as a whole, any other one character at a time.
WHOLE_BELOW = 6
MARKS = ("Mn", "Mc", "Me")
CONTROLS = ("Cc", "Cf", "Zl", "Zp")
JOINERS = "\u200c\u200d"
KANA_MARKS = "\uff9e\uff9f"


def encoder(vocabulary: Path, normalization: Normalization) -> Callable[[str], list[int]]:
    """The ids of a text, without special tokens, under another normalisation than the vocabulary file's own."""
    from sentencepiece import SentencePieceProcessor

    change = SPACES_KEPT if normalization == "spaces kept" else WITHOUT_TABLE
    changed = SentencePieceProcessor(model_proto=vocabulary.read_bytes() + change)
    unknown: int = changed.unk_id()
    normalize: Callable[[str], str] = str  # the text as it is
    if normalization == "nfkc":
        normalize = _nfkc
    elif normalization == "graphemes":
        normalize = _by_graphemes(vocabulary)

    def encode(text: str) -> list[int]:
        numbers: list[int] = changed.encode(normalize(text), out_type=int)
        return [XLMRobertaTokenizer.unk_token_id if number == unknown else number + 1 for number in numbers]

    return encode


def _nfkc(text: str) -> str:
    """NFKC with the exceptions of transformers.js (src/normalizers.js, Precompiled)."""
    cleaned = SPACES.sub(" ", REMOVED.sub("", text))
    return TILDE.join(unicodedata.normalize("NFKC", part) for part in cleaned.split(TILDE))


def _by_graphemes(vocabulary: Path) -> Callable[[str], str]:
    """As in tokenizers (src/normalizers/precompiled.rs): SentencePiece's table, but for each grapheme by itself."""
    from sentencepiece import SentencePieceNormalizer

    table = SentencePieceNormalizer(
        model_proto=vocabulary.read_bytes(),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )

    @cache
    def replaced(text: str) -> str:
        return table.normalize(text)

    @cache
    def normalized(grapheme: str) -> str:
        if len(grapheme.encode()) < WHOLE_BELOW:
            for end in range(1, len(grapheme) + 1):
                found = replaced(grapheme[:end])
                if found != grapheme[0] + replaced(grapheme[1:end]):  # the table has this beginning: the shortest wins,
                    return found  # and what comes after it is lost
        return "".join(map(replaced, grapheme))

    # U+0085 is white space to tokenizers, and an unknown character to SentencePiece.
    return lambda text: "".join(map(normalized, _graphemes(text))).replace("\x85", " ")


def _graphemes(text: str) -> Iterator[str]:
    """Each character with the marks after it. What else Unicode joins, such as jamo, has at least 6 bytes."""
    start = 0
    for place in range(1, len(text)):
        if not (_is_mark(text[place]) and _takes_marks(text[start])):
            yield text[start:place]
            start = place
    yield text[start:]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in MARKS or character in JOINERS + KANA_MARKS


def _takes_marks(character: str) -> bool:
    return unicodedata.category(character) not in CONTROLS or character in JOINERS
