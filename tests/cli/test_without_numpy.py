"""numpy is no dependency: where it is not installed, every command works all the same, and says nothing of it."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None  # as where it is not installed: importing it fails
from xlmr_core.cli import main
main()
"""


def xlmr(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_NUMPY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.safetensors"
    run = xlmr("parity", "record", toy_checkpoint, "--text", "the cat", "--grad", "--steps", 1, "-o", path)
    assert run.returncode == 0, run.stderr
    assert "umpy" not in run.stderr
    return path


def test_filling_masks(toy_checkpoint: Path) -> None:
    run = xlmr("fill-mask", "the <mask> sees", "--model", toy_checkpoint, "--top-k", 1)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    assert "%" in run.stdout


def test_a_port_is_compared(trace: Path, toy_checkpoint: Path) -> None:
    for arguments in (
        ("floor", toy_checkpoint, trace, "--dtype", "float32"),
        ("check", trace, toy_checkpoint),
        ("diagnose", trace, trace, "--model", toy_checkpoint),
    ):
        run = xlmr("parity", *arguments)
        assert run.returncode == 0, run.stderr
        assert "umpy" not in run.stderr


def test_numpys_own_files_say_what_is_missing(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "port.npz").write_bytes(b"PK")
    run = xlmr("parity", "check", trace, tmp_path / "port.npz", "--exact")
    assert run.returncode == 1
    assert run.stderr.strip().endswith("port.npz needs numpy to be read: pip install numpy")


def test_converting(toy_checkpoint: Path, tmp_path: Path) -> None:
    run = xlmr("convert", toy_checkpoint, tmp_path / "native", "--to", "native")
    assert run.returncode == 0, run.stderr
    assert "umpy" not in run.stderr
