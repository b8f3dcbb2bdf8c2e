"""What is installed from a wheel is whole: package, type marker and bundled checkpoint, and no top-level `weights`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build tool is not installed; the dev extra brings it")
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_it_contains_only_the_package_and_the_checkpoint(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    weights = (
        "weights/catalogue.toml",
        "weights/xlmr-tiny/config.json",
        "weights/xlmr-tiny/model.safetensors",
        "weights/xlmr-langid/config.json",
        "weights/xlmr-embed/1_Pooling/config.json",
    )
    for name in ("py.typed", "model.py", *weights):
        assert f"xlmr_core/{name}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"xlmr_core", "xlmr_course"}
    assert "xlmr_course/pages/ids.md" in names
    assert not [name for name in names if "training_state" in name or name.endswith(".tmp")]
    assert wheel.stat().st_size < 15 * 2**20


def test_installed_elsewhere_it_fills_masks_without_a_network(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    run = subprocess.run(
        [sys.executable, "-m", "xlmr_core", "fill-mask", "The <mask> is open", "--top-k", "3"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path / "site"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(run.stdout.splitlines()) == 4
    assert "bundled xlmr-tiny" in run.stderr
