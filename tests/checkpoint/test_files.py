"""Files that are missing, foreign, broken or hostile: each gets a clear error, and nothing in them is run."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint import published

from xlmr_core.atomic import written_as
from xlmr_core.checkpoint import CheckpointError, bundled, find_tokenizer, inspect_checkpoint
from xlmr_core.checkpoint.files import files_in, local_path, open_weights
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel
from xlmr_core.paths import BUNDLED


@pytest.fixture
def folder(folders: dict, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return published.copied(folders["masked-lm"], tmp_path / "copy")


def load(folder: Path) -> XLMRobertaForMaskedLM:
    return XLMRobertaForMaskedLM.from_pretrained(folder)


# ---- where things are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "./nowhere",
        "../nowhere",
        "~nobody-of-this-name/x",
        "/nowhere/at/all",
        "~/nowhere",
        "a/b/c",
        "a\\b",
        "weights.safetensors",
        "x/model.bin",
    ],
)
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no file or folder"):
        XLMRobertaModel.from_pretrained(source)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="there is no file or folder 'org/name'"):
        XLMRobertaModel.from_pretrained(Path("org/name"))


@pytest.mark.parametrize("source", ["org/name", "xlm-roberta-base", "sentence-transformers/paraphrase-xlm-r-v1.0"])
def test_what_could_be_a_hub_id(source: str) -> None:
    assert local_path(source) is None


@pytest.mark.parametrize("source", ["", "a b", "org/na\x00me", "x" * 5000])
def test_what_is_nothing_at_all(source: str) -> None:
    with pytest.raises(CheckpointError, match="neither a file, nor a folder, nor a repository id"):
        XLMRobertaModel.from_pretrained(source)


def test_the_bundled_name_and_a_folder_of_that_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xlmr_core.checkpoint.files.bundled", lambda name: Path(f"the bundled {name}"))
    assert local_path(BUNDLED) == Path(f"the bundled {BUNDLED}")
    (tmp_path / BUNDLED).mkdir()
    assert local_path(BUNDLED) == Path(BUNDLED)  # what exists on disk wins
    with pytest.raises(CheckpointError, match="no weights that can be read"):
        XLMRobertaModel.from_pretrained(BUNDLED)


def test_bundled_is_found_in_a_wheel_and_in_the_repository(tmp_path: Path, monkeypatch: Any) -> None:
    package = tmp_path / "xlmr_core"
    package.mkdir()
    monkeypatch.setattr("xlmr_core.paths.resources.files", lambda name: tmp_path / name)
    with pytest.raises(CheckpointError, match="xlmr-tiny is not in this installation"):
        bundled()
    (tmp_path / "weights" / BUNDLED).mkdir(parents=True)
    assert bundled() == tmp_path / "weights" / BUNDLED
    (package / "weights" / BUNDLED).mkdir(parents=True)
    assert bundled() == package / "weights" / BUNDLED


def test_safetensors_come_before_pickles_and_one_file_before_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    preferred = [
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "model.safetensors",
    ]
    for name in preferred:
        (tmp_path / name).touch()
        assert files_in(tmp_path).weights.name == name


def test_a_folder_without_weights_says_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, .* It holds config\.json, tf_model\.h5"):
        load(folder)


def test_a_folder_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside .*copy.model\.safetensors"):
        load(folder)


def test_a_weights_file_without_a_config_beside_it(folder: Path, monkeypatch: Any) -> None:
    (folder / "config.json").unlink()
    monkeypatch.chdir(folder)
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside model\.safetensors"):
        load(Path("model.safetensors"))


@pytest.mark.parametrize("name", ["notes.txt", "weights.h5", "no-suffix"])
def test_a_file_that_is_no_checkpoint(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / name).write_text("to do: train\n")
    monkeypatch.chdir(tmp_path)
    message = rf"^{name} is not a weights file \(one that ends in \.safetensors, \.index\.json, \.bin, \.pt, \.tar\.gz"
    for read in (XLMRobertaForMaskedLM.from_pretrained, find_tokenizer, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=message):
            read(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json: it is empty"),
        ("[1]", r"config\.json: expected a JSON object, but it holds a list"),
        ("null", "but it holds null"),
        ("5", "but it holds a number"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"model_type": "bert"}', "model_type 'bert' is not XLM-RoBERTa.*multilingual-e5-small, for one, is BERT"),
        ('{"model_type": "xlm-roberta"}', "config.json has no attention_probs_dropout_prob"),
        ("\ud800", "is not UTF-8"),
    ],
)
def test_a_config_that_is_none(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


# ---- safetensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 200, -1, -4096])
def test_truncated_safetensors(keep: int, folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: it is (truncated, corrupt|empty)"):
        load(folder)


def header(entries: Any, length: int | None = None, data: int = 64) -> bytes:
    """A safetensors file with this header, that claims to be `length` bytes long."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        header({}, length=2**63),
        header({}, length=2**40),
        header({}, length=10**8),
        header({"a": entry(0, 64, [16]), "b": entry(32, 64, [8])}),  # overlapping
        header({"a": entry(0, 2**62, [2**60])}),  # out of range
        header({"a": entry(64, 0, [16])}),  # backwards
        header({"a": entry(0, 64, [2**32, 2**32])}),  # its size overflows
        header({"a": entry(0, 64, [16], "F99")}),  # no such dtype
        header({"a": entry(0, 32, [8])}),  # bytes that belong to nobody
        header([1, 2]),
        b"\xff" * 64,
    ],
)
def test_hostile_headers(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><title>Not found</title></html>", "looks like a web page"),
        (b'{"error": "Repository not found"}', "looks like JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer.*git lfs pull"),
        (bytes(range(256)), "truncated, corrupt, or of another format"),
    ],
)
def test_foreign_files(name: str, data: bytes, message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()  # opening a folder fails for every user, root too
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read \(.*directory"):
        open_weights(folder / "model.safetensors")


# ---- pickles --------------------------------------------------------------------------------------------------------


class Payload:
    """Its pickle creates a file when it is unpickled by anything but a careful reader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 5"])
def test_a_pickle_that_would_run_code_is_refused_by_name(container: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    marker, path = folder / "marker", folder / "pytorch_model.bin"
    content = {"lm_head.bias": Payload(marker)}
    if container.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(container[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is refused.*Nothing was run.*(Path|Unsupported)"):
        load(folder)
    assert not marker.exists()
    if container in ("zip", "legacy", "pickle 2"):
        torch.load(path, weights_only=False) if container != "pickle 2" else pickle.loads(path.read_bytes())
        assert marker.exists()  # the payload is a real one


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3), {"model": {}}])
def test_a_pickle_of_something_else(content: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a plain mapping of names to tensors"):
        load(folder)


@pytest.mark.parametrize("keep", [1, 100, 4000, -1, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle(keep: int, zipped: bool, folder: Path, models: dict) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(models["masked-lm"].state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (cannot be read|is refused)"):
        load(folder)


# ---- shards ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    published.write(tmp_path / "shards", "masked-lm", max_shard_size="3KB")
    return tmp_path / "shards"


def change_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "model.safetensors.index.json", ".", "", 7])
def test_an_index_does_not_reach_out_of_its_folder(name: Any, shards: Path) -> None:
    change_index(shards, lambda weight_map: weight_map.update({"lm_head.bias": name}))
    with pytest.raises(CheckpointError, match=r"'lm_head\.bias' lies in .*, which is not a weights file beside it"):
        load(shards)


def test_a_shard_is_missing(shards: Path) -> None:
    lost = next(shards.glob("model-00002*"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"there is no {lost.name} beside .*index.json"):
        load(shards)


def test_index_and_shards_must_agree(shards: Path) -> None:
    change_index(shards, lambda weight_map: weight_map.pop("lm_head.bias"))
    with pytest.raises(CheckpointError, match=r"do not list the same tensors: 'lm_head\.bias' is in one of them only"):
        load(shards)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1]}', "<html>"])
def test_an_index_that_is_none(text: str, shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        load(shards)


def test_an_endless_index_is_not_read(shards: Path) -> None:
    with (shards / "model.safetensors.index.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(CheckpointError, match=r"index\.json: it has \d+ bytes, at most"):
        load(shards)


# ---- reading and writing --------------------------------------------------------------------------------------------


def test_open_weights_gives_every_tensor(folders: dict, models: dict) -> None:
    tensors = open_weights(folders["masked-lm"] / "model.safetensors")
    state = models["masked-lm"].state_dict()
    assert tensors.keys() == state.keys() - {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in tensors.items())


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), written_as(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert list(tmp_path.iterdir()) == []
    with written_as(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "whole"
