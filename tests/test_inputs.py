"""A device that is not there is told in words, wherever one can be named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from xlmr_core import FillMask, XLMRobertaModel
from xlmr_core.cli import main
from xlmr_core.inputs import check_device
from xlmr_core.training import PretrainSettings, pretrain

ABSENT = ["foo", "cuda:x", "cuda:-1", "", "cuda:99", "hpu", "xla"]


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu")])
def test_a_device_that_is_there(device: torch.device | str) -> None:
    assert check_device(device) == torch.device(device)


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}'.*; there is cpu") as raised:
        check_device(device)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 250


def test_an_accelerator_is_among_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"there is cpu, cuda:0, cuda:1$"):
        check_device("foo")


def test_wherever_one_can_be_named(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a cat\n")
    calls: list[Any] = [
        lambda: XLMRobertaModel.from_pretrained(toy_checkpoint, device="foo"),
        lambda: XLMRobertaModel.from_pretrained(tmp_path / "nothing", device="foo"),  # before anything is looked for
        lambda: FillMask.from_pretrained(toy_checkpoint, device="foo"),
        lambda: pretrain([tmp_path / "en.txt"], tmp_path / "out", PretrainSettings(), device="foo"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="there is no device 'foo'; there is cpu"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["fill-mask", "pretrain"])
def test_on_the_command_line(command: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a cat\n")
    arguments = {
        "fill-mask": ["<mask>", "--model", str(toy_checkpoint)],
        "pretrain": [str(tmp_path / "en.txt"), "-o", str(tmp_path / "out")],
    }[command]
    result = CliRunner().invoke(main, [command, *arguments, "--device", "foo"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is no device 'foo'; there is cpu")
