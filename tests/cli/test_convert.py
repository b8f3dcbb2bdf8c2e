"""`xlmr convert`, and `xlmr inspect` on what it wrote, as a person at a terminal meets them."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from xlmr_core.cli import main


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def source(toy_checkpoint: Path, tmp_path: Path) -> Path:
    """The toy model as fairseq could have it: without token types."""
    folder = Path(shutil.copytree(toy_checkpoint, tmp_path / "source"))
    tensors = load_file(folder / "model.safetensors")
    tensors["roberta.embeddings.token_type_embeddings.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_to_fairseq_and_back(source: Path, tmp_path: Path) -> None:
    there = xlmr("convert", source, tmp_path / "fairseq", "--to", "fairseq")
    assert there.exit_code == 0, there.output
    assert "HF post-norm with 'roberta.' -> fairseq 2019" in there.stdout
    assert "files    config.json, dict.txt, model.pt, sentencepiece.bpe.model" in there.stdout
    assert len(there.stdout.splitlines()) < 10
    back = xlmr("convert", tmp_path / "fairseq", tmp_path / "back", "--to", "hf", "--verbose")
    assert back.exit_code == 0, back.output
    for key in load_file(source / "model.safetensors"):
        assert repr(key) in back.stdout
    before, after = (folder / "model.safetensors" for folder in (source, tmp_path / "back"))
    assert before.read_bytes() == after.read_bytes()
    filled = xlmr("fill-mask", "the cat <mask> the dog", "--model", tmp_path / "fairseq")
    assert filled.exit_code == 0, filled.output


def test_inspect_reads_what_convert_wrote(source: Path, tmp_path: Path) -> None:
    assert xlmr("convert", source, tmp_path / "fairseq", "--to", "fairseq", "--dtype", "float16").exit_code == 0
    (tmp_path / "fairseq" / "config.json").unlink()
    for place in (
        tmp_path / "fairseq",
        shutil.make_archive(str(tmp_path / "xlmr.tiny"), "gztar", tmp_path / "fairseq"),
    ):
        result = xlmr("inspect", place, "--values")
        assert result.exit_code == 0, result.output
        for expected in ("fairseq 2019", "fairseq's settings", "self_attn.in_proj_weight", "float16", "norm", "nan 0"):
            assert expected in result.stdout
        assert "PROBLEM" not in result.stdout


def test_an_existing_destination_is_one_line(source: Path) -> None:
    result = xlmr("convert", source, source, "--to", "hf")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Nothing is overwritten" in result.stderr


def test_a_part_can_be_left_out(source: Path, tmp_path: Path) -> None:
    refused = xlmr("convert", source, tmp_path / "out", "--to", "torchtext")
    assert refused.exit_code == 1
    assert "writing it would lose them" in refused.stderr
    result = xlmr("convert", source, tmp_path / "out", "--to", "torchtext", "--drop", "lm_head")
    assert result.exit_code == 0, result.output
    assert "dropped" in result.stdout
