"""The commands of the tasks: their input, their output, and what becomes of a run that is killed."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from xlmr_core import (
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizer,
)
from xlmr_core.cli import main
from xlmr_core.cli import rows as rows_module
from xlmr_core.cli.result_file import ResultFile
from xlmr_core.tasks import Answer, Classify, Embed, Rerank, Score, Tag

TEXTS = ["the cat", "a bird sings", "", "кіт бачить пса"]
HEADS: dict[str, tuple[Any, list[str] | None]] = {
    "classify": (XLMRobertaForSequenceClassification, ["bad", "good"]),
    "tag": (XLMRobertaForTokenClassification, ["O", "B-PER", "I-PER"]),
    "answer": (XLMRobertaForQuestionAnswering, None),
    "rerank": (XLMRobertaForSequenceClassification, ["relevance"]),
}


@pytest.fixture(scope="module")
def models(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each command."""
    folders = {"embed": toy_checkpoint, "score": toy_checkpoint}
    for name, (kind, labels) in HEADS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        kind.from_pretrained(toy_checkpoint, new_head=True, labels=labels).save_pretrained(folders[name])
        XLMRobertaTokenizer.from_pretrained(toy_checkpoint).save_pretrained(folders[name])
    return folders


def xlmr(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestResults:
    def test_embed(self, models: dict[str, Path]) -> None:
        result = xlmr("embed", *TEXTS, "--json", "--model", models["embed"])
        expected = Embed.from_pretrained(models["embed"]).batch(TEXTS)
        assert [record["text"] for record in records(result.stdout)] == TEXTS
        assert [record["row"] for record in records(result.stdout)] == [1, 2, 3, 4]
        for record, vector in zip(records(result.stdout), expected, strict=True):
            assert record["embedding"] == pytest.approx(vector.tolist(), abs=1e-6)
        shown = xlmr("embed", "the cat", "--model", models["embed"]).stdout.splitlines()
        assert shown[0] == "the cat"
        assert shown[1].startswith("  24 numbers: ")

    def test_classify(self, models: dict[str, Path]) -> None:
        result = xlmr("classify", "--json", "--top-k", 1, "--model", models["classify"], stdin="the cat\na bird\n")
        [best] = Classify.from_pretrained(models["classify"])("the cat", top_k=1)
        first, second = records(result.stdout)
        assert first["labels"] == [{"label": best.label, "score": pytest.approx(best.score)}]
        assert (second["row"], second["text"]) == (2, "a bird")
        assert best.label in xlmr("classify", "the cat", "--model", models["classify"]).stdout.splitlines()[1]

    def test_classify_names_the_language_without_a_model(self) -> None:
        texts = {
            "Guten Morgen, wie geht es Ihnen?": "de",
            "Де тут вихід?": "uk",
            "これは何ですか。": "ja",
            "Where is it?": "en",
        }
        result = xlmr("classify", *texts, "--top-k", 1, "--json")
        assert [record["labels"][0]["label"] for record in records(result.stdout)] == list(texts.values())
        assert "the bundled xlmr-langid" in result.stderr

    def test_classify_by_labels_of_your_own(self, models: dict[str, Path], tmp_path: Path) -> None:
        torch.manual_seed(0)
        labels = ["entailment", "contradiction"]
        model = XLMRobertaForSequenceClassification.from_pretrained(models["embed"], new_head=True, labels=labels)
        tokenizer = XLMRobertaTokenizer.from_pretrained(models["embed"])
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        ours = ["--candidate", "a bird", "--candidate", "dog"]
        result = xlmr("classify", "the cat", "a dog", *ours, "--template", "a {}", "--json", "--model", tmp_path)
        classify = Classify(model, tokenizer)
        for text, record in zip(["the cat", "a dog"], records(result.stdout), strict=True):
            expected = classify.zero_shot(text, ["a bird", "dog"], template="a {}")
            assert [label["label"] for label in record["labels"]] == list(expected.labels)
            assert [label["score"] for label in record["labels"]] == pytest.approx(expected.scores, abs=1e-6)
        assert (
            "a bird" in xlmr("classify", "the", *ours, "--template", "{}.", "--multi-label", "--model", tmp_path).stdout
        )
        assert "needs a checkpoint trained" in xlmr("classify", "x", *ours, "--model", models["classify"]).stderr
        assert "--candidate, which is missing" in xlmr("classify", "x", "--multi-label").stderr
        assert "--top-k does not go with" in xlmr("classify", "x", *ours, "--top-k", 1).stderr

    def test_tag(self, models: dict[str, Path]) -> None:
        result = xlmr("tag", "the cat", "--json", "--aggregation", "none", "--model", models["tag"])
        expected = Tag.from_pretrained(models["tag"])("the cat", aggregation="none")
        assert [x["word"] for x in records(result.stdout)[0]["entities"]] == [entity.word for entity in expected]
        assert xlmr("tag", "the cat", "--model", models["tag"]).stdout.startswith("the cat\n")

    def test_answer(self, models: dict[str, Path]) -> None:
        [best] = Answer.from_pretrained(models["answer"])("the", "a cat")
        as_arguments = xlmr("answer", "the", "a cat", "a dog", "--json", "--model", models["answer"])
        line = json.dumps({"question": "the", "context": "a cat"})
        as_line = xlmr("answer", "--json", "--model", models["answer"], stdin=line)
        for result, count in ((as_arguments, 2), (as_line, 1)):
            found = records(result.stdout)
            assert len(found) == count
            assert found[0]["answers"][0]["answer"] == best.answer
        assert xlmr("answer", "the", "a cat", "--model", models["answer"]).stdout.startswith("the\n")
        assert "expected question and context, got only question" in xlmr("answer", "the").stderr

    def test_rerank(self, models: dict[str, Path]) -> None:
        expected = Rerank.from_pretrained(models["rerank"])("the", ["a cat", "dog"])
        result = xlmr("rerank", "the", "a cat", "dog", "--json", "--model", models["rerank"])
        [record] = records(result.stdout)
        assert record["passages"] == ["a cat", "dog"]
        assert [x["index"] for x in record["ranking"]] == [x.index for x in expected]
        assert expected[0].text in xlmr("rerank", "the", "a cat", "dog", "--model", models["rerank"]).stdout

    def test_score(self, models: dict[str, Path]) -> None:
        expected = Score.from_pretrained(models["score"])("the cat")
        result = xlmr("score", "the cat", "", "--json", "--model", models["score"])
        first, empty = records(result.stdout)
        assert first["pseudo_log_likelihood"] == pytest.approx(expected.pseudo_log_likelihood, rel=1e-5)
        assert empty["pseudo_perplexity"] is None
        assert "perplexity" in xlmr("score", "the cat", "--model", models["score"]).stdout


class TestInput:
    @pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv", "parquet"])
    def test_every_format_gives_the_same(self, suffix: str, models: dict[str, Path], tmp_path: Path) -> None:
        texts = ["the cat", 'a "quoted", bird', "кіт"]
        path = tmp_path / f"in.{suffix}"
        if suffix == "txt":
            path.write_text("\n".join(texts), encoding="utf-8")
        elif suffix == "jsonl":
            path.write_text("\n\n".join(json.dumps({"id": 1, "t": text}) for text in texts), encoding="utf-8")
        elif suffix == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'xlmr-core[parquet]'")
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"id": [1, 2, 3], "t": texts}), path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
                writer.writerows([["id", "t"], *([1, text] for text in texts)])
        result = xlmr("classify", "--input", path, "--field", "t", "--json", "--model", models["classify"])
        assert result.exit_code == 0, result.output
        assert [record["text"] for record in records(result.stdout)] == texts

    def test_pairs_and_lists(self, models: dict[str, Path], tmp_path: Path) -> None:
        pairs = tmp_path / "pairs.csv"
        pairs.write_text("a,b\nthe cat,the dog\n")
        columns = ("--field", "a", "--pair-field", "b", "--json")
        result = xlmr("classify", "--input", pairs, *columns, "--model", models["classify"])
        expected = Classify.from_pretrained(models["classify"])(("the cat", "the dog"))
        assert records(result.stdout)[0]["labels"][0]["score"] == pytest.approx(expected[0].score)
        for name, text in {
            "in.jsonl": '{"q": "the", "p": ["a cat", "dog"]}\n',
            "in.csv": 'q,p\nthe,"[""a cat"", ""dog""]"\n',
        }.items():
            (tmp_path / name).write_text(text)
            options = ("--query-field", "q", "--passages-field", "p", "--json", "--model", models["rerank"])
            [record] = records(xlmr("rerank", "--input", tmp_path / name, *options).stdout)
            assert len(record["ranking"]) == 2

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("in.csv", "a,b\n1,2\n", "has no column 'text'; its columns are a, b: name one by --field"),
            ("in.csv", "", "has no column 'text'"),
            ("in.csv", "text,b\nx\n", "line 2: expected 2 cells, as in the header, got 1"),
            ("in.csv", 'text\n"x', "line 2: unexpected end of data"),
            ("in.jsonl", '{"text": "a"}\n{"text": \n', "in.jsonl, line 2: expected a JSON object: "),
            ("in.jsonl", '{"text": "a"}\n\n{"t": 1}\n', "line 3: there is no field 'text'; the fields are t"),
            ("in.jsonl", '{"text": 5}\n', "the field 'text' is int, expected a text"),
            ("in.jsonl", "[1]\n", r"expected a JSON object, got [1]"),
            ("in.txt", b"a\n\xff\n", "line 2: byte 0xff is not UTF-8"),
            ("in.txt", "the " * 30, "line 1: the text has 92 tokens, special ones included; at most 20 fit: pass "),
            ("in.doc", "a", "does not end with .txt, .jsonl, .csv, .tsv, .parquet"),
            ("in.parquet", "a", "is not a parquet file"),
        ],
    )
    def test_what_cannot_be_read(
        self, name: str, content: str | bytes, message: str, models: dict[str, Path], tmp_path: Path
    ) -> None:
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'xlmr-core[parquet]'")
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        result = xlmr("embed", "--input", path, "--model", models["embed"], "--output", tmp_path / "out.jsonl")
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert os.listdir(tmp_path) == [name]

    def test_pyarrow_may_be_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "in.parquet").write_bytes(b"")
        result = xlmr("embed", "--input", tmp_path / "in.parquet")
        assert "parquet files need pyarrow: pip install 'xlmr-core[parquet]'" in result.stderr

    def test_a_text_file_has_no_questions(self, tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("a\n")
        assert "question and context are needed: give a jsonl file" in xlmr("answer", "-i", tmp_path / "in.txt").stderr

    def test_bad_rows_are_skipped_where_that_is_asked_for(self, models: dict[str, Path], tmp_path: Path) -> None:
        lines = ['{"text": "a"}', "{", '{"text": "b"}', json.dumps({"text": "the " * 30}), '{"text": "c"}', "["]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        command = ("embed", "--input", tmp_path / "in.jsonl", "--errors", "skip", "--model", models["embed"])
        for output in ("out.jsonl", "out.csv", "out.npy"):
            result = xlmr(*command, "--output", tmp_path / output)
            assert result.exit_code == 0, result.output
            assert "3 of 6 rows were skipped" in result.stderr
            assert "line 4: the text has 92 tokens" in result.stderr
        found = records((tmp_path / "out.jsonl").read_text())
        assert [record["row"] for record in found] == [1, 2, 3, 4, 5, 6]
        assert [record.get("text") for record in found] == ["a", None, "b", None, "c", None]
        assert ["error" in record for record in found] == [False, True] * 3
        with (tmp_path / "out.csv").open(encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        assert [row["error"] != "" for row in table] == [False, True] * 3
        vectors = np.load(tmp_path / "out.npy")
        assert np.isnan(vectors).all(axis=1).tolist() == [False, True] * 3

    def test_rows_before_the_bad_one_are_shown(self, models: dict[str, Path]) -> None:
        result = xlmr("classify", "the cat", "the " * 30, "a", "--json", "--model", models["classify"])
        assert (result.exit_code, len(records(result.stdout))) == (1, 1)
        assert result.stderr.startswith("Error: text 2: the text has 92 tokens")
        assert xlmr("classify", "the " * 30, "--truncate", "--model", models["classify"]).exit_code == 0


class TestOutput:
    def test_the_formats_of_vectors(self, models: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("the cat\na bird\nкіт\n", encoding="utf-8")
        for suffix in ("npy", "safetensors", "jsonl", "csv"):
            command = ("embed", "-i", tmp_path / "in.txt", "-o", tmp_path / f"out.{suffix}", "--model", models["embed"])
            assert xlmr(*command, "--dimensions", 7).exit_code == 0
        expected = [record["embedding"] for record in records((tmp_path / "out.jsonl").read_text(encoding="utf-8"))]
        assert np.array_equal(np.load(tmp_path / "out.npy"), np.array(expected, dtype=np.float32))
        assert np.array_equal(load_file(tmp_path / "out.safetensors")["embeddings"], np.load(tmp_path / "out.npy"))
        with (tmp_path / "out.csv").open(encoding="utf-8") as file:
            assert [json.loads(row["embedding"]) for row in csv.DictReader(file)] == expected

    @pytest.mark.parametrize("suffix", ["jsonl", "csv", "npy", "parquet"])
    def test_an_input_without_rows(self, suffix: str, models: dict[str, Path], tmp_path: Path) -> None:
        if suffix == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'xlmr-core[parquet]'")
        (tmp_path / "in.txt").touch()
        output = tmp_path / f"out.{suffix}"
        result = xlmr("embed", "-i", tmp_path / "in.txt", "-o", output, "--model", models["embed"])
        assert result.exit_code == 0, result.output
        assert output.exists()
        if suffix == "npy":
            assert np.load(output).shape == (0, 24)

    def test_csv_has_a_line_for_each_label(self, models: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("the cat\na bird\n")
        xlmr("classify", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.csv", "--model", models["classify"])
        lines = (tmp_path / "out.csv").read_text().splitlines()
        assert lines[0] == "row,text,label,score,error"
        assert [line.split(",")[0] for line in lines[1:]] == ["1", "1", "2", "2"]

    def test_parquet(self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pq = pytest.importorskip("pyarrow.parquet", reason="pip install 'xlmr-core[parquet]'")
        monkeypatch.setattr("xlmr_core.cli.result_file.PARQUET_ROWS", 2)  # the first rows have no error
        (tmp_path / "in.txt").write_text("the cat\na bird\n" + "the " * 30 + "\na\n")
        command = ("classify", "-i", tmp_path / "in.txt", "--errors", "skip", "--model", models["classify"])
        for name in ("out.parquet", "out.jsonl"):
            assert xlmr(*command, "-o", tmp_path / name).exit_code == 0
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
        found = [{key: value for key, value in record.items() if value is not None} for record in found]
        assert found == records((tmp_path / "out.jsonl").read_text())
        assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.jsonl", "out.parquet"]

    def test_where_nothing_can_be_written(
        self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ("embed", "a", "--model", models["embed"], "--output")
        (tmp_path / "there.jsonl").touch()
        assert "there.jsonl exists: remove it, or name another file" in xlmr(*command, tmp_path / "there.jsonl").stderr
        assert "cannot write" in xlmr(*command, tmp_path / "no" / "out.jsonl").stderr
        assert "out.npz does not end with .jsonl, .csv, .parquet, .npy" in xlmr(*command, tmp_path / "out.npz").stderr
        assert "--json is for standard output" in xlmr(*command, tmp_path / "out.jsonl", "--json").stderr

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        (tmp_path / "in.txt").write_text("a\n")
        monkeypatch.setattr(os, "fsync", full)
        result = xlmr(*command, tmp_path / "out.jsonl", "-i", tmp_path / "in.txt")
        assert result.exit_code == 2  # texts and --input
        result = xlmr("embed", "--model", models["embed"], "-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl")
        assert result.exit_code == 1
        assert result.stderr == f"Error: cannot write {tmp_path / 'out.jsonl.partial'}: No space left on device\n"

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only(self, models: dict[str, Path], tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        result = xlmr("embed", "a", "--model", models["embed"], "--output", tmp_path / "out.jsonl")
        assert "Permission denied" in result.stderr

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_standard_output_that_is_full_or_closed(self, models: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("the cat\n" * 5000)
        command = f'"{sys.executable}" -m xlmr_core embed --json --model "{models["embed"]}" -i "{tmp_path}/in.txt"'
        closed = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, check=False)
        assert records(closed.stdout)[0]["text"] == "the cat"
        assert closed.stderr == ""
        full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, check=False)
        assert full.returncode != 0
        assert "No space left on device" in full.stderr.splitlines()[0]
        assert "Traceback" not in full.stderr

    def test_labels_that_the_config_lacks(self, models: dict[str, Path], tmp_path: Path) -> None:
        folder = shutil.copytree(models["classify"], tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {"0": "bad", "2": "good"}
        (folder / "config.json").write_text(json.dumps(config))
        result = xlmr("classify", "the cat", "--model", folder)
        assert result.exit_code == 1
        assert "id2label" in result.stderr


class TestAKilledRun:
    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(rows_module, "CHUNK_ROWS", 10)
        path = tmp_path / "in.txt"
        path.write_text("".join(f"the {'cat ' * (i % 4)}{i % 3}\n" for i in range(95)))
        return path

    @pytest.mark.parametrize("suffix", ["jsonl", "csv", "npy", "safetensors", "parquet"])
    def test_it_is_continued_to_the_same_bytes(
        self, suffix: str, source: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if suffix == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'xlmr-core[parquet]'")
        command = ("embed", "--model", models["embed"], "-i", source, "-o")
        assert xlmr(*command, tmp_path / f"whole.{suffix}").exit_code == 0
        write = ResultFile.write
        for limit in (3, 10, 25, 12):  # records until the kill: also before the first state
            left = iter(range(limit))

            def killed(self: ResultFile, record: Any, left: Any = left) -> None:
                write(self, record)
                if next(left, None) is None:
                    self.file.flush()  # what the state does not count may be on the disk
                    raise KeyboardInterrupt

            monkeypatch.setattr(ResultFile, "write", killed)
            assert xlmr(*command, tmp_path / f"out.{suffix}").exit_code == 130
            assert not (tmp_path / f"out.{suffix}").exists()
        monkeypatch.setattr(ResultFile, "write", write)
        assert json.loads((tmp_path / f"out.{suffix}.partial.json").read_text())["rows"] == 40
        assert xlmr(*command, tmp_path / f"out.{suffix}").exit_code == 0
        assert (tmp_path / f"out.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
        assert not list(tmp_path.glob("*.partial*"))

    def test_another_input_or_option_is_refused(
        self, source: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out.jsonl"
        command = ("embed", "--model", models["embed"], "-i", source, "-o", output)

        def killed(self: ResultFile) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ResultFile, "finish", killed)
            assert xlmr(*command).exit_code == 130
        before = output.with_name("out.jsonl.partial").read_bytes()
        other = xlmr(*command, "--batch-tokens", 64)
        assert "was begun with batch_tokens 2048, but now it is 64: give the same options" in other.stderr
        assert f"or remove {output}.partial and {output}.partial.json to begin again" in other.stderr
        text = source.read_text()
        source.write_text(text.replace("cat", "dog"))
        assert "was begun with SHA-256 of the input" in xlmr(*command).stderr
        source.write_text(text)
        assert output.with_name("out.jsonl.partial").read_bytes() == before
        assert xlmr(*command, "--errors", "skip").exit_code == 0
        assert output.read_bytes() == before

    def test_a_damaged_state_is_named(self, source: Path, models: dict[str, Path], tmp_path: Path) -> None:
        command = ("embed", "--model", models["embed"], "-i", source, "-o", tmp_path / "out.jsonl")
        for content in ("", "[]", "{}"):
            (tmp_path / "out.jsonl.partial.json").write_text(content)
            result = xlmr(*command)
            assert "out.jsonl.partial.json is damaged" in result.stderr
            assert "to begin again" in result.stderr

    def test_a_state_that_a_kill_left_behind_the_finished_file(
        self, source: Path, models: dict[str, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "out.jsonl").touch()
        (tmp_path / "out.jsonl.partial.json").touch()
        result = xlmr("embed", "--model", models["embed"], "-i", source, "-o", tmp_path / "out.jsonl")
        assert "out.jsonl exists" in result.stderr
        assert not list(tmp_path.glob("*.partial*"))

    @pytest.mark.skipif(os.name != "posix", reason="locks are those of POSIX")
    def test_two_processes_do_not_write_one_file(self, source: Path, models: dict[str, Path], tmp_path: Path) -> None:
        import fcntl

        with (tmp_path / "out.jsonl.partial").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            result = xlmr("embed", "--model", models["embed"], "-i", source, "-o", tmp_path / "out.jsonl")
        assert "another process writes" in result.stderr

    @pytest.mark.parametrize(("lines", "runs"), [(9_000, 2), pytest.param(100_000, 3, marks=pytest.mark.slow)])
    def test_killed_at_random_points(self, lines: int, runs: int, models: dict[str, Path], tmp_path: Path) -> None:
        source = tmp_path / "in.txt"
        source.write_text("".join(f"the cat {i % 7}\n" for i in range(lines)))
        command = [sys.executable, "-m", "xlmr_core", "classify", "--model", str(models["classify"]), "-i", str(source)]
        subprocess.run([*command, "-o", str(tmp_path / "whole.jsonl")], check=True, capture_output=True)
        output, state = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial.json"
        chance = random.Random(0)
        kills = 0
        for _ in range(runs):
            before = state.read_bytes() if state.exists() else b""
            with subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.PIPE) as process:
                while process.poll() is None and (state.read_bytes() if state.exists() else b"") == before:
                    time.sleep(0.01)
                time.sleep(0.3 * chance.random())
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
        if not output.exists():
            subprocess.run([*command, "-o", str(output)], check=True, capture_output=True)
        assert kills
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_input(self, models: dict[str, Path], tmp_path: Path) -> None:
        script = (
            "import resource, sys; from xlmr_core.cli import main; main(sys.argv[1:], standalone_mode=False); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        peaks: list[int] = []
        for lines in (10_000, 100_000):
            source = tmp_path / f"{lines}.txt"
            source.write_text("".join(f"the cat {i % 7}\n" for i in range(lines)))
            command = [
                "embed",
                "--model",
                str(models["embed"]),
                "-i",
                str(source),
                "-o",
                str(tmp_path / f"{lines}.npy"),
            ]
            run = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
            peaks.append(int(run.stdout.split()[-1]))
        assert peaks[1] < 1.1 * peaks[0], peaks
