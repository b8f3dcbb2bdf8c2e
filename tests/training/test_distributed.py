"""Training in two processes: the loss and the weights of one process, and a run that is killed ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.labelled_rows import classify_rows

from xlmr_core.training import FinetuneSettings, PretrainSettings, distributed, finetune, pretrain
from xlmr_core.training.masking import MaskedBatch

SETTINGS = PretrainSettings(
    vocabulary_size=55,
    hidden_size=24,
    layers=2,
    heads=2,
    intermediate_size=40,
    dropout=0.0,
    max_tokens=24,
    short_tokens=12,
    batch_size=5,  # the processes have parts of different sizes
    steps=8,
    warmup_steps=2,
    precision="float32",
)
ATOL = 1e-6

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(corpus_files: list[Path]) -> Launch:
    """Starts a run in two processes."""

    def start(output: Path, *options: str, settings: PretrainSettings = SETTINGS) -> "subprocess.Popen[str]":
        sizes = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(settings).items()]
        return torchrun("pretrain", *map(str, corpus_files), "--output", str(output), *options, *sizes)

    return start


def torchrun(*arguments: str) -> "subprocess.Popen[str]":
    """Starts a command of xlmr in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [*command, "-m", "xlmr_core", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout


def differences(first: Path, second: Path) -> list[float]:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    # The gradient of the bias of keys is zero but for rounding, and AdamW divides it by its own size.
    return [float((one[name] - two[name]).abs().max()) for name in one if not name.endswith("key.bias")]


def test_two_processes_end_with_the_weights_of_one(launch: Launch, corpus_files: list[Path], tmp_path: Path) -> None:
    pretrain(corpus_files, tmp_path / "one", SETTINGS)
    stdout = finish(launch(tmp_path / "two"))
    assert stdout == f"wrote {tmp_path / 'two'}\n"  # once
    assert max(differences(tmp_path / "one", tmp_path / "two")) < ATOL
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))
    pretrain(corpus_files, tmp_path / "two", SETTINGS)  # one process takes the state of two


@pytest.mark.slow
def test_sharded_weights_are_those_of_one_process(launch: Launch, corpus_files: list[Path], tmp_path: Path) -> None:
    pretrain(corpus_files, tmp_path / "one", SETTINGS)
    finish(launch(tmp_path / "two", "--shard", "--save-every", "3"))
    assert max(differences(tmp_path / "one", tmp_path / "two")) < ATOL
    assert os.listdir(tmp_path / "two" / "training_state") == ["00000008"]


def kill_and_continue(start: Callable[[Path], "subprocess.Popen[str]"], folder: Path, state: str) -> None:
    """A run in one go, and one whose second process is killed when the file `state` is there: the same bits."""
    finish(start(folder / "whole"))
    process = start(folder / "killed")
    while not (folder / "killed" / state).exists():
        assert process.poll() is None
        time.sleep(0.001)
    worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1])
    os.kill(worker, signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0
    assert not (folder / "killed" / "model.safetensors").exists()
    finish(start(folder / "killed"))
    whole, killed = (load_file(folder / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are found in /proc")
@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["whole", "sharded"])
def test_a_run_whose_process_is_killed_ends_with_the_same_bits(
    options: list[str], launch: Launch, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=200, dropout=0.1)
    kill_and_continue(
        lambda output: launch(output, "--save-every", "20", *options, settings=settings),
        tmp_path,
        "training_state/00000020/.metadata" if options else "training_state.pt",
    )


def test_the_rows_of_all_processes_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(24).view(4, 6)
    positions = torch.rand(4, 6) < 0.5
    batch = MaskedBatch(ids + 100, positions, ids[positions])
    monkeypatch.setenv(distributed.LAUNCHED, "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    rows: list[int] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        own = distributed.own_rows(batch)
        assert torch.equal(own.labels, (own.input_ids - 100)[own.positions])
        rows += own.input_ids[:, 0].tolist()
    assert sorted(rows) == batch.input_ids[:, 0].tolist()


def test_what_cannot_be_shared_out(corpus_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is one process, and nothing to shard: start several by torchrun"):
        pretrain(corpus_files, tmp_path / "out", SETTINGS, shard=True)
    monkeypatch.setenv(distributed.LAUNCHED, "x")
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="batch_size must be at least 6, the number of processes, not 5"):
        pretrain(corpus_files, tmp_path / "out", SETTINGS)


@pytest.fixture
def finetuning(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path, FinetuneSettings, list[str]]:
    """Rows to train on and to evaluate on, settings, and the same as options of the command."""
    paths = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    for path, seed in zip(paths, (1, 2), strict=True):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in classify_rows(40, seed)]
        path.write_text("".join(lines), encoding="utf-8")
    settings = FinetuneSettings("classify", epochs=2, batch_tokens=60, batches_per_step=3, dropout=0.0)
    options = ["--task", "classify", "--epochs", "2", "--batch-tokens", "60", "--batches-per-step", "3"]
    options += ["--dropout", "0", "--train", str(paths[0]), "--eval", str(paths[1]), "--model", str(checkpoint)]
    return *paths, settings, options


def test_fine_tuning_in_two_processes_ends_with_the_weights_of_one(
    finetuning: tuple[Path, Path, FinetuneSettings, list[str]], checkpoint: Path, tmp_path: Path
) -> None:
    train, held_out, settings, options = finetuning
    one = finetune(train, tmp_path / "one", settings, held_out=held_out, model=checkpoint)
    stdout = finish(torchrun("finetune", *options, "--output", str(tmp_path / "two")))
    assert stdout == f"wrote {tmp_path / 'two'}\n{one}\n"
    assert max(differences(tmp_path / "one", tmp_path / "two")) < ATOL
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are found in /proc")
def test_fine_tuning_whose_process_is_killed_ends_with_the_same_bits(
    finetuning: tuple[Path, Path, FinetuneSettings, list[str]], tmp_path: Path
) -> None:
    options = [*finetuning[-1], "--dropout", "0.1", "--epochs", "40"]
    kill_and_continue(
        lambda output: torchrun("finetune", *options, "--output", str(output)), tmp_path, "training_state.pt"
    )


def test_every_process_has_as_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(distributed.LAUNCHED, "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(distributed.own_batches("abcd"))
    assert shares == [[("a", 3.0), ("d", 3.0)], [("b", 3.0), ("a", 0.0)], [("c", 3.0), ("a", 0.0)]]
