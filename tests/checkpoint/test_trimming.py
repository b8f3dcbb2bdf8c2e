"""Vocabulary trimming: fewer rows, the same numbers, and a proof that can fail."""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from checkpoint import published
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer, heads
from xlmr_core.checkpoint import CheckpointError, trimming
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.trimming import trim
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import PretrainedModel

ENGLISH = "the cat sees the dog\na bird sings in the tree\n"
TEXTS = ("the dog sings", "a cat sees a bird", "in the tree")
NORMAL = 1  # types in sentencepiece_model.proto
UNKNOWN, CONTROL = 2, 3


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "english.txt"
    path.write_text(ENGLISH, encoding="utf-8")
    return path


def checkpoint(folder: Path, toy: Path, cls: type[PretrainedModel], dtype: torch.dtype, **config: Any) -> Path:
    """The toy checkpoint's tokenizer with another random model."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(toy)
    tokenizer.save_pretrained(folder)
    options = {"add_pooling_layer": True} if cls is XLMRobertaModel else {}
    sizes = replace(XLMRobertaConfig.from_json(toy / "config.json"), **config)
    model = cls(sizes, **options)
    reference.randomize(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def loaded(cls: Any, folder: Path, **options: Any) -> Any:
    """The model in memory of its own: how a product is summed depends on where in a mapped file its factors begin."""
    return copy.deepcopy(cls.from_pretrained(folder, dtype=None, **options))


def kept_rows(old: XLMRobertaTokenizer, new: XLMRobertaTokenizer) -> torch.Tensor:
    """The old id of each new id, found by name: another way than the code under test goes."""
    return torch.tensor([old.token_to_id(new.id_to_token(i)) for i in range(new.vocab_size)])


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (XLMRobertaForMaskedLM, {}),
        (XLMRobertaForMaskedLM, {"norm_first": True}),
        (XLMRobertaForMaskedLM, {"tie_word_embeddings": False}),
        (XLMRobertaForMaskedLM, {"vocab_size": 60}),  # as in XL: rows that no token uses
        (XLMRobertaModel, {}),
        (heads.XLMRobertaForSequenceClassification, {"labels": ("a", "b", "c")}),
        (heads.XLMRobertaForTokenClassification, {}),
        (heads.XLMRobertaForQuestionAnswering, {}),
        (heads.XLMRobertaForMultipleChoice, {}),
        (heads.XLMRobertaForM3, {}),
    ],
    ids=["tied", "pre-norm", "untied", "spare rows", "encoder", "classifier", "tagger", "reader", "chooser", "m3"],
)
def test_the_same_numbers_from_fewer_rows(
    cls: type, config: dict, dtype: torch.dtype, toy_checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", toy_checkpoint, cls, dtype, **config)
    report = trim(source, tmp_path / "small", corpus=[corpus])
    before, after = loaded(cls, source), loaded(cls, tmp_path / "small")
    old = XLMRobertaTokenizer.from_pretrained(source)
    new = XLMRobertaTokenizer.from_pretrained(tmp_path / "small")
    rows = kept_rows(old, new)

    assert after.config == replace(before.config, vocab_size=new.vocab_size)
    assert new.vocab_size < old.vocab_size
    assert (new.mask_token_id, int(rows[-1])) == (new.vocab_size - 1, old.mask_token_id)
    assert rows[:4].tolist() == [0, 1, 2, 3]
    assert next(after.parameters()).dtype == dtype
    assert report.vocab_size == new.vocab_size
    assert report.parameters == sum(parameter.numel() for parameter in after.parameters())
    for text in (*TEXTS, "<mask> sees <mask>"):
        ids = new(text).input_ids
        assert torch.equal(rows[ids], old(text).input_ids)
        choices = ids[:, None] if cls is heads.XLMRobertaForMultipleChoice else ids
        found, expected = vars(after(choices)), vars(before(rows[choices]))
        if cls is XLMRobertaForMaskedLM:
            # How a matrix product sums depends on its number of rows: see tests/model/test_heads.py, on positions.
            logits, whole = found.pop("logits").double(), expected.pop("logits")[..., rows].double()
            exact = copy.deepcopy(before).double()(rows[ids]).logits[..., rows]
            assert reference.gap(logits, exact) <= 2 * reference.gap(whole, exact)
        assert len(found) > 0
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_float64(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    """Where rounding hides nothing."""
    source = checkpoint(tmp_path / "source", toy_checkpoint, XLMRobertaForMaskedLM, torch.float64)
    report = trim(source, tmp_path / "small", corpus=[corpus])
    assert report.proof.logits_gap is not None
    assert report.proof.logits_gap <= reference.ORACLE_TOLERANCE
    before, after = loaded(XLMRobertaForMaskedLM, source), loaded(XLMRobertaForMaskedLM, tmp_path / "small")
    rows = kept_rows(*(XLMRobertaTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "small")))
    ids = torch.randint(len(rows), (3, 9))
    ids[:, 0] = 0
    assert torch.equal(after(ids).last_hidden_state, before(rows[ids]).last_hidden_state)
    assert reference.gap(after(ids).logits, before(rows[ids]).logits[..., rows]) <= reference.ORACLE_TOLERANCE


def test_every_tensor_is_the_old_one_or_rows_of_it(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    report = trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    old, new = (XLMRobertaTokenizer.from_pretrained(folder) for folder in (toy_checkpoint, tmp_path / "small"))
    rows = kept_rows(old, new)
    before, after = published.tensors_of(toy_checkpoint), published.tensors_of(tmp_path / "small")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"roberta.embeddings.word_embeddings.weight", "lm_head.bias"}
    assert all(torch.equal(before[name][rows] if name in changed else before[name], after[name]) for name in before)
    assert report.proof.tensors == len(XLMRobertaForMaskedLM.from_pretrained(tmp_path / "small").state_dict())


def test_transformers_reads_it(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    eager = {"attn_implementation": "eager"}
    theirs = published.quietly(loaded, transformers.XLMRobertaForMaskedLM, tmp_path / "small", **eager)
    tokenizer = published.quietly(transformers.XLMRobertaTokenizer.from_pretrained, tmp_path / "small")
    ours = loaded(XLMRobertaForMaskedLM, tmp_path / "small")
    own = XLMRobertaTokenizer.from_pretrained(tmp_path / "small")
    for text in TEXTS:
        ids = own(text).input_ids
        assert tokenizer(text).input_ids == ids[0].tolist()
        with torch.no_grad():
            assert torch.equal(theirs(input_ids=ids).logits, ours(ids).logits)


def test_twice_the_same_bytes(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        trim(toy_checkpoint, tmp_path / name, corpus=[corpus])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["config.json", "model.safetensors", "sentencepiece.bpe.model", "tokenizer_config.json"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_parameters_of_a_trimmed_base() -> None:
    """asahi417/lm-vocab-trimmer gives 89,890,186 for xlm-roberta-base with 5,002 of its 250,002 tokens."""
    with torch.device("meta"):
        model = XLMRobertaForMaskedLM(XLMRobertaConfig())
        rows = trimming._rows(range(5000), 250001)
        trimmed = trimming._with_rows(model, rows)
    assert trimmed.config.vocab_size == 5002
    assert sum(parameter.numel() for parameter in trimmed.parameters()) == 89_890_186


# ---- which pieces ----------------------------------------------------------------------------------------------------


def pieces_of(folder: Path) -> list[str]:
    spm = SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    return [spm.id_to_piece(i) for i in range(len(spm))]


def test_pieces_of_the_corpus_and_their_characters(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    old, new = pieces_of(toy_checkpoint), pieces_of(tmp_path / "small")
    assert new == [piece for piece in old if piece in new]  # in the old order
    assert new[:3] == ["<unk>", "<s>", "</s>"]
    spm = SentencePieceProcessor(model_file=str(toy_checkpoint / "sentencepiece.bpe.model"))
    wanted = {piece for line in ENGLISH.splitlines() for piece in spm.encode(line, out_type=str)}
    wanted.add(spm.id_to_piece(min(range(3, len(spm)), key=spm.get_score)))
    characters = {character for piece in wanted for character in piece} | {chr(code) for code in range(33, 127)}
    assert set(new[3:]) == (wanted | characters) & set(old)
    assert len(new) < len(old) - 10


def test_counts_and_a_limit(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.txt").write_text(ENGLISH * 2 + "кіт бачить пса\n", encoding="utf-8")
    sizes = [
        trim(toy_checkpoint, tmp_path / str(number), corpus=[tmp_path / "mixed.txt"], **options).vocab_size
        for number, options in enumerate([{}, {"min_count": 2}, {"max_pieces": 1}])
    ]
    assert sizes[0] > sizes[1] >= sizes[2]


def test_ascii_is_always_kept(toy_checkpoint: Path) -> None:
    spm = SentencePieceProcessor(model_file=str(toy_checkpoint / "sentencepiece.bpe.model"))
    kept = {spm.id_to_piece(i) for i in trimming._kept_pieces(spm, [], ["к"], 1, None)}
    assert {"a", "g", "к"} <= kept
    assert not {"п", "प"} & kept


def test_the_most_frequent_come_first() -> None:
    pieces = [("▁", -3.0), ("ab", -3.0), ("cd", -3.0), ("ef", -3.0), ("z", -9.0)]
    spm = SentencePieceProcessor(model_proto=unigram(pieces))
    corpus = ["ab" * 2 + "cd" * 9 + "ef" * 5]
    kept = {limit: trimming._chosen(spm, [corpus], 1, limit) for limit in (1, 2, 3, None)}
    cd, ef, ab = (spm.piece_to_id(piece) for piece in ("cd", "ef", "ab"))
    assert kept == {1: [cd], 2: [cd, ef], 3: [cd, ef, ab], None: [cd, ef, ab, spm.piece_to_id("▁")]}
    assert trimming._chosen(spm, [corpus], 5, None) == [cd, ef]


def test_what_is_not_covered_is_reported(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(ENGLISH * 5 + "кіт бачить пса\n\n", encoding="utf-8")
    report = trim(toy_checkpoint, tmp_path / "small", corpus=[other], min_count=3)
    coverage = report.coverage
    assert (coverage.lines, coverage.covered_lines) == (11, 10)
    assert 0 < coverage.kept_tokens < coverage.tokens
    assert coverage.unknown == 0 < coverage.unknown_after
    assert "90.91% of 11 lines" in str(report)
    assert "ids map one to one on 10 covered lines" in str(report)
    assert "hidden states bit-equal" in str(report)


def test_pieces_by_name(toy_checkpoint: Path, tmp_path: Path) -> None:
    old = pieces_of(toy_checkpoint)
    wanted = [piece for piece in old if piece.startswith("▁") and len(piece) > 1][:3]
    report = trim(toy_checkpoint, tmp_path / "small", keep=[*wanted, "<s>", "<mask>"])
    assert set(wanted) <= set(pieces_of(tmp_path / "small"))
    assert report.coverage.covered_lines >= len(wanted)
    assert report.proof.texts > 0


def test_without_a_covered_text_the_report_does_not_boast(toy_checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("the cat sees the dog 漢字\n" * 3, encoding="utf-8")
    report = trim(toy_checkpoint, tmp_path / "small", corpus=[foreign], max_pieces=1)
    assert report.coverage.covered_lines == report.proof.texts == 0
    assert "hidden states were not compared" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says which pieces to keep"),
        ({"keep": ["<s>"]}, "no piece is left"),
        ({"keep": ["▁the", "no such", "nor this"]}, "not pieces of this vocabulary: 'no such', 'nor this'"),
        ({"keep": [f"x{i}" for i in range(30)]}, "and 20 more"),
        ({"keep": ["▁"], "min_count": 0}, "must be at least 1, not 0"),
        ({"keep": ["▁"], "max_pieces": 0}, "must be at least 1"),
    ],
)
def test_what_makes_no_sense(options: dict, message: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trim(toy_checkpoint, tmp_path / "small", **options)
    assert list(tmp_path.iterdir()) == []


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


def test_the_model_file_is_the_old_one_without_the_pieces(toy_checkpoint: Path) -> None:
    content = (toy_checkpoint / "sentencepiece.bpe.model").read_bytes()
    old, new = sentencepiece_model_pb2.ModelProto(), sentencepiece_model_pb2.ModelProto()
    old.ParseFromString(content)
    assert b"".join(part for _, part in trimming._fields(content)) == content
    assert trimming._with_pieces(content, range(len(old.pieces))) == content

    kept = [0, 1, 2, 5, 9, 17]
    self_test = b"\x22\x02\x0a\x00"  # field 4 with one empty sample
    assert trimming._with_pieces(content + self_test, kept) == trimming._with_pieces(content, kept)
    new.ParseFromString(trimming._with_pieces(content, kept))
    assert list(new.pieces) == [old.pieces[i] for i in kept]
    for name in ("trainer_spec", "normalizer_spec"):
        assert getattr(new, name) == getattr(old, name)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**35 + 1])
def test_numbers_of_the_wire_format(value: int) -> None:
    message = sentencepiece_model_pb2.TrainerSpec(input_sentence_size=value).SerializeToString()
    [(number, content)] = trimming._fields(message)
    assert (number, content) == (11, message)
    assert trimming._varint(message, 1) == (value, len(message))


def test_every_wire_type_has_its_length() -> None:
    parts = [b"\x08\x96\x01", b"\x11" + bytes(8), b"\x1a\x03abc", b"\x25" + bytes(4)]
    assert list(trimming._fields(b"".join(parts))) == list(enumerate(parts, start=1))
    with pytest.raises(ValueError, match="a field of wire type 3 at byte 3"):
        list(trimming._fields(parts[0] + b"\x0b"))


def unigram(pieces: Sequence[tuple[str, float]]) -> bytes:
    """A SentencePiece model of these pieces, which normalises nothing."""
    proto = sentencepiece_model_pb2.ModelProto()
    for name, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        proto.pieces.add(piece=name, score=0, type=kind)
    for name, score in pieces:
        proto.pieces.add(piece=name, score=score, type=NORMAL)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    proto.normalizer_spec.name = "identity"
    return proto.SerializeToString()


def ids_before_and_after(pieces: list[tuple[str, float]], keep: list[str], text: str) -> tuple[list[int], list[int]]:
    """The ids of the text, and those of the trimmed model as ids of the whole one."""
    old = SentencePieceProcessor(model_proto=unigram(pieces))
    kept = trimming._kept_pieces(old, [], keep, 1, None)
    new = SentencePieceProcessor(model_proto=trimming._with_pieces(unigram(pieces), kept))
    return old.encode(text), [kept[i] for i in new.encode(text)]


def test_the_worst_piece_is_kept_because_the_score_of_unk_hangs_on_it() -> None:
    """Without it `<unk> bcd` would come to -41 and beat `ab cd` at -60."""
    pieces = [("▁", -1.0), ("ab", -30.0), ("cd", -30.0), ("bcd", -1.0), ("z", -100.0)]
    before, after = ids_before_and_after(pieces, ["ab", "cd", "bcd"], "abcd")
    assert before == after == [3, 4, 5]


scores = st.floats(-40, -0.5, width=32)
words = st.text("abc", min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(words, scores, min_size=2), st.data())
def test_a_covered_text_is_cut_as_before(vocabulary: dict[str, float], data: st.DataObject) -> None:
    pieces = [("▁", -2.0), *vocabulary.items()]
    keep = data.draw(st.lists(st.sampled_from(sorted(vocabulary)), min_size=1))
    text = data.draw(st.text("abcd", max_size=12))
    old = SentencePieceProcessor(model_proto=unigram(pieces))
    kept = trimming._kept_pieces(old, [], keep, 1, None)
    before, after = ids_before_and_after(pieces, keep, text)
    if set(before) <= set(kept):
        assert before == after


# ---- what is refused, and what is left behind ------------------------------------------------------------------------


def test_nothing_is_overwritten(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with pytest.raises(CheckpointError, match=r"exists\. Nothing is overwritten"):
        trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    assert list((tmp_path / "small").iterdir()) == []


def test_what_a_killed_run_left_is_cleared(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    left = tmp_path / "new" / ".small.elsewhere.1.0123456789abcdef.tmp"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (left / "model.safetensors", left):
        os.utime(path, (two_days_ago, two_days_ago))
    trim(toy_checkpoint, tmp_path / "new" / "small", corpus=[corpus])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["small"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["_with_pieces", "_with_rows", "_coverage", "_proof"])
def test_an_interrupted_run_leaves_nothing(
    step: str, error: Any, toy_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(trimming, step, interrupted)
    with pytest.raises(error):
        trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    assert list(tmp_path.iterdir()) == [corpus]


@pytest.mark.parametrize("broken", ["rows exchanged", "mask forgotten", "bias of other rows", "pieces exchanged"])
def test_the_proof_can_fail(broken: str, toy_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    rows, with_rows, with_pieces = trimming._rows, trimming._with_rows, trimming._with_pieces

    def exchanged(pieces: Sequence[int], mask: int) -> torch.Tensor:
        right = rows(pieces, mask)
        return right[[0, 1, 2, 3, 5, 4, *range(6, len(right))]]

    def other_bias(model: Any, chosen: torch.Tensor) -> Any:
        trimmed = with_rows(model, chosen)
        with torch.no_grad():
            trimmed.lm_head.decoder.bias.copy_(trimmed.lm_head.decoder.bias.flip(0))
        return trimmed

    if broken == "rows exchanged":
        monkeypatch.setattr(trimming, "_rows", exchanged)
    elif broken == "mask forgotten":
        monkeypatch.setattr(trimming, "_rows", lambda pieces, mask: rows(pieces, mask)[:-1])
    elif broken == "bias of other rows":
        monkeypatch.setattr(trimming, "_with_rows", other_bias)
    else:
        monkeypatch.setattr(
            trimming, "_with_pieces", lambda proto, kept: with_pieces(proto, [*kept[:3], *reversed(kept[3:])])
        )
    source = checkpoint(tmp_path / "source", toy_checkpoint, XLMRobertaForMaskedLM, torch.float32)
    with pytest.raises(CheckpointError, match="bug"):
        trim(source, tmp_path / "small", corpus=[corpus])
    assert set(tmp_path.iterdir()) == {corpus, source}


@pytest.mark.parametrize("name", ["decoder.weight", "decoder.bias"])
def test_one_wrong_bit_fails_the_proof(
    name: str, toy_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with_rows = trimming._with_rows

    def one_bit(model: Any, rows: torch.Tensor) -> Any:
        trimmed = with_rows(model, rows)
        bits = dict(trimmed.lm_head.named_parameters())[name].data.view(torch.int32)
        bits.flatten()[7] ^= 1
        return trimmed

    monkeypatch.setattr(trimming, "_with_rows", one_bit)
    source = checkpoint(
        tmp_path / "source", toy_checkpoint, XLMRobertaForMaskedLM, torch.float32, tie_word_embeddings=False
    )
    with pytest.raises(CheckpointError, match=rf"not the same after trimming: lm_head\.{name}"):
        trim(source, tmp_path / "small", corpus=[corpus])
    assert set(tmp_path.iterdir()) == {corpus, source}


@pytest.mark.parametrize("name", ["decoder.weight", "decoder.bias"])
def test_wrong_rows_of_the_decoder_show_in_the_logits(
    name: str, toy_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Where the tensors are not compared."""
    with_rows = trimming._with_rows

    def other_rows(model: Any, rows: torch.Tensor) -> Any:
        trimmed = with_rows(model, rows)
        parameter = dict(trimmed.lm_head.named_parameters())[name]
        parameter.data = parameter.data.roll(1, 0)
        return trimmed

    monkeypatch.setattr(trimming, "_with_rows", other_rows)
    monkeypatch.setattr(trimming, "same_bits", lambda a, b: True)
    source = checkpoint(
        tmp_path / "source", toy_checkpoint, XLMRobertaForMaskedLM, torch.float32, tie_word_embeddings=False
    )
    with pytest.raises(CheckpointError, match="not the same after trimming: logits"):
        trim(source, tmp_path / "small", corpus=[corpus])


def test_the_report_gives_the_gap_between_logits(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    report = trim(toy_checkpoint, tmp_path / "small", corpus=[corpus])
    assert report.proof.logits_gap is not None
    assert report.proof.tokens > 0
    assert f"logits of kept pieces differ by at most {report.proof.logits_gap:.1e}, within rounding" in str(report)
    encoder = checkpoint(tmp_path / "encoder", toy_checkpoint, XLMRobertaModel, torch.float32)
    assert "logits" not in str(trim(encoder, tmp_path / "small encoder", corpus=[corpus]))


def test_a_head_that_is_not_known_is_not_dropped(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    source = published.copied(toy_checkpoint, tmp_path / "source")
    tensors = published.tensors_of(source) | {"music.weight": torch.zeros(3)}
    published.rewritten(source, source, tensors)
    with pytest.raises(CheckpointError, match=r"music\.weight"):
        trim(source, tmp_path / "small", corpus=[corpus])
    assert not (tmp_path / "small").exists()


def test_another_layout_goes_in(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    source = published.copied(toy_checkpoint, tmp_path / "source")
    tensors = published.tensors_of(source)
    tensors["roberta.embeddings.token_type_embeddings.weight"].zero_()  # fairseq has none
    published.rewritten(source, source, tensors)
    convert(source, tmp_path / "fairseq", to="fairseq")
    for name in ("source", "fairseq"):
        trim(tmp_path / name, tmp_path / f"small-{name}", corpus=[corpus])
    before, after = (published.tensors_of(tmp_path / f"small-{name}") for name in ("source", "fairseq"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_smaller_than_its_tokenizer(toy_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", toy_checkpoint, XLMRobertaForMaskedLM, torch.float32, vocab_size=30)
    with pytest.raises(CheckpointError, match="do not belong together"):
        trim(source, tmp_path / "small", corpus=[corpus])


# ---- the real vocabulary ---------------------------------------------------------------------------------------------


def test_the_real_vocabulary_and_one_language(shared: Path, tmp_path: Path) -> None:
    XLMRobertaTokenizer(shared / "tokenizer/xlm-roberta-base/sentencepiece.bpe.model").save_pretrained(tmp_path / "big")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**sizes))
    model.initialize()
    model.save_pretrained(tmp_path / "big")
    report = trim(tmp_path / "big", tmp_path / "small", corpus=[shared / "corpus/ntrex128_ccbysa4/fr.txt"])
    assert report.vocab_size_before == 250_002
    assert report.vocab_size < 8_000
    assert report.coverage.covered_lines == report.coverage.lines == 1_997
    assert report.coverage.tokens == report.coverage.tokens_after
    assert report.proof.texts == 16
