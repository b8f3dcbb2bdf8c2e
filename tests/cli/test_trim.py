"""`xlmr trim`: options in, a smaller checkpoint and its proof out. test_trimming.py tests the work itself."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xlmr_core import FillMask, XLMRobertaTokenizer
from xlmr_core.cli import main


def xlmr_trim(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trim", *map(str, arguments)])


def test_a_corpus(toy_checkpoint: Path, tmp_path: Path) -> None:
    for name, text in (("a.txt", "the cat sees the dog\n" * 3), ("b.txt", "кіт бачить пса\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = ("--corpus", tmp_path / "a.txt", "--corpus", tmp_path / "b.txt")
    result = xlmr_trim(toy_checkpoint, tmp_path / "small", *corpus)
    assert result.exit_code == 0, result.stderr
    for expected in ("vocabulary", "100.00% of", "ids map one to one on 4 covered lines", "hidden states bit-equal"):
        assert expected in result.stdout
    assert len(FillMask.from_pretrained(tmp_path / "small")("the <mask> sees")[0]) == 5

    fewer = xlmr_trim(toy_checkpoint, tmp_path / "fewer", *corpus, "--min-count", 2, "--max-pieces", 5)
    assert fewer.exit_code == 0
    assert "75.00% of 4 lines" in fewer.stdout or "0.00% of 4 lines" in fewer.stdout


def test_pieces_from_a_file(toy_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = XLMRobertaTokenizer.from_pretrained(toy_checkpoint)
    piece = next(name for i in range(4, 20) if len(name := tokenizer.id_to_token(i)) > 1)
    (tmp_path / "pieces.txt").write_text(f"{piece}\n\n<mask>\n", encoding="utf-8")
    result = xlmr_trim(toy_checkpoint, tmp_path / "small", "--keep", tmp_path / "pieces.txt")
    assert result.exit_code == 0, result.stderr
    small = XLMRobertaTokenizer.from_pretrained(tmp_path / "small")
    assert small.token_to_id(piece) != small.unk_token_id
    assert small.vocab_size < tokenizer.vocab_size


def test_an_error_is_one_line(toy_checkpoint: Path, tmp_path: Path) -> None:
    assert "give --corpus or --keep" in xlmr_trim(toy_checkpoint, tmp_path / "small").stderr
    (tmp_path / "empty.txt").write_text("\n")
    assert "empty.txt names no piece to keep" in " ".join(
        xlmr_trim(toy_checkpoint, tmp_path / "small", "--keep", tmp_path / "empty.txt").stderr.split()
    )
    (tmp_path / "corpus.txt").write_text("the cat\n")
    result = xlmr_trim(toy_checkpoint, tmp_path, "--corpus", tmp_path / "corpus.txt")
    assert result.exit_code == 1
    assert "Nothing is overwritten" in result.stderr


@pytest.mark.parametrize("option", ["--corpus", "--keep"])
def test_a_file_that_is_not_utf_8_is_named(option: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"the cat\n" * 3000 + b"mang\xe9\n" if option == "--corpus" else b"the\n\xff\n")
    result = xlmr_trim(toy_checkpoint, tmp_path / "small", option, tmp_path / "bad.txt")
    assert result.exit_code == 1
    line = 3001 if option == "--corpus" else 2
    assert (
        f"bad.txt, line {line}: byte 0x{'e9' if option == '--corpus' else 'ff'} is not UTF-8; convert" in result.stderr
    )
    assert not (tmp_path / "small").exists()
