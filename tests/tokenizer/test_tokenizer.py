"""The tokenizer against published ids, transformers and SentencePiece itself.

Every check that needs no published vocabulary runs on a small one, trained here on a few lines; where XLMR_SHARED is
set, the same checks run on the published one, too. The long comparisons are in test_tokenizer_corpus.py.
"""

import copy
import io
import json
import math
import pickle
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.tokenizer import Token, XLMRobertaTokenizer

LINES = """The quick brown fox jumps over the lazy dog, and the dog lives in the garden house.
My dog is cute and this is a test sentence for the tokenizer of a language model.
Le renard brun saute par-dessus le chien paresseux. Les œuvres du café sont déjà prêtes.
Der schnelle braune Fuchs springt über den faulen Hund. Öl, Äpfel und Straße.
Быстрая коричневая лиса перепрыгивает через ленивую собаку.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.
नमस्ते दुनिया, यह एक परीक्षण वाक्य है।
你好，世界。这是一个测试句子。
こんにちは世界。これはテストです。
مرحبا بالعالم، هذه جملة اختبار."""

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# Text and ids as published: fairseq examples/xlmr/README.md (the first five), the tests of transformers
# (@046eae0032b2), onnxruntime-extensions (@319f8d2c), keras-hub and rust-tokenizers (@cf88ec4f).
PUBLISHED_IDS: list[tuple[str, list[int]]] = [
    ("Hello world!", [0, 35378, 8999, 38, 2]),
    ("你好，世界", [0, 6, 124084, 4, 3221, 2]),
    ("नमस्ते दुनिया", [0, 68700, 97883, 29405, 2]),
    ("مرحبا بالعالم", [0, 665, 193478, 258, 1705, 77796, 2]),
    ("Bonjour le monde", [0, 84602, 95, 11146, 2]),
    ("Hello World!", [0, 35378, 6661, 38, 2]),
    (
        "The dog is cute and lives in the garden house",
        [0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2],
    ),
    ("My dog is cute", [0, 2646, 10269, 83, 99942, 2]),
    ("This is a test sentence", [0, 3293, 83, 10, 3034, 149357, 2]),
    ("The quick brown fox.", [0, 581, 63773, 119455, 6, 147797, 5, 2]),
    (
        "I like walking my cute dog\n and\x17 then, 生活的真谛是  \t\t\t\t \n\n61",
        [0, 87, 1884, 122395, 759, 99942, 10269, 136, 7068, 4, 6, 62668, 5364, 245875, 354, 11716, 2],
    ),
    ("…", [0, 153, 2]),
    (
        "This is a sample sentence to be tokénized",
        [0, 3293, 83, 10, 121413, 149357, 47, 186, 25636, 2746, 29367, 2],
    ),
    (
        "Wondering how this will get tokenized 🤔 ?",
        [0, 76648, 214, 3642, 903, 1221, 2046, 47, 1098, 29367, 6, 243691, 705, 2],
    ),
    (
        "İs th!s 𩸽 Ϻ Šœ Ugljšić dấu nặng",
        [0, 63770, 5675, 38, 7, 6, 3, 6, 3, 3608, 52908, 345, 11016, 170, 36277, 39973, 55315, 2],
    ),
    (
        'This is a very long text with a lot of weird characters, such as: . , ~ ? ( ) " [ ] ! : - . Also we will add '
        "words that should not exsist and be tokenized to <unk>, such as saoneuhaoesuth",
        [
            *[0, 3293, 83, 10, 4552, 4989, 7986, 678, 10, 5915, 111, 179459, 124850, 4, 6044, 237, 12, 6, 5, 6, 4],
            *[6780, 705, 15, 1388, 44, 378, 10114, 711, 152, 20, 6, 5, 22376, 642, 1221, 15190, 34153, 450, 5608],
            *[959, 1119, 57702, 136, 186, 47, 1098, 29367, 47, 3, 6, 4, 6044, 237, 6284, 50901, 528, 31, 90, 34],
            *[927, 2],
        ],
    ),
]


def train_vocabulary(path: Path, lines: str = LINES, **options: Any) -> Path:
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "vocab_size": 300,
        "hard_vocab_limit": False,
        "character_coverage": 1.0,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines.splitlines()), model_writer=model, **(defaults | options)
    )
    path.write_bytes(model.getvalue())
    return path


def varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def protobuf_field(message: bytes, number: int) -> bytes:
    """The first length-delimited field with this number, so that no protobuf library is needed."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        kind = tag & 7
        if kind == 0:
            _, position = varint(message, position)
        elif kind == 2:
            length, position = varint(message, position)
            if tag >> 3 == number:
                return message[position : position + length]
            position += length
        else:
            position += {1: 8, 5: 4}[kind]
    raise LookupError(number)


def reference_for(model_file: Path) -> Tokenizer:
    """What transformers builds for XLM-R from a SentencePiece model, built here by hand."""
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(3, len(spm))]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(name, 0.0) for name in specials] + pieces + [("<mask>", 0.0)]
    reference = Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    charsmap = protobuf_field(protobuf_field(model_file.read_bytes(), 3), 2)  # normalizer_spec.precompiled_charsmap
    reference.normalizer = tokenizers.normalizers.Precompiled(charsmap)
    split = tokenizers.pre_tokenizers
    reference.pre_tokenizer = split.Sequence([split.WhitespaceSplit(), split.Metaspace()])
    reference.decoder = tokenizers.decoders.Metaspace()
    reference.add_special_tokens([*specials, "<mask>"])
    reference.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return reference


@dataclass
class Setup:
    """A vocabulary in three tokenizers: ours, that of transformers, and SentencePiece itself."""

    tokenizer: XLMRobertaTokenizer
    reference: Tokenizer
    unigram: Tokenizer  # that of transformers without its normalisation
    spm: sentencepiece.SentencePieceProcessor
    model_file: Path

    def score(self, pieces: list[str]) -> float:
        """The log probability SentencePiece maximises; an unknown character costs 10 more than the rarest piece."""
        rarest = min(self.spm.get_score(i) for i in (3, len(self.spm) - 1))
        known = [(piece, self.spm.piece_to_id(piece)) for piece in pieces if piece != "<unk>"]
        return math.fsum(self.spm.get_score(i) if i else (rarest - 10) * len(piece) for piece, i in known)


def setup_for(model_file: Path, reference: Tokenizer, unigram: Tokenizer) -> Setup:
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    return Setup(XLMRobertaTokenizer(model_file), reference, unigram, spm, model_file)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    model_file = train_vocabulary(tmp_path_factory.mktemp("vocabulary") / "sentencepiece.bpe.model")
    theirs = reference_for(model_file)
    unigram = Tokenizer.from_str(theirs.to_str())
    unigram.normalizer = tokenizers.normalizers.Sequence([])
    return setup_for(model_file, theirs, unigram)


@pytest.fixture(scope="session")
def published(shared: Path, pipeline: Tokenizer, unigram: Tokenizer) -> Setup:
    model_file = shared / "tokenizer" / "xlm-roberta-base" / "sentencepiece.bpe.model"
    return setup_for(model_file, pipeline, unigram)


@pytest.fixture(scope="session", params=["small", "published"])
def both(request: pytest.FixtureRequest) -> Setup:
    return request.getfixturevalue(request.param)


def ids_of(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def spans_of(tokens: list[Token]) -> list[tuple[int, int]]:
    return [(token.start, token.end) for token in tokens]


# ---- Ids ----


@pytest.mark.parametrize(("text", "ids"), PUBLISHED_IDS)
def test_published_ids(published: Setup, text: str, ids: list[int]) -> None:
    assert published.tokenizer(text).input_ids[0].tolist() == ids


def test_published_ids_are_those_of_the_published_file(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "published.json").read_text(encoding="utf-8"))
    assert golden["tokenization"] == [[text, ids] for text, ids in PUBLISHED_IDS]


def test_published_numbering(published: Setup) -> None:
    tokenizer = published.tokenizer
    assert tokenizer.vocab_size == 250002
    assert tokenizer.mask_token_id == 250001
    assert tokenizer.max_tokens == 512
    reference = published.reference.get_vocab()
    assert all(reference[tokenizer.id_to_token(i)] == i for i in range(tokenizer.vocab_size))


def test_numbering(small: Setup) -> None:
    tokenizer, spm = small.tokenizer, small.spm
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    ids = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert [tokenizer.id_to_token(i) for i in ids] == names
    assert [tokenizer.token_to_id(name) for name in names] == ids
    for spm_id in range(3, len(spm)):
        piece = spm.id_to_piece(spm_id)
        assert tokenizer.id_to_token(spm_id + 1) == piece
        assert tokenizer.token_to_id(piece) == spm_id + 1
    assert tokenizer.mask_token_id == tokenizer.token_to_id("<mask>") == len(spm) + 1 == tokenizer.vocab_size - 1
    assert tokenizer.id_to_token(tokenizer.mask_token_id) == "<mask>"
    assert tokenizer.token_to_id("no such piece") == 3


@pytest.mark.parametrize("beyond", [-1, 0])
def test_an_id_outside_the_vocabulary(small: Setup, beyond: int) -> None:
    wrong = -1 if beyond else small.tokenizer.vocab_size
    with pytest.raises(ValueError, match=rf"id {wrong} is not in the vocabulary: expected 0\.\.\d+"):
        small.tokenizer.id_to_token(wrong)
    with pytest.raises(ValueError, match=f"id {wrong} "):
        small.tokenizer.decode([0, wrong, 2])


# ---- Batches ----


def test_a_batch(both: Setup) -> None:
    texts = ["The quick brown fox", "", "dog"]
    batch = both.tokenizer(texts)
    rows = [both.reference.encode(text) for text in texts]
    width = max(len(row.ids) for row in rows)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert batch.input_ids.tolist() == [row.ids + [1] * (width - len(row.ids)) for row in rows]
    assert batch.attention_mask.tolist() == [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]
    assert batch.offsets == [row.offsets for row in rows]
    assert batch.sequence_ids == [row.sequence_ids for row in rows]


def test_encoding_one_text_at_a_time_takes_no_longer_than_a_list(small: Setup) -> None:
    """SentencePiece starts threads for a list, also for a list of one text."""
    texts = ["the cat sees a dog"] * 300

    def seconds(lists: list[list[str]]) -> float:
        start = time.perf_counter()
        for some in lists:
            small.tokenizer.encode(some)
        return time.perf_counter() - start

    one_by_one = min(seconds([[text] for text in texts]) for _ in range(5))
    together = min(seconds([texts]) for _ in range(5))
    assert one_by_one < 8 * together


def test_a_batch_of_pairs(both: Setup) -> None:
    texts, pairs = ["My dog", "The fox"], ["is cute", "and the lazy dog"]
    batch = both.tokenizer(texts, pairs)
    rows = [both.reference.encode(text, pair) for text, pair in zip(texts, pairs, strict=True)]
    width = max(len(row.ids) for row in rows)
    assert batch.input_ids.tolist() == [row.ids + [1] * (width - len(row.ids)) for row in rows]
    assert batch.offsets == [row.offsets for row in rows]
    assert batch.sequence_ids == [row.sequence_ids for row in rows]


def test_a_string_is_a_batch_of_one(small: Setup) -> None:
    assert torch.equal(small.tokenizer("dog").input_ids, small.tokenizer(["dog"]).input_ids)
    assert torch.equal(small.tokenizer("dog", "fox").input_ids, small.tokenizer(("dog",), ("fox",)).input_ids)


def test_a_pad_token_in_the_text_is_a_real_token(small: Setup) -> None:
    batch = small.tokenizer(["<pad>", "The dog is here"])
    assert batch.input_ids[0, 1:3].tolist() == [1, 2]
    assert batch.attention_mask[0].sum() == 3


def test_a_batch_unpacks_into_a_model_call(small: Setup) -> None:
    batch = small.tokenizer(["dog", "the dog"])

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return input_ids, attention_mask

    input_ids, attention_mask = model(**batch)
    assert input_ids is batch.input_ids
    assert attention_mask is batch.attention_mask
    with pytest.raises(KeyError):
        batch["offsets"]


def test_a_batch_moves_to_a_device(small: Setup) -> None:
    batch = small.tokenizer("dog")
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.input_ids, moved.attention_mask)} == {"meta"}
    assert batch.input_ids.device.type == "cpu"
    assert moved.offsets == batch.offsets


# ---- Truncation ----


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [2, 3, 7, 100])
def test_truncation(both: Setup, side: Literal["left", "right"], max_tokens: int) -> None:
    text = "The quick brown fox jumps over the lazy dog"
    both.reference.enable_truncation(max_tokens, direction=side)
    expected = both.reference.encode(text)
    both.reference.no_truncation()
    batch = both.tokenizer(text, truncation=side, max_tokens=max_tokens)
    assert batch.input_ids[0].tolist() == expected.ids
    assert batch.offsets[0] == expected.offsets
    if side == "right":
        assert torch.equal(batch.input_ids, both.tokenizer(text, truncation=True, max_tokens=max_tokens).input_ids)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", [(1, 12), (12, 1), (5, 6), (6, 5), (6, 6), (0, 9), (9, 0), (20, 20)])
def test_truncation_of_pairs(both: Setup, side: Literal["left", "right"], lengths: tuple[int, int]) -> None:
    text, pair = ("dog " * length for length in lengths)
    for max_tokens in range(4, 20):
        both.reference.enable_truncation(max_tokens, strategy="longest_first", direction=side)
        expected = both.reference.encode(text, pair)
        both.reference.no_truncation()
        batch = both.tokenizer(text, pair, truncation=side, max_tokens=max_tokens)
        assert batch.input_ids[0].tolist() == expected.ids
        assert batch.offsets[0] == expected.offsets
        assert batch.sequence_ids[0] == expected.sequence_ids


def test_a_text_over_the_limit(small: Setup) -> None:
    assert small.tokenizer("dog " * 510).input_ids.shape == (1, 512)
    with pytest.raises(ValueError, match=r"texts\[1\] has 513 tokens.* at most 512 fit: pass truncation=True") as error:
        small.tokenizer(["dog", "dog " * 511])
    assert "'left'" in str(error.value)
    with pytest.raises(ValueError, match=r"texts\[0\] and its pair have 8 tokens, the 4 special .* at most 7 fit"):
        small.tokenizer("dog dog", "dog dog", max_tokens=7)


def test_a_limit_that_leaves_no_room(small: Setup) -> None:
    assert small.tokenizer("dog", truncation=True, max_tokens=2).input_ids.tolist() == [[0, 2]]
    with pytest.raises(ValueError, match="max_tokens 1 leaves no room for the 2 special tokens"):
        small.tokenizer("dog", truncation=True, max_tokens=1)
    with pytest.raises(ValueError, match="max_tokens 3 leaves no room for the 4 special tokens"):
        small.tokenizer("dog", "dog", truncation=True, max_tokens=3)


def test_an_unknown_side(small: Setup) -> None:
    with pytest.raises(ValueError, match="truncation must be False, True, 'right' or 'left', not 'longest_first'"):
        small.tokenizer("dog", truncation="longest_first")  # pyright: ignore[reportArgumentType]


# ---- Special tokens in the text ----

SPECIAL_CASES = [
    "<mask>",
    "The <mask> is cute",
    "The<mask>is cute",
    "  <mask>  <mask>.<mask>",
    "<s> dog</s>dog <unk> <pad>x",
    "<mask><mask></s></s>",
    "<<mask>> < mask > <MASK> &lt;mask&gt; <s",
]


@pytest.mark.parametrize("text", SPECIAL_CASES)
def test_special_tokens_in_the_text(both: Setup, text: str) -> None:
    ours, reference = both.tokenizer(text), both.reference.encode(text)
    assert ours.input_ids[0].tolist() == reference.ids
    assert ours.offsets[0] == reference.offsets


def test_mask_swallows_the_space_on_its_left(both: Setup) -> None:
    spaced, tight = both.tokenizer("The <mask>"), both.tokenizer("The<mask>")
    assert torch.equal(spaced.input_ids, tight.input_ids)
    assert both.tokenizer.decode(spaced.input_ids[0]) == "<s> The<mask></s>"


@pytest.mark.parametrize("text", SPECIAL_CASES)
def test_special_tokens_as_plain_text(both: Setup, text: str) -> None:
    tokens = both.tokenizer.tokenize(text, specials_in_text=False)
    assert [token.piece for token in tokens] == both.spm.encode(text, out_type=str)
    assert {0, 1, 2, both.tokenizer.mask_token_id}.isdisjoint(ids_of(tokens))
    assert both.tokenizer(text, specials_in_text=False).input_ids[0, 1:-1].tolist() == ids_of(tokens)
    assert both.tokenizer.explain(text, specials_in_text=False).tokens[1:-1] == tokens


def test_some_special_tokens_in_the_text(both: Setup) -> None:
    tokens = both.tokenizer.tokenize("a <pad> <mask></s>", specials_in_text=["<mask>", "</s>"])
    assert [token.piece for token in tokens if token.spm_id is None] == ["<mask>", "</s>"]
    assert both.tokenizer.tokenize("<mask>", specials_in_text=[]) == both.tokenizer.tokenize(
        "<mask>", specials_in_text=False
    )
    with pytest.raises(ValueError, match="specials_in_text lists 'mask'; the special tokens are <s>, <pad>"):
        both.tokenizer.tokenize("<mask>", specials_in_text=["<mask>", "mask"])


def test_unk_as_plain_text_has_fairseqs_ids(published: Setup) -> None:
    assert ids_of(published.tokenizer.tokenize("to <unk>", specials_in_text=False)) == [47, 4426, 3678, 2740]


def test_plain_text_cannot_become_a_special_token(tmp_path: Path) -> None:
    # No piece of this vocabulary holds <, s or >: SentencePiece fuses the three unknown characters to one piece.
    tokenizer = XLMRobertaTokenizer(train_vocabulary(tmp_path / "abc.model", "abc abd bcd", vocab_size=9))
    tokens = tokenizer.tokenize("<s>", specials_in_text=False)
    assert tokens[-1] == Token("<s>", 0, tokenizer.unk_token_id, 0, 3)


# ---- Offsets ----


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("The dog", ["The", "dog"]),
        ("  The \t\n dog  ", ["The", "dog"]),
        ("The\u3000dog\u200bfox", ["The", "dog", "fox"]),
        ("The▁dog", ["The", "dog"]),  # U+2581 itself is a space to SentencePiece
        ("ﬁ dog", ["ﬁ", "dog"]),  # one character to two
        ("cafe\u0301 dog", ["cafe\u0301", "dog"]),  # two characters to one: the accent belongs to the word
        ("dog\x17 The\x17", ["dog", "The"]),  # dropped characters belong to no token
        ("\x17dog", ["dog"]),
        ("The<mask>dog", ["The", "<mask>", "dog"]),
        ("𩸽𩸽 dog", ["𩸽𩸽", "dog"]),
    ],
)
def test_words_and_the_tokens_that_cover_them(both: Setup, text: str, covered: list[str]) -> None:
    words: list[tuple[int, int]] = []
    for token in both.tokenizer.tokenize(text):
        if token.piece.startswith("▁") or token.spm_id is None or not words:
            words.append((token.start, token.end))
        else:
            words[-1] = (min(words[-1][0], token.start), max(words[-1][1], token.end))
    assert [text[start:end] for start, end in words] == covered


def test_pieces_of_one_expanded_character_share_its_place(published: Setup) -> None:
    tokens = published.tokenizer.tokenize("x ㍿ ﷺ")  # "corporation", and a whole Arabic phrase
    assert [token.piece for token in tokens] == ["▁x", "▁", "株式会社", "▁صلى", "▁الله", "▁عليه", "▁وسلم"]
    assert spans_of(tokens) == [(0, 1), (2, 3), (2, 3), (4, 5), (4, 5), (4, 5), (4, 5)]


# ---- Random text ----

ALPHABET = st.one_of(
    st.characters(codec="utf-8", exclude_characters="\x85"),  # every character but one: see test_next_line
    st.sampled_from("The quick brown fox<>/'. \t\n▁éœßдиκα你世नमस्ते"),
    st.characters(categories=["Mn", "Mc", "Lm", "Cc", "Zs"], exclude_characters="\x85"),
    st.sampled_from(["<mask>", "<s>", "</s>", "<unk>", "<pad>", "ဦး", "ගේ", "e\u0302\u0301", "dog "]),
)
TEXTS = st.lists(ALPHABET, max_size=30).map("".join)


def normalized(setup: Setup, text: str) -> str:
    """The text as SentencePiece normalises it, special tokens unchanged."""
    parts = re.split("(<s>|<pad>|</s>|<unk>|<mask>)", text)
    return "".join(p if i % 2 else setup.spm.normalize(p).replace("▁", " ") for i, p in enumerate(parts))


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_any_text_gives_the_ids_of_transformers_for_the_normalised_text(both: Setup, text: str) -> None:
    tokens = both.tokenizer.tokenize(text)
    reference = both.unigram.encode(normalized(both, text), add_special_tokens=False)
    if ids_of(tokens) != reference.ids:  # two segmentations of equal probability: either is right
        ours = [token.piece for token in tokens if token.spm_id is not None]
        theirs = [token for token in reference.tokens if token not in SPECIALS]
        assert "".join(ours) == "".join(theirs)
        assert both.score(ours) == pytest.approx(both.score(theirs), abs=1e-3)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_any_normalised_text_gives_the_offsets_of_transformers(both: Setup, text: str) -> None:
    text = normalized(both, text)
    tokens = both.tokenizer.tokenize(text)
    reference = both.unigram.encode(text, add_special_tokens=False)
    if normalized(both, text) == text and ids_of(tokens) == reference.ids:
        assert spans_of(tokens) == reference.offsets


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_offsets_lie_in_the_text_in_order(both: Setup, text: str) -> None:
    tokens = both.tokenizer.tokenize(text)
    assert all(0 <= token.start < token.end <= len(text) for token in tokens)
    starts, ends = [token.start for token in tokens], [token.end for token in tokens]
    assert starts == sorted(starts)
    assert ends == sorted(ends)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_decoding_gives_the_normalised_text(both: Setup, text: str) -> None:
    tokens = both.tokenizer.tokenize(text, specials_in_text=False)
    if 3 not in ids_of(tokens):
        assert both.tokenizer.decode(ids_of(tokens)) == both.spm.normalize(text).replace("▁", " ").removeprefix(" ")


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_decoding_as_transformers(both: Setup, text: str) -> None:
    ids = both.tokenizer(text).input_ids[0]
    for skip in (False, True):
        ours = both.tokenizer.decode(ids, skip_special_tokens=skip)
        assert ours == both.reference.decode(ids.tolist(), skip_special_tokens=skip)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_a_batch_is_its_rows(small: Setup, texts: list[str]) -> None:
    batch = small.tokenizer(texts)
    for index, text in enumerate(texts):
        row = small.tokenizer(text)
        real = batch.attention_mask[index].bool()
        assert torch.equal(batch.input_ids[index][real], row.input_ids[0])
        assert bool((batch.input_ids[index][~real] == 1).all())
        assert batch.offsets[index] == row.offsets[0]
        assert batch.sequence_ids[index] == row.sequence_ids[0]


# ---- Where SentencePiece, which the model was trained with, and transformers differ ----


@pytest.mark.parametrize(
    ("text", "composed", "in_reference"),
    [
        ("e\u0301", "é", "é"),  # 3 bytes: both compose
        ("\u1025\u102e", "\u1026", "\u1025\u102e"),  # Burmese, 6 bytes
        ("\u0dd9\u0dca", "\u0dda", "\u0dd9\u0dca"),  # Sinhala
        ("\u0bc6\u0bbe", "\u0bca", "\u0bc6\u0bbe"),  # Tamil
        ("e\u0302\u0301", "ế", "ê"),  # Vietnamese, 5 bytes: transformers takes the shortest match and drops the rest
        ("\ufefb\u0651", "لا\u0651", "لا"),  # Arabic: likewise, and the mark is gone
    ],
)
def test_transformers_composes_only_what_is_shorter_than_six_bytes(
    small: Setup, text: str, composed: str, in_reference: str
) -> None:
    assert small.spm.normalize(text) == "▁" + composed
    assert small.reference.normalizer.normalize_str(text) == in_reference


def test_next_line(both: Setup) -> None:
    """U+0085 splits words in transformers; in SentencePiece it is an unknown character."""
    tokens = both.tokenizer.tokenize("dog\x85dog")
    assert "\x85" in "".join(token.piece for token in tokens)
    assert "\x85" not in "".join(both.reference.encode("dog\x85dog").tokens)


def test_offsets_after_a_dropped_character(both: Setup) -> None:
    """Those of transformers are one too small where a text begins with a dropped control character."""
    text = "\x17dog"
    assert both.tokenizer.tokenize(text)[0].start == 1
    assert both.reference.encode(text, add_special_tokens=False).offsets[0][0] == 0


# ---- Texts that are none ----


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"dog", "texts must be a string or a sequence of strings, not bytes"),
        (5, "texts must be a string or a sequence of strings, not int"),
        (None, "texts must be a string or a sequence of strings, not NoneType"),
        ({"dog"}, "texts must be a string or a sequence of strings, not set"),
        (["dog", None], r"texts\[1\] must be a string, not NoneType"),
        ([["dog"]], r"texts\[0\] must be a string, not list"),
    ],
)
def test_not_a_string(small: Setup, texts: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        small.tokenizer(texts)  # pyright: ignore[reportArgumentType]
    if texts is not None:
        with pytest.raises(TypeError, match=message.replace("texts", "pairs")):
            small.tokenizer("dog", texts)  # pyright: ignore[reportArgumentType]


def test_tokenize_takes_one_string(small: Setup) -> None:
    with pytest.raises(TypeError, match="text must be a string, not list"):
        small.tokenizer.tokenize(["dog"])  # pyright: ignore[reportArgumentType]


def test_no_texts(small: Setup) -> None:
    with pytest.raises(ValueError, match="texts is empty"):
        small.tokenizer([])


def test_pairs_without_their_texts(small: Setup) -> None:
    with pytest.raises(ValueError, match="expected as many pairs as texts: 2, got 1"):
        small.tokenizer(["dog", "fox"], ["dog"])


@pytest.mark.parametrize("half", [0xD83E, 0xDD14])
def test_a_lone_surrogate(small: Setup, half: int) -> None:
    text = "dog " + chr(half)
    with pytest.raises(ValueError, match=r"texts\[1\] has half a surrogate pair, .* at character 4"):
        small.tokenizer(["dog", text])
    with pytest.raises(ValueError, match="half a surrogate pair"):
        small.tokenizer.explain(text)


@pytest.mark.parametrize("text", ["", " ", " \n\t ", "\x17", "\u200b\ufeff"])
def test_nothing_to_see(both: Setup, text: str) -> None:
    batch = both.tokenizer(text)
    assert batch.input_ids.tolist() == [[0, 2]]
    assert batch.offsets == [[(0, 0), (0, 0)]]


def test_nul_is_an_unknown_character(both: Setup) -> None:
    tokens = both.tokenizer.tokenize("dog\x00dog")
    assert [token[2:] for token in tokens if token.piece == "\x00"] == [(3, 3, 4)]
    assert tokens[-1].end == 7


# ---- Decoding ----


def test_decoding(small: Setup) -> None:
    tokenizer = small.tokenizer
    batch = tokenizer(["The dog <mask>.", "fox"])
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["The dog .", "fox"]
    assert tokenizer.decode(batch.input_ids[0]) == "<s> The dog<mask> .</s>"
    assert tokenizer.decode(batch.input_ids[1].tolist()).startswith("<s> fox</s><pad>")
    assert tokenizer.decode([]) == ""


# ---- Explaining ----


def test_explaining(published: Setup) -> None:
    explanation = published.tokenizer.explain("Hello 世界,\ncafe\u0301 <mask> 𩸽 नमस्ते")
    assert explanation.normalized == "▁Hello▁世界,▁café<mask>▁𩸽▁नमस्ते"
    assert str(explanation) == (
        "text        Hello 世界,\\ncafe\u0301 <mask> 𩸽 नमस्ते\n"
        "normalised  ▁Hello▁世界,▁café<mask>▁𩸽▁नमस्ते\n"
        "\n"
        "piece   SentencePiece id  id      start  end  text\n"
        "<s>     -                 0       0      0\n"
        "▁Hello  35377             35378   0      5    Hello\n"
        "▁       5                 6       6      7    世\n"
        "世界    3220              3221    6      8    世界\n"
        ",       3                 4       8      9    ,\n"
        "▁café   26215             26216   10     15   cafe\u0301\n"
        "<mask>  -                 250001  16     22   <mask>\n"
        "▁       5                 6       23     24   𩸽\n"
        "𩸽      0                 3       23     24   𩸽\n"
        "▁नम     68699             68700   25     27   नम\n"
        "स्ते      97882             97883   27     31   स्ते\n"
        "</s>    -                 2       0      0"
    )


def test_explaining_shows_what_the_model_gets(small: Setup) -> None:
    text = "The dog <mask>"
    explanation = small.tokenizer.explain(text)
    assert ids_of(explanation.tokens) == small.tokenizer(text).input_ids[0].tolist()
    assert explanation.text == text


def test_explaining_keeps_control_characters_from_the_terminal(small: Setup) -> None:
    assert "\x1b" not in str(small.tokenizer.explain("dog \x1b[31m\x00"))
    assert "\\x1b" in str(small.tokenizer.explain("dog \x1b[31m\x00"))


# ---- Files ----


def test_saving(small: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    XLMRobertaTokenizer(small.model_file, max_tokens=77).save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["sentencepiece.bpe.model", "tokenizer_config.json"]
    assert (folder / "sentencepiece.bpe.model").read_bytes() == small.model_file.read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 77


def test_transformers_reads_what_is_saved(small: Setup, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="transformers needs protobuf to read a SentencePiece model")
    transformers = pytest.importorskip("transformers")
    small.tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "XLMRobertaTokenizer"
    assert theirs.model_max_length == 512
    texts = [*LINES.splitlines(), "The <mask> dog", "𩸽"]
    ours, expected = small.tokenizer(texts), theirs(texts, padding=True, return_tensors="pt")
    assert torch.equal(ours.input_ids, expected["input_ids"])
    assert torch.equal(ours.attention_mask, expected["attention_mask"])


def test_transformers_on_the_published_files(published: Setup, their_tokenizer: Any) -> None:
    texts = [text for text, _ in PUBLISHED_IDS] + SPECIAL_CASES
    ours, expected = published.tokenizer(texts), their_tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(ours.input_ids, expected["input_ids"])
    assert torch.equal(ours.attention_mask, expected["attention_mask"])
    assert published.tokenizer.batch_decode(ours.input_ids) == their_tokenizer.batch_decode(expected["input_ids"])


def test_from_pretrained(small: Setup, tmp_path: Path) -> None:
    small.tokenizer.save_pretrained(tmp_path)
    config = XLMRobertaConfig(vocab_size=small.tokenizer.vocab_size, max_position_embeddings=130).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert tokenizer.max_tokens == 128
    assert torch.equal(tokenizer("The dog").input_ids, small.tokenizer("The dog").input_ids)


def test_copies(small: Setup) -> None:
    expected = small.tokenizer("The dog").input_ids
    for tokenizer in (pickle.loads(pickle.dumps(small.tokenizer)), copy.deepcopy(small.tokenizer)):
        assert torch.equal(tokenizer("The dog").input_ids, expected)


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "sentencepiece.bpe.model", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            XLMRobertaTokenizer(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "pointer", "json", "zeros"])
def test_a_damaged_file(small: Setup, tmp_path: Path, damage: str) -> None:
    whole = small.model_file.read_bytes()
    content = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5069051\n",
        "json": b'{"version": "1.0"}',
        "zeros": bytes(1000),
    }
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a SentencePiece model, or it is damaged")):
        XLMRobertaTokenizer(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}, "they begin with <pad>, <unk>, <s> and hold <pad>"),
        ({"pad_id": 3}, "they begin with <unk>, <s>, </s> and hold <pad>"),
        ({"bos_id": -1}, "they begin with <unk>, ▁, </s>"),
        ({"user_defined_symbols": "<mask>"}, "they begin with <unk>, <s>, </s> and hold <mask>"),
        ({"byte_fallback": True, "vocab_size": 600}, "they begin with <unk>, <s>, </s> and hold <0x00>"),
    ],
)
def test_a_vocabulary_numbered_otherwise(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = train_vocabulary(tmp_path / "other.model", **options)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        XLMRobertaTokenizer(path)
    assert str(path) in str(error.value)
    assert "must begin with <unk>, <s>, </s>" in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"), [("treat_whitespace_as_suffix", True), ("remove_extra_whitespaces", False)]
)
def test_a_vocabulary_with_spaces_elsewhere(tmp_path: Path, option: str, value: bool) -> None:
    path = train_vocabulary(tmp_path / "other.model", **{option: value})
    with pytest.raises(ValueError, match=rf"other\.model was trained with {option}={str(value).lower()}, but"):
        XLMRobertaTokenizer(path)


@pytest.mark.parametrize(
    "options", [{"add_dummy_prefix": False}, {"split_by_whitespace": False}, {"normalization_rule_name": "identity"}]
)
def test_a_vocabulary_with_other_options(tmp_path: Path, options: dict[str, Any]) -> None:
    path = train_vocabulary(tmp_path / "other.model", **options)
    tokenizer = XLMRobertaTokenizer(path)
    spm = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in ("", " ", "a  b", " dog  fox ", "\x17", "𩸽  x", LINES):
        tokens = tokenizer.tokenize(text, specials_in_text=False)
        assert [token.piece for token in tokens] == spm.encode(text, out_type=str)
        assert all(0 <= token.start <= token.end <= len(text) for token in tokens)


def test_importing_the_tokenizer_does_not_import_sentencepiece() -> None:
    code = "import sys, xlmr_core.tokenizer; sys.exit('sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
