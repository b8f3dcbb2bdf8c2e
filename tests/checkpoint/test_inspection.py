"""What `inspect_checkpoint` tells of a file, and that it does not load it to do so."""

import math
from pathlib import Path

import pytest
import torch
from checkpoint import published

from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint


@pytest.mark.parametrize("kind", published.KINDS)
def test_a_sound_checkpoint(kind: str, folders: dict) -> None:
    found = inspect_checkpoint(folders[kind])
    tensors = published.tensors_of(folders[kind])
    assert found.config == published.config_of(kind)
    assert found.problems == ()
    assert {info.key: (info.dtype, info.shape) for info in found.keys} == {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()
    }
    assert found.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert found.tied == (None if kind.startswith("encoder") else True)
    assert found.model == ("XLMRobertaModel" if kind.startswith("encoder") else "XLMRobertaForMaskedLM")
    assert {info.status.status for info in found.keys if info.status is not None} == {"loaded"}
    assert all(info.values is None for info in found.keys)


def test_it_prints(folders: dict) -> None:
    lines = str(inspect_checkpoint(folders["masked-lm"], values=True)).splitlines()
    assert any("HF post-norm with 'roberta.', as XLMRobertaForMaskedLM, decoder tied" in line for line in lines)
    row = next(line for line in lines if line.startswith("roberta.embeddings.word_embeddings.weight"))
    assert row.split()[1:5] == ["float32", "53x24", "5,088", "norm"]
    assert row.endswith("loaded <-> encoder.embeddings.word_embeddings.weight")
    assert not any("PROBLEM" in line or "NOT FINITE" in line for line in lines)


def test_values(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    weight = tensors["lm_head.dense.weight"]
    norm = math.sqrt(weight.double().square().sum().item() - weight[0, :3].double().square().sum().item())
    weight[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    found = inspect_checkpoint(published.rewritten(folders["masked-lm"], tmp_path, tensors), values=True)
    values = {info.key: info.values for info in found.keys}
    bad = values["lm_head.dense.weight"]
    assert bad is not None
    assert (bad.nan, bad.inf) == (1, 2)
    assert bad.norm == pytest.approx(norm)
    assert [key for key, value in values.items() if value is not None and value.nan] == ["lm_head.dense.weight"]
    assert "NOT FINITE: lm_head.dense.weight" in str(found)
    assert found.not_finite == ("lm_head.dense.weight",)
    assert found.problems == ()  # it loads: what to do about NaN is the reader's choice


def test_integers_have_values_too(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["encoder"]) | {"embeddings.position_ids": torch.arange(31)[None]}
    found = inspect_checkpoint(published.rewritten(folders["encoder"], tmp_path, tensors), values=True)
    info = next(info for info in found.keys if info.key == "embeddings.position_ids")
    assert info.values is not None
    assert info.values.norm == pytest.approx(math.sqrt(30 * 31 * 61 / 6))
    assert info.status is not None
    assert info.status.status == "dropped"


def test_differences_are_told_not_raised(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors["lm_head.bais"] = tensors.pop("lm_head.bias")
    tensors["lm_head.dense.bias"] = torch.zeros(25)
    found = inspect_checkpoint(published.rewritten(folders["masked-lm"], tmp_path, tensors))
    text = str(found)
    assert "PROBLEM: the keys are not those of any known key layout. Nearest: HF post-norm with 'roberta.'" in text
    assert "PROBLEM: lm_head.dense.bias has shape (25,), but config.json asks for (24,)" in text
    row = next(line for line in text.splitlines() if line.startswith("lm_head.bais"))
    assert row.endswith("UNKNOWN")


def test_a_name_cannot_paint_on_the_terminal(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["encoder"]) | {"\x1b[2Jgone": torch.zeros(1)}
    assert "\x1b" not in str(inspect_checkpoint(published.rewritten(folders["encoder"], tmp_path, tensors)))


def test_tied_tensors_are_compared_on_request(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"] + 1
    folder = published.rewritten(folders["masked-lm"], tmp_path, tensors)
    assert inspect_checkpoint(folder).problems == ()
    (problem,) = inspect_checkpoint(folder, values=True).problems
    assert "lm_head.decoder.bias differs from lm_head.bias" in problem


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights that can be read"):
        inspect_checkpoint(tmp_path)
