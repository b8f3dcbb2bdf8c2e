"""sentence-transformers folders, written here as that library writes them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint import published

from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.sentence_transformers import SIZE_LIMIT, SentenceConfig, read_sentence_config
from xlmr_core.checkpoint.trimming import trim
from xlmr_core.model import XLMRobertaModel
from xlmr_core.tokenizer import XLMRobertaTokenizer

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
SWITCHES = {
    "word_embedding_dimension": 24,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def write(folder: Path, modules: Any, **switches: Any) -> Path:
    for name in ("", "0_Transformer", "1_Pooling", "2_Normalize", "2_Dense"):
        (folder / name).mkdir(exist_ok=True, parents=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(SWITCHES | switches))
    return folder


def test_mean_and_normalize(tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING, NORMALIZE])
    assert read_sentence_config(folder) == SentenceConfig(folder, ("mean",), True, None)


def test_cls_and_no_more(tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING], pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
    assert read_sentence_config(folder) == SentenceConfig(folder, ("cls",), False, 128)


def test_poolings_in_a_row(tmp_path: Path) -> None:
    """In the order of sentence-transformers' Pooling.forward, whatever that of the switches."""
    folder = write(tmp_path, [TRANSFORMER, POOLING], pooling_mode_cls_token=True, pooling_mode_max_tokens=True)
    assert read_sentence_config(folder).pooling == ("cls", "max", "mean")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("mean", ("mean",)),
        (["mean", "cls"], ("mean", "cls")),
        ("mean_sqrt_len_tokens", ("mean_sqrt_len",)),
        ("weightedmean", ("weighted_mean",)),
        ("lasttoken", ("last",)),
    ],
)
def test_pooling_named_as_newer_versions_do(named: Any, expected: tuple[str, ...], tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING], pooling_mode=named)
    assert read_sentence_config(folder).pooling == expected


@pytest.mark.parametrize("named", ["median", 3, ["mean", "median"], {}])
def test_a_pooling_that_is_not_known(named: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING], pooling_mode=named)
    with pytest.raises(CheckpointError, match=r"pooling_mode .*, which is not one of cls, max, mean"):
        read_sentence_config(folder)


def test_an_older_name_of_the_limit(tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING])
    (folder / "sentence_xlm-roberta_config.json").write_text('{"max_seq_length": 64}')
    assert read_sentence_config(folder).max_tokens == 64
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert read_sentence_config(folder).max_tokens == 128


def test_normalize_needs_no_folder(tmp_path: Path) -> None:
    """It has nothing to save, and git keeps no empty folder."""
    folder = write(tmp_path, [TRANSFORMER, POOLING, NORMALIZE])
    (folder / "2_Normalize").rmdir()
    assert read_sentence_config(folder).normalize


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([TRANSFORMER, POOLING, DENSE], r"the step 'sentence_transformers\.models\.Dense'"),
        ([POOLING, TRANSFORMER], r"the step 'sentence_transformers\.models\.Pooling' where"),
        ([TRANSFORMER, NORMALIZE, POOLING], r"the step 'sentence_transformers\.models\.Normalize' where"),
        ([TRANSFORMER, TRANSFORMER, POOLING], r"the step 'sentence_transformers\.models\.Transformer' where"),
        ([TRANSFORMER], "does not say which transformer and which pooling"),
        ([], "does not say which transformer and which pooling"),
        (["os.system"], "something else than modules"),
        ({"type": "Transformer"}, "does not hold a JSON list"),
        ([{**TRANSFORMER, "path": "../elsewhere"}], r"'\.\./elsewhere', which is not a folder in it"),
        ([{**TRANSFORMER, "path": "/"}], "'/', which is not a folder in it"),
        ([{**TRANSFORMER, "path": "..\\elsewhere"}], "which is not a folder in it"),
        ([{**TRANSFORMER, "path": "a\x00b"}], "which is not a folder in it"),
        ([TRANSFORMER, POOLING, {**NORMALIZE, "path": "../elsewhere"}], "which is not a folder in it"),
        ([{**TRANSFORMER, "path": "3_None"}], "'3_None', which is not a folder in it"),
        ([{**TRANSFORMER, "type": 7}], "something else than modules"),
    ],
)
def test_steps_that_are_not_known(modules: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CheckpointError, match=message):
        read_sentence_config(write(tmp_path / "folder", modules))


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", [TRANSFORMER, POOLING])
    elsewhere = (folder / "1_Pooling").rename(tmp_path / "elsewhere")
    (folder / "1_Pooling").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="'1_Pooling', which is not a folder in it"):
        read_sentence_config(folder)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING])
    (folder / "1_Pooling" / "config.json").write_bytes(b" " * (SIZE_LIMIT + 1))
    with pytest.raises(CheckpointError, match=f"has {SIZE_LIMIT + 1} bytes; at most {SIZE_LIMIT} are read"):
        read_sentence_config(folder)


def test_no_pooling_is_switched_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which pooling"):
        read_sentence_config(write(tmp_path, [TRANSFORMER, POOLING], pooling_mode_mean_tokens=False))


@pytest.mark.parametrize("limit", ["128", 0, True, 1.5])
def test_a_limit_that_is_no_number(limit: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    with pytest.raises(CheckpointError, match="which is not a number of tokens"):
        read_sentence_config(folder)


@pytest.mark.parametrize("content", ["", "[", "7", "\x00", "[" * 100_000])
def test_damaged_files(content: str, tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING])
    (folder / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json (cannot be read|does not hold)"):
        read_sentence_config(folder)


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_the_encoder_is_found_where_modules_json_says(place: str, folders: dict, tmp_path: Path) -> None:
    write(tmp_path, [{**TRANSFORMER, "path": place}, POOLING])
    for file in folders["encoder"].iterdir():
        (tmp_path / place / file.name).write_bytes(file.read_bytes())
    model, expected = XLMRobertaModel.from_pretrained(tmp_path), XLMRobertaModel.from_pretrained(folders["encoder"])
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert published.tensors_of(tmp_path / place)


# ---- copying --------------------------------------------------------------------------------------------------------

PLACES = ["", "0_Transformer", "models/encoder"]
CONFIGURATION = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")


def sentence_folder(folder: Path, source: Path, place: str = "") -> Path:
    """The checkpoint of `source` in a sentence-transformers folder, with odd spaces in its files."""
    write(folder, [{**TRANSFORMER, "path": place}, POOLING, NORMALIZE])
    (folder / place).mkdir(exist_ok=True, parents=True)
    for file in source.iterdir():
        (folder / place / file.name).write_bytes(file.read_bytes())
    (folder / place / "sentence_bert_config.json").write_text('{ "max_seq_length":  17, "do_lower_case": false }')
    (folder / "config_sentence_transformers.json").write_text('{"prompts":  {"query": "query: "}}\n')
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_sentences(before: Path, after: Path, place: str) -> None:
    """The same configuration, byte for byte, and read to the same result."""
    first, second = read_sentence_config(before), read_sentence_config(after)
    assert (first.transformer, second.transformer) == (before / place, after / place)
    assert second == replace(first, transformer=second.transformer)
    assert (second.pooling, second.normalize, second.max_tokens) == (("mean",), True, 17)
    old, new = files_of(before), files_of(after)
    limit = (Path(place) / "sentence_bert_config.json").as_posix()
    assert all(new[name] == old[name] for name in (*CONFIGURATION, limit))


@pytest.mark.parametrize("to", ["hf", "native"])
@pytest.mark.parametrize("place", PLACES)
def test_convert_carries_it(place: str, to: str, folders: dict, tmp_path: Path) -> None:
    source = sentence_folder(tmp_path / "source", folders["encoder"], place)
    report = convert(source, tmp_path / "out", to)
    assert_same_sentences(source, tmp_path / "out", place)
    own = [
        (Path(place) / name).as_posix() for name in ("config.json", "model.safetensors", "sentence_bert_config.json")
    ]
    assert sorted(files_of(tmp_path / "out")) == sorted(report.files) == sorted([*CONFIGURATION, *own])
    assert "not carried" not in str(report)
    model, expected = (XLMRobertaModel.from_pretrained(folder) for folder in (tmp_path / "out", folders["encoder"]))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    convert(tmp_path / "out", tmp_path / "back", "hf")
    assert_same_sentences(source, tmp_path / "back", place)


@pytest.mark.parametrize("to", ["fairseq", "torchtext"])
@pytest.mark.parametrize("place", PLACES[:2])
def test_forms_without_a_place_for_it_say_so(place: str, to: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    tensors = published.tensors_of(toy_checkpoint)
    tensors["roberta.embeddings.token_type_embeddings.weight"].zero_()  # fairseq has none
    plain = published.copied(toy_checkpoint, tmp_path / "plain")
    source = sentence_folder(tmp_path / "source", published.rewritten(plain, plain, tensors), place)
    report = convert(source, tmp_path / "out", to, drop=["lm_head"])
    [note] = [note for note in report.notes if "not carried over" in note]
    assert note.startswith(f"note: not carried over, as {to} has no place for them: modules.json, config_sentence")
    assert all(name in note for name in ("1_Pooling/config.json", "sentence_bert_config.json"))
    assert {"config.json", "model.pt"} < set(report.files)
    assert not any(name.startswith(("modules", "1_Pooling", "sentence_", "config_")) for name in report.files)


@pytest.mark.parametrize("place", PLACES)
def test_trim_carries_it(place: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    source = sentence_folder(tmp_path / "source", toy_checkpoint, place)
    report = trim(source, tmp_path / "out", keep=["▁"])
    assert_same_sentences(source, tmp_path / "out", place)
    assert XLMRobertaModel.from_pretrained(tmp_path / "out").config.vocab_size == report.vocab_size
    assert report.num_bytes == (tmp_path / "out" / place / "model.safetensors").stat().st_size
    assert XLMRobertaTokenizer.from_pretrained(tmp_path / "out").vocab_size == report.vocab_size
    assert {Path(name).parent.as_posix() for name in files_of(tmp_path / "out")} == {
        Path(place).as_posix(),
        ".",
        "1_Pooling",
    }


def test_inspect_tells_of_it(folders: dict, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, folders["encoder"], "0_Transformer")
    assert "sentence pooling mean, then length 1, at most 17 tokens" in str(inspect_checkpoint(folder))
    (folder / "1_Pooling" / "config.json").unlink()
    assert "sentence-transformers folder it is not understood" in str(inspect_checkpoint(folder))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("modules.json", json.dumps([TRANSFORMER, POOLING, DENSE]), r"the step 'sentence_transformers\.models\.Dense'"),
        ("modules.json", json.dumps([TRANSFORMER, {**POOLING, "path": "../secret"}]), "which is not a folder in it"),
        ("modules.json", json.dumps([{**TRANSFORMER, "path": "0_Transformer"}, POOLING]), "it names the model in"),
        ("modules.json", "{", "cannot be read"),
        ("1_Pooling/config.json", "PRIVATE KEY", "cannot be read"),
        ("config_sentence_transformers.json", "PRIVATE KEY", "cannot be read"),
        ("config_sentence_transformers.json", "[]", "does not hold a JSON object"),
        ("config_sentence_transformers.json", " " * (SIZE_LIMIT + 1), "at most"),
    ],
)
def test_what_is_not_understood_stays_behind_and_is_told(
    name: str, content: str, reason: str, folders: dict, tmp_path: Path
) -> None:
    """The weights go over all the same."""
    source = sentence_folder(tmp_path / "source", folders["encoder"])
    (source / name).write_text(content)
    report = convert(source, tmp_path / "out", "hf")
    [note] = report.notes[-1:]
    assert note.startswith("note: modules.json and what belongs to it are not carried over")
    assert re.search(reason, note)
    assert sorted(files_of(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_a_link_out_of_the_folder_is_not_copied(folders: dict, tmp_path: Path) -> None:
    source = sentence_folder(tmp_path / "source", folders["encoder"])
    (tmp_path / "secret.json").write_text('{"token": "secret"}')
    (source / "config_sentence_transformers.json").unlink()
    (source / "config_sentence_transformers.json").symlink_to(tmp_path / "secret.json")
    report = convert(source, tmp_path / "out", "hf")
    assert "is a link to" in report.notes[-1]
    assert sorted(files_of(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_a_pooling_beside_the_model_does_not_overwrite_its_config(folders: dict, tmp_path: Path) -> None:
    source = sentence_folder(tmp_path / "source", folders["encoder"])
    (source / "modules.json").write_text(json.dumps([TRANSFORMER, {**POOLING, "path": ""}]))
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"pooling_mode": "mean", "dtype": "float32"}))
    convert(source, tmp_path / "out", "hf", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert read_sentence_config(tmp_path / "out").pooling == ("mean",)
