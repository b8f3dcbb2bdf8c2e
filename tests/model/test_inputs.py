"""Input and devices that a model cannot take: each is an error that names the way out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from xlmr_core import FillMask, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.cli import main
from xlmr_core.devices import check_device
from xlmr_core.training import PretrainSettings, pretrain

ABSENT = ["foo", "cuda:x", "cuda:-1", "", "cuda:99", "hpu", "xla"]


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_that_is_there(device: torch.device | str) -> None:
    assert check_device(device) == torch.device(device)


def test_on_the_meta_device_nothing_can_be_computed() -> None:
    assert check_device("meta", computes=False) == torch.device("meta")
    with pytest.raises(ValueError, match=r"device 'meta' holds shapes and no numbers.*; there is cpu"):
        check_device("meta")


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


@pytest.mark.parametrize(
    ("device", "message"), [("foo", "there is no device 'foo'; there is cpu"), ("meta", "device 'meta' holds shapes")]
)
@pytest.mark.parametrize("command", ["fill-mask", "pretrain"])
def test_on_the_command_line(command: str, device: str, message: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a cat\n")
    arguments = {
        "fill-mask": ["<mask>", "--model", str(toy_checkpoint)],
        "pretrain": [str(tmp_path / "en.txt"), "-o", str(tmp_path / "out")],
    }[command]
    result = CliRunner().invoke(main, [command, *arguments, "--device", device])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message}")


def test_a_floating_mask_must_be_of_zeros_and_ones(toy_checkpoint: Path) -> None:
    model = XLMRobertaModel.from_pretrained(toy_checkpoint)
    ids = torch.tensor([[0, 5, 6, 2], [0, 5, 2, 1]])
    mask = (ids != 1).float()
    expected = model(ids, mask).last_hidden_state
    for lowest in (-torch.inf, torch.finfo(torch.float32).min, torch.nan):
        additive = torch.zeros_like(mask).masked_fill(mask == 0, lowest)
        with pytest.raises(
            ValueError, match=r"attention_mask contains (-inf|-3\.4.*|nan), expected 1 for a token .* == 0`"
        ):
            model(ids, additive)
        assert torch.equal(model(ids, additive == 0).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("output_attentions", r"with model\.capture\(\"layers\.\*\.attention\.probs\"\)"),
        ("output_hidden_states", r"with model\.capture\(.*\"layers\.\*\.output\"\)"),
        ("return_dict", "always has named fields"),
        ("inputs_embeds", r"with model\.intervene\(\{\"embeddings\.word\": "),
        ("labels", r"torch\.nn\.functional\.cross_entropy"),
    ],
)
def test_what_transformers_takes_is_pointed_to_what_does_it_here(name: str, way_out: str, toy_checkpoint: Path) -> None:
    model = XLMRobertaModel.from_pretrained(toy_checkpoint)
    with pytest.raises(TypeError, match=f"the model takes no argument {name}: .*{way_out}"):
        model(torch.tensor([[0, 5, 2]]), **{name: True})


def test_a_batch_is_unpacked_into_a_call(toy_checkpoint: Path) -> None:
    model = XLMRobertaModel.from_pretrained(toy_checkpoint)
    batch = XLMRobertaTokenizer.from_pretrained(toy_checkpoint)("the cat")
    calls: list[tuple[str, Any]] = [
        ("Batch", lambda: model(batch)),
        ("Batch", lambda: model(input_ids=batch)),
        ("dict", lambda: model(dict(batch))),
        ("list", lambda: model([[0, 5, 2]])),
    ]
    for kind, call in calls:
        with pytest.raises(TypeError, match=rf"must be a tensor of token ids, not {kind}: .* as model\(\*\*batch\)"):
            call()
