"""sentence-transformers folders, written here as that library writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint import published

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_core.model import XLMRobertaModel

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


def test_two_poolings_in_a_row(tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING], pooling_mode_cls_token=True)
    assert read_sentence_config(folder).pooling == ("cls", "mean")


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
        ([{**TRANSFORMER, "path": "../elsewhere"}], r"'\.\./elsewhere', which is no folder in it"),
        ([{**TRANSFORMER, "path": "/"}], "'/', which is no folder in it"),
        ([{**TRANSFORMER, "path": "3_None"}], "'3_None', which is no folder in it"),
        ([{**TRANSFORMER, "type": 7}], "something else than modules"),
    ],
)
def test_steps_that_are_not_known(modules: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CheckpointError, match=message):
        read_sentence_config(write(tmp_path / "folder", modules))


def test_no_pooling_is_switched_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which pooling"):
        read_sentence_config(write(tmp_path, [TRANSFORMER, POOLING], pooling_mode_mean_tokens=False))


@pytest.mark.parametrize("limit", ["128", 0, True, 1.5])
def test_a_limit_that_is_no_number(limit: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, [TRANSFORMER, POOLING])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    with pytest.raises(CheckpointError, match="which is no number of tokens"):
        read_sentence_config(folder)


@pytest.mark.parametrize("content", ["", "[", "7", "\x00"])
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
