"""The step of a datatrove pipeline, in its local executor with two workers, one of which is killed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xlmr_core import XLMRobertaForSequenceClassification, XLMRobertaTokenizer
from xlmr_core.tasks import Classify, Embed

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install 'xlmr-core[datatrove]'")

import pyarrow.parquet as pq
from datatrove.data import Document

from xlmr_core.engines.datatrove import TaskStep

TASKS = 4
DOCUMENTS = 25  # of a task
PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")

PIPELINE = """
import os, signal, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from xlmr_core.engines.datatrove import TaskStep
from xlmr_core.tasks import Embed

def kill_a_worker(data, rank=0, world_size=1):
    for number, document in enumerate(data):
        if rank == 1 and number == 12 and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        yield document

if __name__ == "__main__":
    steps = [JsonlReader("in"), TaskStep(Embed, sys.argv[1], key="embedding"), kill_a_worker, JsonlWriter("out")]
    LocalPipelineExecutor(steps, tasks=4, workers=2, logging_dir="logs").run()
"""


def test_documents_get_vectors_or_labels(toy_checkpoint: Path, tmp_path: Path) -> None:
    documents = [Document("the cat", "1"), Document("a bird sings", "2", metadata={"source": "x"})]
    found = list(TaskStep(Embed, toy_checkpoint, key="vector").run(iter(documents)))
    assert [document.id for document in found] == ["1", "2"]
    assert found[1].metadata.keys() == {"source", "vector"}
    assert found[0].metadata["vector"] == Embed.from_pretrained(toy_checkpoint)("the cat").tolist()

    model = XLMRobertaForSequenceClassification.from_pretrained(toy_checkpoint, new_head=True, labels=["bad", "good"])
    model.save_pretrained(tmp_path)
    XLMRobertaTokenizer.from_pretrained(toy_checkpoint).save_pretrained(tmp_path)
    [document] = TaskStep(Classify, tmp_path, key="labels", top_k=1).run(iter(documents[:1]))
    [best] = Classify.from_pretrained(tmp_path)("the cat", top_k=1)
    assert document.metadata["labels"] == [{"label": best.label, "score": best.score}]


def test_a_document_that_the_model_cannot_take(toy_checkpoint: Path) -> None:
    documents = [Document("the cat", "1"), Document("the " * 30, "2"), Document("a bird", "3")]
    with pytest.raises(ValueError, match="document 2: the text has 92 tokens"):
        list(TaskStep(Embed, toy_checkpoint, key="vector").run(iter(documents)))
    found = list(TaskStep(Embed, toy_checkpoint, key="vector", errors="skip").run(iter(documents)))
    assert [document.id for document in found] == ["1", "2", "3"]
    assert [document.metadata["vector"] is None for document in found] == [False, True, False]
    assert [document.metadata["error"] is None for document in found] == [True, False, True]


@pytest.mark.slow
def test_a_killed_worker_loses_no_document_and_doubles_none(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for task in range(TASKS):
        lines = [json.dumps({"id": f"{task}-{i}", "text": f"the cat {i}"}) + "\n" for i in range(DOCUMENTS)]
        (tmp_path / "in" / f"{task}.jsonl").write_text("".join(lines))
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    command = [sys.executable, "pipeline.py", str(toy_checkpoint)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    completions = tmp_path / "logs" / "completions"

    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as first:
        while first.poll() is None and len(list(completions.glob("*"))) < TASKS - 1:
            time.sleep(0.1)
        assert first.poll() is None  # the pool waits for the worker that was killed, without an end
        os.killpg(first.pid, signal.SIGKILL)
    assert (tmp_path / "killed").exists()
    assert sorted(path.name for path in completions.iterdir()) == ["00000", "00002", "00003"]

    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    found: list[dict[str, Any]] = []
    for path in (tmp_path / "out").iterdir():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found += map(json.loads, lines)
    assert sorted(row["id"] for row in found) == sorted(f"{t}-{i}" for t in range(TASKS) for i in range(DOCUMENTS))
    embed = Embed.from_pretrained(toy_checkpoint)
    expected = embed.batch([row["text"] for row in found])
    for row, vector in zip(found, expected, strict=True):
        assert row["metadata"]["embedding"] == pytest.approx(vector.tolist(), abs=1e-6)


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path: Path) -> None:

    [example] = [block for block in PAGE.split("```python\n")[1:] if "engines.datatrove" in block]
    (tmp_path / "example.py").write_text(example.partition("```")[0])
    (tmp_path / "in").mkdir()
    for name in "abc":
        lines = [json.dumps({"id": f"{name}{i}", "text": f"the cat {i}"}) + "\n" for i in range(5)]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(lines))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, check=True)
    found = [row for path in (tmp_path / "out").iterdir() for row in pq.read_table(path).to_pylist()]
    assert sorted(row["id"] for row in found) == [f"{name}{i}" for name in "abc" for i in range(5)]
    assert all(len(row["metadata"]["embedding"]) == 256 for row in found)
