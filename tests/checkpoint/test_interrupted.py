"""A process killed at any moment leaves nothing or what is whole, and the next one goes on to the right end."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import reference
from checkpoint import fairseq_files, published
from safetensors.torch import save_file

CONFIG = replace(reference.POST_NORM, num_hidden_layers=2, layer_norm_eps=1e-5)
SCRIPT = Path(__file__).with_name("killing.py")
KILLS = {
    "by default": {"convert": 8, "save": 6, "download": 6, "pretrain": 6},
    "slow": {
        "convert": 200,
        "trim": 200,
        "save": 200,
        "save-m3": 200,
        "tokenizer": 200,
        "download": 200,
        "pretrain": 200,
    },
}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills: run it on Linux or macOS")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    state = fairseq_files.hf_state(CONFIG)
    tensors = {key: tensor.clone() for key, tensor in state.items() if not key.startswith("lm_head.decoder.")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


@pytest.mark.parametrize(
    ("run_time", "kind"),
    [
        *(("by default", kind) for kind in KILLS["by default"]),
        *(pytest.param("slow", kind, marks=pytest.mark.slow) for kind in KILLS["slow"]),
    ],
)
def test_killed_at_random(kind: str, run_time: str, source: Path, tmp_path: Path) -> None:
    kills = KILLS[run_time][kind]
    command = [sys.executable, str(SCRIPT), kind, str(source), str(tmp_path), str(kills), "1"]
    # One that waits for ever fails, too: 150 kills take about a minute.
    run = subprocess.run(command, capture_output=True, text=True, env=published.child_env(), timeout=600)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{kind}: {seen}")
    assert seen["kills"] == kills
    assert seen["left something temporary"] >= kills // 10  # so many at least landed in the middle
