"""Files of texts and of vectors that are not what they should be: an error names the file and what is wrong with it."""

import copy
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from xlmr_core.cli import main
from xlmr_core.served import Pipeline, judge
from xlmr_core.served.files import read_inputs, read_values

VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2", "i8", "u2", "?", "longdouble"])
def test_any_type_of_real_numbers_is_read(dtype: str, tmp_path: Path) -> None:
    expected = torch.from_numpy(VECTORS.astype(dtype).astype(np.float64))
    np.save(tmp_path / "v.npy", VECTORS.astype(dtype))
    assert torch.equal(read_values(tmp_path / "v.npy"), expected)


def test_npz_safetensors_and_jsonl_give_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=VECTORS, b=VECTORS[0])
    save_file({"a": torch.from_numpy(VECTORS).bfloat16()}, tmp_path / "v.safetensors")
    (tmp_path / "v.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in VECTORS.tolist()), encoding="utf-8")
    expected = torch.from_numpy(VECTORS).double()
    for name, array in (("v.npz", "a"), ("v.safetensors", None), ("v.jsonl", None)):
        assert torch.equal(read_values(tmp_path / name, array), expected)


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that has only its header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00junk" * 50, header((10**9, 10**4))], ids=["empty", "junk", "lies"])
def test_a_damaged_file_of_values_is_named(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"values.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"values\.{suffix}"):
        read_values(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), "holds <U1; an array of real numbers is expected"),
        (VECTORS.astype(complex), "holds complex128; an array of real numbers is expected"),
        (np.zeros(2, "M8[s]"), r"holds datetime64\[s\]; an array of real numbers is expected"),
        (np.array([{}]), r"is not an \.npy file, or it is damaged"),
        (VECTORS[None], r"holds an array of shape \(1, 2, 3\); \(texts, features\) or \(texts\) is read"),
    ],
)
def test_an_array_of_something_else_is_refused(array: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_values(tmp_path / "v.npy")


def test_an_array_too_large_for_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    """A compressed file of a few kilobytes may hold gigabytes of zeros."""
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("a.npy", header((2**20, 2**10)))
    with pytest.raises(ValueError, match=r"of shape \(1048576, 1024\): at most 268,435,456 numbers are read"):
        read_values(tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"[{'9' * 400}]", "line 2 holds NaN, infinity, or a number too large for float64"),
        ("[1e999, 1, 1]", "line 2 holds NaN, infinity, or a number too large"),
        ("[NaN, 1, 1]", "line 2 holds NaN, infinity, or a number too large"),
        ("[true, 1, 1]", "line 2 holds True where a number is expected"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"vector": [1, 2, 3]}', "line 2 holds None where a number is expected"),
    ],
)
def test_a_line_that_is_not_a_vector_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text(f"[1, 2, 3]\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_values(tmp_path / "v.jsonl")


def test_texts_are_utf_8_and_a_line_ends_only_where_a_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("one \u2028 text\r\ntwo\n".encode())
    assert read_inputs(path) == [("one \u2028 text",), ("two",)]
    path.write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"texts\.txt, line 2: byte 0xe9 is not UTF-8"):
        read_inputs(path)


def test_the_command_names_the_text_whose_vector_is_nan(embedder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    np.save(tmp_path / "v.npy", np.full((2, 32), np.nan))
    files = [str(tmp_path / "texts.txt"), str(tmp_path / "v.npy")]
    result = CliRunner().invoke(main, ["parity", "diagnose-vectors", *files, "--model", str(embedder)])
    assert result.exit_code == 1
    assert "the values of text 0 (counted from 0) are not finite" in result.stderr


def test_more_dimensions_than_the_vectors_have_are_refused(embedder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n", encoding="utf-8")
    np.save(tmp_path / "v.npy", np.ones((1, 32)))
    files = [str(tmp_path / "texts.txt"), str(tmp_path / "v.npy")]
    more = ["--model", str(embedder), "--dimensions", "33"]
    result = CliRunner().invoke(main, ["parity", "diagnose-vectors", *files, *more])
    assert result.exit_code == 2
    assert "--dimensions 33: the vectors of" in result.stderr


def test_a_checkpoint_that_gives_nan_judges_nothing(vectors_of: Pipeline) -> None:
    model = copy.deepcopy(vectors_of.model)
    model.get_parameter("embeddings.norm.bias").data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the checkpoint gives NaN or infinity: `xlmr inspect MODEL --values` shows"):
        judge(replace(vectors_of, model=model), ["one"], torch.ones(1, 32))
