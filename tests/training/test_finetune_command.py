"""The command `xlmr finetune`: files in, a checkpoint and a table out, and errors that name the row."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from training.labelled_rows import classify_rows

from xlmr_core import Classify
from xlmr_core.cli import main

OPTIONS = ["--epochs", "1", "--batch-tokens", "200", "--device", "cpu"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Training rows as csv, held-out rows as jsonl."""
    paths = {"train": tmp_path / "train.csv", "eval": tmp_path / "eval.jsonl"}
    with paths["train"].open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence", "label", "language"])
        table.writerows([row["text"], row["label"], row["language"]] for row in classify_rows(20))
    lines = [json.dumps({"sentence": row["text"], "label": row["label"]}) for row in classify_rows(6, seed=2)]
    paths["eval"].write_text("\n".join(lines), encoding="utf-8")
    return paths


def run(files: dict[str, Path], output: Path, checkpoint: Path, *more: str) -> Result:
    sources = ["--train", str(files["train"]), "--eval", str(files["eval"]), "--field", "text=sentence"]
    command = ["finetune", "--task", "classify", *sources, "--model", str(checkpoint), "-o", str(output), *OPTIONS]
    return CliRunner().invoke(main, [*command, *more])


def test_it_writes_a_checkpoint_and_prints_a_table(files: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = run(files, tmp_path / "out", checkpoint, "--class-weight", "balanced", "--dropout", "0.2")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'out'}" in result.stdout
    assert "| rows | loss | accuracy | macro_f1 |" in result.stdout
    assert "| uk |" in result.stdout
    model = Classify.from_pretrained(tmp_path / "out").model
    assert model.config.labels == ("en", "uk")
    assert model.config.hidden_dropout_prob == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--field", "text"], "--field text: expected FIELD=NAME"),
        (["--field", "text=title"], "there is no field 'title'; the fields are sentence, label, language"),
        (["--class-weight", "en"], "--class-weight en: expected CLASS=WEIGHT or balanced"),
        (["--class-weight", "en=x"], "--class-weight en=x: expected a number"),
        (["--class-weight", "fr=2"], "class_weights names 'fr', which is not one of the classes en, uk"),
        (["--class-weight", "en=0"], "the weight of the class 'en' must be positive"),
        (["--freeze", "7"], "freeze must be at most 2, the number of layers, not 7"),
        (["--metric", "f2"], "metric 'f2' is not a score of this task: expected one of loss, accuracy, macro_f1"),
        (["--patience", "0"], "patience must be at least 1, not 0"),
        (["--epochs", "999999999999999999999"], "epochs must be at most 10000, not 999999999999999999999"),
        (["--seed", "4294967296"], "seed must be at most 4294967295, not 4294967296"),
        (["--problem-type", "regression"], "line 2: the field 'label' is 'en', expected a number"),
    ],
)
def test_an_option_that_cannot_work_is_an_error(
    options: list[str], message: str, files: Any, checkpoint: Path, tmp_path: Path
) -> None:
    result = run(files, tmp_path / "out", checkpoint, *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.replace("\n", " ")


def embed(rows: list[Any], checkpoint: Path, folder: Path, *more: str) -> Result:
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    files = ["--train", str(folder / "rows.jsonl"), "-o", str(folder / "out"), "--model", str(checkpoint)]
    return CliRunner().invoke(main, ["finetune", "--task", "embed", *files, *OPTIONS, *more])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": 5, "positive": "b"}, "the field 'anchor' is 5, expected a text"),
        ({"anchor": float("nan"), "positive": "b"}, "the field 'anchor' is nan, expected a text"),
        ({"anchor": "a"}, "there is no field 'positive'; the fields are anchor"),
        ({"anchor": "a", "positive": "b", "negative": [None]}, "the field 'negative' is [None], expected texts"),
        ({"anchor": "\ud800", "positive": "b"}, "the field 'anchor' has half a surrogate pair"),
        (["a", "b"], 'expected a JSON object, got ["a", "b"]'),
    ],
)
def test_a_row_that_is_not_a_pair_of_texts_is_named(row: Any, message: str, checkpoint: Path, tmp_path: Path) -> None:
    result = embed([{"anchor": "a", "positive": "b"}, row], checkpoint, tmp_path)
    assert result.exit_code == 1
    assert "rows.jsonl, line 2" in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_loss_of_nan_before_any_update_is_not_put_down_to_the_learning_rate(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"anchor": f"a {i}", "positive": f"b {i}"} for i in range(3)]
    result = embed(rows, checkpoint, tmp_path, "--temperature", "1e-300")
    assert result.exit_code == 1
    assert "the loss at step 0 is nan: no weight was changed yet" in result.stderr
