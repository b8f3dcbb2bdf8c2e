"""The tokenizer against that of transformers on real text in 83 languages, line by line: ids and offsets.

Each line on which the two differ must be explained, and how many there are is asserted for each language. The reasons:

composition   SentencePiece's normalisation composes U+1025 U+102E to U+1026, say. The reference looks a cluster up only
              if it is shorter than 6 bytes, and so never composes the marks of most Indic scripts (3 bytes each); from
              a shorter cluster it takes the shortest match and drops the rest (an Arabic mark on a ligature).
tie           two segmentations of equal probability: with "ko" + "ko ko" and "ko ko" + "ko", rounding decides.
span          ids agree, but where several characters are composed to one at the end of a token (an accent, a hamza),
              the span of transformers ends before the last of them.

XLM-R was trained with SentencePiece itself (fairseq), so in all three SentencePiece's answer is the right one.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

import pytest
import sentencepiece
from tokenizers import Tokenizer

from xlmr_core.tokenizer import XLMRobertaTokenizer

NTREX_EXCEPTIONS = {
    "composition": {"bn": 2, "kn": 4, "ml": 2, "my": 197, "ne": 1, "si": 7, "ta": 2},
    "tie": {"ja": 1, "so": 1, "tl": 1},
    "span": {"fa": 1},
}
COMMON_VOICE_EXCEPTIONS = {
    "composition": {"ar": 1, "ml": 7, "si": 1, "ta": 3},
    "span": {"sk": 1, "ur": 5},
}


class Comparison:
    """Counts the lines on which our tokenizer and that of transformers differ, by reason and language."""

    def __init__(self, folder: Path, pipeline: Tokenizer, unigram: Tokenizer) -> None:
        self.tokenizer = XLMRobertaTokenizer(folder / "sentencepiece.bpe.model")
        self.spm = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
        self.reference = pipeline
        self.unigram = unigram
        self.lines = 0
        self.exceptions: dict[str, Counter[str]] = {}
        self.examples: dict[tuple[str, str], str] = {}

    def add(self, language: str, lines: Iterable[str]) -> None:
        for line in filter(None, lines):
            self.lines += 1
            reason = self.reason(line)
            if reason:
                self.exceptions.setdefault(reason, Counter())[language] += 1
                self.examples.setdefault((reason, language), line)

    def reason(self, line: str) -> str | None:
        """Why the two differ on a line; None if they do not. An unexplained difference fails."""
        tokens = self.tokenizer.tokenize(line)
        theirs = self.reference.encode(line, add_special_tokens=False)
        ids = [token.id for token in tokens]
        if ids != theirs.ids:
            normalized = self.spm.normalize(line).replace("▁", " ")
            same_normalization = self.unigram.encode(normalized, add_special_tokens=False).ids
            if ids != same_normalization:  # the same pieces in another order: the same probability
                assert sorted(ids) == sorted(same_normalization), line
                assert 3 not in ids, line
            return "tie" if same_normalization == theirs.ids else "composition"
        spans = [(token.start, token.end) for token in tokens]
        if spans == theirs.offsets:
            return None
        for (start, end), (their_start, their_end) in zip(spans, theirs.offsets, strict=True):
            assert start == their_start, line
            assert end == their_end or len(normalize("NFC", line[their_end - 1 : end])) == 1, line
        return "span"

    def table(self) -> str:
        total = sum(counts.total() for counts in self.exceptions.values())
        rows = [f"{self.lines} lines, {total} exceptions; the first of each kind:"]
        for (reason, language), line in sorted(self.examples.items()):
            rows.append(f"{reason:12} {language:8} {self.exceptions[reason][language]:4}  {line}")
        return "\n".join(rows)


@pytest.fixture
def comparison(shared: Path, pipeline: Tokenizer, unigram: Tokenizer) -> Comparison:
    return Comparison(shared / "tokenizer" / "xlm-roberta-base", pipeline, unigram)


def language_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.txt") if path.stem != "SOURCE_FILES")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")


def test_a_sample_of_every_language(comparison: Comparison, shared: Path) -> None:
    files = language_files(shared / "corpus" / "ntrex128_ccbysa4")
    assert len(files) == 83
    for path in files:
        comparison.add(path.stem, lines_of(path)[::80])
    assert comparison.lines == 2075
    assert comparison.exceptions == {"composition": {"my": 4}}, comparison.table()


@pytest.mark.slow
def test_every_line_of_ntrex(comparison: Comparison, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in language_files(shared / "corpus" / "ntrex128_ccbysa4"):
        comparison.add(path.stem, lines_of(path))
    with capsys.disabled():
        print(f"\nNTREX: {comparison.table()}")
    assert comparison.lines == 165751
    assert comparison.exceptions == NTREX_EXCEPTIONS


@pytest.mark.slow
def test_every_fifth_line_of_common_voice(
    comparison: Comparison, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in language_files(shared / "corpus" / "common_voice_cc0"):
        comparison.add(path.stem, lines_of(path)[::5])
    with capsys.disabled():
        print(f"\nCommon Voice: {comparison.table()}")
    assert comparison.lines == 137984
    assert comparison.exceptions == COMMON_VOICE_EXCEPTIONS
