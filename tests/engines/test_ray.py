"""The callable class for Ray Data, in two actors, one of which is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlmr_core import XLMRobertaForSequenceClassification, XLMRobertaForTokenClassification, XLMRobertaTokenizer
from xlmr_core.tasks import Classify, Embed, Tag

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'xlmr-core[ray]'")

import pyarrow.parquet as pq  # noqa: E402

from xlmr_core.engines.ray import TaskBatches  # noqa: E402

ROWS = 200
PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_batches_get_vectors(toy_checkpoint: Path) -> None:
    batch = pa.table({"id": [1, 2], "t": ["the cat", "a bird sings"]})
    found = TaskBatches(Embed, toy_checkpoint, key="vector", column="t")(batch)
    assert found.column_names == ["id", "t", "vector"]
    assert found["vector"].type == pa.list_(pa.float32())
    assert found["vector"].to_pylist() == Embed.from_pretrained(toy_checkpoint).batch(batch["t"].to_pylist()).tolist()


def test_batches_get_labels_and_entities(toy_checkpoint: Path, tmp_path: Path) -> None:
    kinds = {Classify: XLMRobertaForSequenceClassification, Tag: XLMRobertaForTokenClassification}
    batch = pa.table({"text": ["the cat", "a bird sings"]})
    for task, head in kinds.items():
        folder = tmp_path / task.__name__
        head.from_pretrained(toy_checkpoint, new_head=True, labels=["O", "B-PER"]).save_pretrained(folder)
        XLMRobertaTokenizer.from_pretrained(toy_checkpoint).save_pretrained(folder)
        found = TaskBatches(task, folder, key="found")(batch)["found"].to_pylist()
        expected = task.from_pretrained(folder).batch(["the cat", "a bird sings"])
        assert [[item["label"] for item in row] for row in found] == [[x.label for x in row] for row in expected]
        ignored = {"ignore": ["O", "PER"]} if task is Tag else {"top_k": 0}
        nothing = TaskBatches(task, folder, key="found", **ignored)(batch)
        assert nothing["found"].to_pylist() == [[], []]
        assert nothing.schema == TaskBatches(task, folder, key="found")(batch).schema


def test_a_row_that_the_model_cannot_take(toy_checkpoint: Path) -> None:
    batch = pa.table({"text": ["the cat", "the " * 30, None]})
    with pytest.raises(ValueError, match="text 2: the text has 92 tokens"):
        TaskBatches(Embed, toy_checkpoint, key="vector")(batch)
    with pytest.raises(ValueError, match="has no column 'text'; its columns are t"):
        TaskBatches(Embed, toy_checkpoint, key="vector")(pa.table({"t": ["a"]}))
    with pytest.raises(ValueError, match="errors must be 'fail' or 'skip', not 'no'"):
        TaskBatches(Embed, toy_checkpoint, key="vector", errors="no")(batch)  # pyright: ignore[reportArgumentType]
    found = TaskBatches(Embed, toy_checkpoint, key="vector", errors="skip")(batch)
    assert [vector is None for vector in found["vector"].to_pylist()] == [False, True, True]
    assert found["error"].to_pylist()[0] is None
    assert found["error"].to_pylist()[2] == "expected a text, got NoneType"


KILL = """
import json, os, signal, sys
import ray
from xlmr_core.engines.ray import TaskBatches
from xlmr_core.tasks import Embed

class Killed(TaskBatches):
    def __call__(self, batch):
        batch = super().__call__(batch)
        try:
            open(os.environ["KILLED"], "x").close()
        except FileExistsError:
            return batch
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False)
    rows = ray.data.from_items([{"id": i, "text": f"the cat {i}"} for i in range(200)], override_num_blocks=10)
    rows = rows.map_batches(Killed, fn_constructor_args=(Embed, sys.argv[1]),
                            fn_constructor_kwargs={"key": "embedding"}, batch_format="pyarrow", batch_size=20,
                            compute=ray.data.ActorPoolStrategy(size=2))
    rows.write_parquet("out")
"""


@pytest.mark.slow
def test_a_killed_actor_loses_no_row_and_doubles_none(toy_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'xlmr-core[ray]'")
    (tmp_path / "job.py").write_text(KILL)
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "KILLED": str(tmp_path / "killed"), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "job.py", str(toy_checkpoint)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "killed").exists()
    found = pq.read_table(tmp_path / "out").to_pylist()
    assert sorted(row["id"] for row in found) == list(range(ROWS))
    expected = Embed.from_pretrained(toy_checkpoint).batch([row["text"] for row in found])
    for row, vector in zip(found, expected.tolist(), strict=True):
        assert row["embedding"] == pytest.approx(vector, abs=1e-6)


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'xlmr-core[ray]'")
    [example] = [block for block in PAGE.split("```python\n")[1:] if "engines.ray" in block]
    (tmp_path / "example.py").write_text(example.partition("```")[0])
    (tmp_path / "in").mkdir()
    for name in "abc":
        lines = [json.dumps({"id": f"{name}{i}", "text": f"the cat {i}"}) + "\n" for i in range(5)]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(lines))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, check=True)
    found = [row for path in (tmp_path / "out").iterdir() for row in pq.read_table(path).to_pylist()]
    assert sorted(row["id"] for row in found) == [f"{name}{i}" for name in "abc" for i in range(5)]
    assert all(len(row["embedding"]) == 256 for row in found)
