"""Files shared out among processes, one of which is killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xlmr_core.cli import rows as rows_module
from xlmr_core.engines.shards import run_shards
from xlmr_core.tasks import Embed

WORDS = ("the cat", "a bird", "sings", "кіт", "")


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{name}.txt" for name in "abcde"]
    for number, path in enumerate(paths):
        path.write_text("".join(f"{WORDS[(i + number) % 5]} {i}\n" for i in range(10 + number)), encoding="utf-8")
    return paths


def test_every_file_has_one_output(inputs: list[Path], toy_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", str(toy_checkpoint)]
    shares = [
        run_shards("embed", reversed(inputs), tmp_path / "out", suffix=".npy", options=options, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert [[path.name for path in share] for share in shares] == [["a.npy", "c.npy", "e.npy"], ["b.npy", "d.npy"]]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.npy", "b.npy", "c.npy", "d.npy", "e.npy", "shards.json"]
    embed = Embed.from_pretrained(toy_checkpoint)
    for path in inputs:
        expected = embed.batch(path.read_text(encoding="utf-8").splitlines())
        assert np.array_equal(np.load(tmp_path / "out" / f"{path.stem}.npy"), expected.numpy())


def test_torchrun_gives_the_rank(
    inputs: list[Path], toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    options = ["--model", str(toy_checkpoint)]
    done = run_shards("score", inputs, tmp_path / "out", suffix=".jsonl", options=options)
    assert [path.name for path in done] == ["c.jsonl"]
    assert len(done[0].read_text(encoding="utf-8").splitlines()) == 12


def test_what_cannot_be_shared_out(inputs: list[Path], toy_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", str(toy_checkpoint)]
    run_shards("embed", inputs[:1], tmp_path, suffix=".npy", options=options)
    with pytest.raises(ValueError, match=r"has outputs of the options .*, but now it is .*: give the same, or"):
        run_shards("embed", inputs, tmp_path, suffix=".npy", options=[*options, "--truncate"])
    with pytest.raises(ValueError, match="2 inputs have the name a: "):
        run_shards("embed", [*inputs, tmp_path / "a.jsonl"], tmp_path, suffix=".npy", options=options)
    with pytest.raises(ValueError, match=r"rank must lie between 0 and world_size - 1 \(1\), not be 2"):
        run_shards("embed", inputs, tmp_path, suffix=".npy", rank=2, world_size=2)
    with pytest.raises(ValueError, match="command 'convert' is not one of embed, classify"):
        run_shards("convert", inputs, tmp_path, suffix=".npy")


KILL = """
import os, signal, sys, time
from pathlib import Path

import xlmr_core.cli.embed
from xlmr_core.cli import rows
from xlmr_core.engines.shards import run_shards

rows.CHUNK_ROWS = 50
folder, model = Path(sys.argv[1]), sys.argv[2]

def work(rank, world_size):
    options = ["--model", model]
    run_shards("embed", folder.glob("in/*"), folder / "out", suffix=".npy", options=options, rank=rank,
               world_size=world_size)

children = []
for rank in (0, 1):
    children.append(os.fork())
    if not children[-1]:
        work(rank, 2)
        os._exit(0)
while not (folder / "out" / "b.npy.partial.json").exists():
    time.sleep(0.001)
os.kill(children[1], signal.SIGKILL)
print(*(os.waitpid(child, 0)[1] for child in children), *sorted(os.listdir(folder / "out")))
work(0, 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: Linux and macOS have it")
def test_a_killed_worker_loses_no_row_and_doubles_none(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{name}.txt" for name in "abcd"]
    for path in paths:
        path.write_text("".join(f"{WORDS[i % 5]} {i}\n" for i in range(2000)), encoding="utf-8")
    command = [sys.executable, "-c", KILL, str(tmp_path), str(toy_checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    first, second, *left = run.stdout.split()
    assert (first, second) == ("0", "9")
    assert "b.npy.partial" in left
    assert sorted(os.listdir(tmp_path / "out")) == ["a.npy", "b.npy", "c.npy", "d.npy", "shards.json"]
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 50)
    run_shards("embed", paths, tmp_path / "whole", suffix=".npy", options=["--model", str(toy_checkpoint)])
    for path in paths:
        name = f"{path.stem}.npy"
        assert np.load(tmp_path / "out" / name).shape == (2000, 24)
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
