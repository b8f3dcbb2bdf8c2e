"""A run with a damaged state, a full disk, numbers that are not finite, or another run in its folder."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from training.test_loop import SMALL

from xlmr_core.cli import main
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.training import pretrain
from xlmr_core.training.lock import LOCK, locked
from xlmr_core.training.optimization import parameter_groups
from xlmr_core.training.state import restore_state, save_state

ONE_STEP = replace(SMALL, steps=1, warmup_steps=0)
STEPS = 3
Run = tuple[XLMRobertaForMaskedLM, torch.optim.Optimizer]


def new_run() -> Run:
    model = XLMRobertaForMaskedLM(SMALL.config(57))
    model.initialize()
    return model, torch.optim.AdamW(parameter_groups(model, 0.1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The state of a run after one step."""
    model, optimizer = new_run()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_state(tmp_path / "training_state.pt", model, optimizer, 1)
    return tmp_path / "training_state.pt"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the state ------------------------------------------------------------------------------------------------------


def test_a_saved_state_is_restored(saved: Path) -> None:
    model, optimizer = new_run()
    assert restore_state(saved, model, optimizer, STEPS) == 1
    state = torch.load(saved, weights_only=True)
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in model.state_dict().items())
    moments = optimizer.state_dict()["state"]
    assert all(torch.equal(own["exp_avg"], state["optimizer"]["state"][n]["exp_avg"]) for n, own in moments.items())


@pytest.mark.parametrize("content", [b"", b"junk", b"<html>", b"[1, 2]", b"\x80\x02]q\x00.", b"PK\x03\x04"])
def test_a_file_that_is_not_a_state_is_refused(content: bytes, saved: Path) -> None:
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"training_state\.pt is not a state that .*: .+\. Replace it with a copy, or"):
        restore_state(saved, *new_run(), STEPS)


def test_a_truncated_state_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(0, len(whole), len(whole) // 50):
        saved.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="is not a state that this run can continue from"):
            restore_state(saved, *new_run(), STEPS)


def first_moment(state: dict[str, Any], value: Any) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = value


def not_finite(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


BIAS = "lm_head.dense.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("step"), "does not hold model, optimizer, step"),
        (lambda state: state.update(more=1), "does not hold model, optimizer, step"),
        (lambda state: state.update(step="1"), "step must be a whole number from 1 to 3"),
        (lambda state: state.update(step=True), "step must be a whole number"),
        (lambda state: state.update(step=4), "step must be a whole number"),
        (lambda state: state.update(step=-1), "step must be a whole number"),
        (lambda state: state.update(step=2), "parameter 0 of the optimizer was saved at another step"),
        (lambda state: state.update(model=[1]), "the model has other tensors"),
        (lambda state: state["model"].pop(BIAS), "the model has other tensors"),
        (lambda state: state["model"].update({BIAS: 3}), f"{BIAS} of the model is not a float32 tensor"),
        (lambda state: state["model"].update({BIAS: torch.zeros(24).half()}), "is not a float32 tensor"),
        (lambda state: state["model"].update({BIAS: torch.zeros(24).to_sparse()}), "is not a float32 tensor"),
        (lambda state: state["model"].update({BIAS: torch.zeros(23)}), r"must have the shape \(24,\), not \(23,\)"),
        (
            lambda state: state["model"].update({BIAS: torch.zeros(24, device="meta")}),
            r"is on the meta device, without values",
        ),
        (lambda state: not_finite(state["model"][BIAS]), f"the model, {BIAS} holds NaN or Inf"),
        (lambda state: state.update(optimizer=None), "no state for each of the"),
        (lambda state: state["optimizer"]["state"].pop(3), "no state for each of the"),
        (lambda state: state["optimizer"]["state"].update({0: 1}), "parameter 0 of the optimizer has other tensors"),
        (
            lambda state: first_moment(state, torch.zeros(1)),
            "exp_avg of parameter 0 of the optimizer must have the shape",
        ),
        (lambda state: first_moment(state, None), "exp_avg of parameter 0 of the optimizer is not a float32"),
        (lambda state: not_finite(state["optimizer"]["state"][0]["exp_avg_sq"]), "exp_avg_sq holds NaN or Inf"),
    ],
)
def test_a_state_of_another_model_is_refused(change: Callable[[Any], Any], message: str, saved: Path) -> None:
    state = torch.load(saved, weights_only=True)
    change(state)
    torch.save(state, saved)
    model, optimizer = new_run()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        restore_state(saved, model, optimizer, STEPS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_full_disk_leaves_the_old_state_and_nothing_temporary(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(state: Any, file: Any) -> None:
        file.write(bytes(1_000))
        raise RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file\nmore")

    before = files_of(saved.parent)
    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match=r"training_state\.pt cannot be written \(.*failed writing file\)\. Make room"):
        save_state(saved, *new_run(), 2)
    assert files_of(saved.parent) == before


# ---- numbers that are not finite ------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_written(corpus_files: list[Path], tmp_path: Path) -> None:
    """The loss of the last update is never computed."""
    with pytest.raises(FloatingPointError, match=r"after 1 steps, .* holds NaN or Inf: try a lower learning rate"):
        pretrain(corpus_files, tmp_path, replace(ONE_STEP, learning_rate=1e12, weight_decay=1e30))
    assert sorted(files_of(tmp_path)) == ["run.json", "sentencepiece.bpe.model"]


def test_weights_that_the_dtype_cannot_hold_are_not_written(corpus_files: list[Path], tmp_path: Path) -> None:
    settings = replace(ONE_STEP, learning_rate=1e6)
    with pytest.raises(ValueError, match="which is infinite in float16"):
        pretrain(corpus_files, tmp_path, settings, save_dtype=torch.float16)
    assert sorted(files_of(tmp_path)) == ["run.json", "sentencepiece.bpe.model", "training_state.pt"]
    pretrain(corpus_files, tmp_path, settings)  # the state is sound: the run can be written in a wider dtype
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())


def test_the_command_ends_with_status_1(corpus_files: list[Path], tmp_path: Path) -> None:
    small = {"vocabulary-size": 55, "hidden-size": 8, "layers": 1, "heads": 1, "intermediate-size": 8, "steps": 1}
    options = [argument for name, value in small.items() for argument in (f"--{name}", str(value))]
    wild = ["--learning-rate", "1e6", "--warmup-steps", "0", "--save-dtype", "float16", "--max-tokens", "24"]
    command = ["pretrain", *map(str, corpus_files), "-o", str(tmp_path), *options, *wild, "--short-tokens", "12"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "infinite in float16" in result.stderr.splitlines()[-1]
    (tmp_path / "training_state.pt").write_bytes(b"")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "training_state.pt is not a state that this run can continue from" in result.stderr.splitlines()[-1]


# ---- the text -------------------------------------------------------------------------------------------------------


def test_a_run_is_not_continued_with_other_text(corpus_files: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in corpus_files]
    for copy, path in zip(copies, corpus_files, strict=True):
        copy.write_bytes(path.read_bytes())
    pretrain(copies, tmp_path / "out", ONE_STEP)
    before = files_of(tmp_path / "out")
    copies[0].write_bytes(corpus_files[0].read_bytes() + b"one more sentence\n")
    with pytest.raises(ValueError, match="a run with other corpus files, by name or content: give the same"):
        pretrain(copies, tmp_path / "out", ONE_STEP)
    assert files_of(tmp_path / "out") == before


def test_two_files_of_one_language_are_an_error(corpus_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("the cat\n")
    files = [*corpus_files, tmp_path / "en.txt"]
    for corpus, held_out in ((files, []), (corpus_files, files)):
        with pytest.raises(ValueError, match=r"en\.txt, .*en\.txt are one language by their name, 'en'"):
            pretrain(corpus, tmp_path / "out", ONE_STEP, held_out_files=held_out)
    assert not (tmp_path / "out").exists()


def test_held_out_text_without_a_token_to_mask_is_an_error(corpus_files: list[Path], tmp_path: Path) -> None:
    """Its accuracy would be NaN, which is not JSON."""
    (tmp_path / "en.txt").write_text("\x01\n", encoding="utf-8")  # the tokenizer drops it
    with pytest.raises(ValueError, match=r"en\.txt has no token to mask"):
        pretrain(corpus_files, tmp_path / "out", ONE_STEP, held_out_files=[tmp_path / "en.txt"])
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="makes a named pipe: run it on Linux or macOS")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "en.txt")
    with pytest.raises(ValueError, match=r"en\.txt is not a regular file"):
        pretrain([tmp_path / "en.txt"], tmp_path / "out", ONE_STEP)


# ---- the folder -----------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX systems lock files so: run it on Linux or macOS")


@posix
def test_a_second_run_in_a_folder_is_refused_and_the_first_is_named(corpus_files: list[Path], tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on .*remove .*{LOCK}"):
        pretrain(corpus_files, tmp_path, ONE_STEP)
    assert files_of(tmp_path) == {}
    pretrain(corpus_files, tmp_path, ONE_STEP)
    assert LOCK not in files_of(tmp_path)


@posix
def test_the_lock_of_a_killed_process_is_taken_over(
    corpus_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_text(f"process 7 on {platform.node()}")
    pretrain(corpus_files, tmp_path, ONE_STEP)
    assert f"was held by process 7 on {platform.node()}, which has ended" in capsys.readouterr().err
    (tmp_path / LOCK).write_text("process 7 on elsewhere")
    with pytest.raises(ValueError, match="in use by process 7 on elsewhere"):
        pretrain(corpus_files, tmp_path, ONE_STEP)


@posix
def test_a_lock_that_is_a_link_is_not_followed(corpus_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK):
        pretrain(corpus_files, tmp_path / "out", ONE_STEP)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_text_file_in_the_folder_is_unchanged(corpus_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("a log")
    pretrain(corpus_files, tmp_path, ONE_STEP)
    assert (tmp_path / "log.txt").read_text() == "a log"
    assert json.loads((tmp_path / "run.json").read_text())["corpus"][0]["name"] == "en.txt"
