"""xlm-roberta-base and -large at their full size: random weights, written by transformers in the published layout."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import reference
import torch
from checkpoint import published
from checkpoint.hub_server import COMMIT, Behaviour, serve
from checkpoint.test_hub import turn_to

from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM

pytestmark = pytest.mark.slow

BASE = XLMRobertaConfig()
LARGE = replace(BASE, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
IDS = torch.tensor([[0, 581, 10269, 83, 250001, 136, 2], [0, 35378, 8999, 250001, 2, 1, 1]])
MASKED = IDS == 250001


@pytest.fixture(scope="module", params=[BASE, LARGE], ids=["base", "large"])
def written(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """(folder, transformers' model)."""
    folder = tmp_path_factory.mktemp("full")
    model = reference.build_reference(request.param, "eager", "ForMaskedLM").eval()
    published.quietly(model.save_pretrained, folder, max_shard_size="10GB")
    yield folder, model
    shutil.rmtree(folder)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes, which pytest would keep for days."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_it_answers_as_transformers_does(written: tuple[Path, Any]) -> None:
    folder, theirs = written
    ours = XLMRobertaForMaskedLM.from_pretrained(folder)
    assert torch.equal(ours.lm_head.decoder.weight, theirs.get_input_embeddings().weight)
    rows = ours.encoder.embeddings.position_embeddings.weight
    assert torch.equal(rows, theirs.roberta.embeddings.position_embeddings.weight)
    mask = (IDS != 1).long()
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=mask).logits
        assert torch.equal(ours(IDS, mask).logits[mask.bool()], expected[mask.bool()])


def test_it_is_saved_bit_for_bit(written: tuple[Path, Any], room: Path) -> None:
    folder, _ = written
    XLMRobertaForMaskedLM.from_pretrained(folder).save_pretrained(room)
    before, after = published.tensors_of(folder), published.tensors_of(room)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


FOOTPRINT = """
import json, sys, time, torch
from pathlib import Path
from xlmr_core import XLMRobertaForMaskedLM

def private():  # bytes of memory that belong to this process and to no file
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

ids = torch.tensor([[0, 581, 250001, 2]])
before, start = private(), time.perf_counter()
model = XLMRobertaForMaskedLM.from_pretrained(sys.argv[1])
loaded, seconds = private(), time.perf_counter() - start
with torch.inference_mode():
    model(ids, positions=ids == 250001)
print(json.dumps({"seconds": seconds, "load": loaded - before, "answer": private() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: run it on Linux")
def test_it_loads_at_once_and_without_a_copy(written: tuple[Path, Any]) -> None:
    folder, _ = written
    command = [sys.executable, "-c", FOOTPRINT, str(folder)]
    runs: list[dict[str, float]] = []
    for _ in range(3):
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=published.child_env())
        runs.append(json.loads(run.stdout))
    best = min(run["seconds"] for run in runs)
    print(f"\nloaded in {best:.3f} s, private memory: {runs[0]}")
    assert best < 0.7
    size = (folder / "model.safetensors").stat().st_size
    assert runs[0]["load"] < size / 50
    assert runs[0]["answer"] < size / 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: run it on Linux")
def test_inspection_does_not_load_it(written: tuple[Path, Any]) -> None:
    folder, theirs = written
    before = resident()
    found = inspect_checkpoint(folder)
    assert resident() - before < found.num_bytes / 50
    assert found.problems == ()
    assert found.num_bytes == sum(parameter.nbytes for parameter in theirs.parameters())


def resident() -> int:
    """Bytes of this process that are in memory, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_a_full_size_download(written: tuple[Path, Any], room: Path, monkeypatch: Any) -> None:
    """Cut twice on the way, resumed, verified; the second time it comes from the cache, and wrong bytes never do."""
    folder, theirs = written
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve(Behaviour({"org/full": folder}, cuts=[400_000_000, 300_000_000])) as hub:
        turn_to(hub.url, monkeypatch)
        for _ in range(2):
            model = XLMRobertaForMaskedLM.from_pretrained("org/full", cache_dir=room / "c")
            assert torch.equal(model.lm_head.decoder.weight, theirs.get_input_embeddings().weight)
        first, second, third = hub.downloads()[1:]
        assert first == f"{COMMIT}/model.safetensors"
        assert 300e6 < int(second.split("bytes=")[1][:-1]) <= 400e6
        assert 600e6 < int(third.split("bytes=")[1][:-1]) <= 700e6
        hub.corrupt = True
        with pytest.raises(CheckpointError, match="not those the hub promised"):
            XLMRobertaForMaskedLM.from_pretrained("org/full", cache_dir=room / "d")
        huggingface_hub.close_session()
