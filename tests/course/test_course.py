"""The grader is tested by mutation: empty files fail, solutions pass, every fault is caught and named."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from xlmr_course.judge import Verdict, judge, judge_function
from xlmr_course.material import material
from xlmr_course.step import Fault, Function, Step
from xlmr_course.steps import STEPS
from xlmr_course.workbook import Workbook

from xlmr_core.cli import main

FUNCTIONS = [(step, function) for step in STEPS for function in step.functions]
FAULTS = [(step, function, fault) for step, function in FUNCTIONS for fault in function.faults]


def name_of(value: Any) -> str:
    return str(value.name)


def written(text: str, tmp_path: Path, name: str = "positions") -> Verdict:
    """The verdict on the first function of a step, whose file has this text."""
    step = next(step for step in STEPS if step.name == name)
    (tmp_path / step.file).write_text(text, encoding="utf-8")
    return judge(step, tmp_path / step.file)[0]


@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_an_empty_file_fails_and_a_solution_passes(step: Step) -> None:
    assert [verdict.symptom for verdict in judge(step, step.stub)] == ["not written yet"] * len(step.functions)
    for verdict in judge(step, step.solution):
        assert verdict.ok, verdict
        assert not verdict.slow


@pytest.mark.parametrize(("step", "function", "fault"), FAULTS, ids=name_of)
def test_every_fault_is_caught_and_named(step: Step, function: Function, fault: Fault) -> None:
    verdict = judge_function(step, function, fault.make, "torch", step.stub)
    assert not verdict.ok
    assert verdict.fault == fault.name
    assert verdict.symptom


def test_there_are_five_faults_for_every_function_at_least() -> None:
    assert all(len(function.faults) >= 5 for _, function in FUNCTIONS)
    names = [(step.name, function.name, fault.name) for step, function, fault in FAULTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_every_step_has_a_page(step: Step) -> None:
    page = step.page.read_text(encoding="utf-8")
    number = STEPS.index(step) + 1
    assert page.startswith(f"# {number}. ")
    for part in ("## To do", "## Where ports fell", f"`{step.file}`"):
        assert part in page
    assert all(f"`{function.name}`" in page for function in step.functions)


def test_learners_may_write_in_numpy(tmp_path: Path) -> None:
    text = (
        "import numpy as np\nARRAYS = 'numpy'\n"
        "def position_ids(input_ids, pad):\n"
        "    real = (input_ids != pad).astype(np.int32)\n"
        "    return real.cumsum(1) * real + pad\n"
    )
    assert written(text, tmp_path).ok


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", "returns None: is `return` missing"),
        ("return (input_ids != pad).double()", "expected integers"),
        ("return input_ids[:, 1:]", "returns the shape"),
        ("return input_ids.T", "the axes are in another order"),
        ("return input_ids.flatten()", "split or joined differently"),
        ("return 'two'", "returns a str"),
        ("return nothing", "NameError in line 2"),
        ("input_ids += 1; return input_ids", "changes its argument input_ids in place"),
        ("return input_ids", "of the numbers are wrong"),
    ],
)
def test_what_is_no_answer_has_words_of_its_own(body: str, words: str, tmp_path: Path) -> None:
    verdict = written(f"def position_ids(input_ids, pad):\n    {body}\n", tmp_path)
    assert not verdict.ok
    assert words in verdict.symptom


def test_numbers_that_are_not_finite_or_of_another_precision(tmp_path: Path) -> None:
    verdict = written("def norm(x, weight, bias, eps):\n    return x / 0 * 0\n", tmp_path, "embeddings")
    assert "NaN or infinite" in verdict.symptom
    verdict = written("def norm(x, weight, bias, eps):\n    return x.float()\n", tmp_path, "embeddings")
    assert "float32 for float64: something on the way rounds" in verdict.symptom


def test_files_that_cannot_be_marked(tmp_path: Path) -> None:
    assert "SyntaxError" in written("def position_ids(:\n", tmp_path).symptom
    assert "has no function position_ids" in written("x = 1\n", tmp_path).symptom
    assert "write 'torch' or 'numpy'" in written("ARRAYS = 'jax'\n", tmp_path).symptom
    assert "to be done without" in written("import torch\n", tmp_path, "numpy-port").symptom
    assert "has no function" in written("# no import torch here\n", tmp_path, "numpy-port").symptom
    (tmp_path / "stack.py").write_text("", encoding="utf-8")
    assert "imports stack.py: this step" in written("import stack\n", tmp_path, "numpy-port").symptom


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_an_error_in_another_file_is_said_to_be_there(tmp_path: Path) -> None:
    put(tmp_path, positions="def position_ids(input_ids, pad):\n    return input_ids.nothing\n")
    text = "from positions import position_ids\ndef encode(input_ids, **_):\n    return position_ids(input_ids, 1)\n"
    verdict = written(text, tmp_path, "stack")
    assert "AttributeError in line 2 of positions.py" in verdict.symptom
    assert verdict.why == ""
    put(tmp_path, positions="ARRAYS = 'numpy'\ndef position_ids(input_ids, pad):\n    return input_ids.astype(int)\n")
    verdict = written(text, tmp_path, "stack")
    assert verdict.fault == "torch and NumPy mixed"
    assert "imports positions.py" in verdict.why
    put(tmp_path, positions="def position_ids(input_ids, pad):\n    raise NotImplementedError\n")
    verdict = written(text, tmp_path, "stack")
    assert verdict.symptom == "it calls `position_ids` of positions.py, which is not written yet"


def test_numbers_are_shown_with_the_digits_that_differ(tmp_path: Path) -> None:
    text = "from torch.nn.functional import gelu\ndef activation(x):\n    return gelu(x) * (1 + 1e-7)\n"
    words = written(text, tmp_path, "feed-forward").symptom.split(" is ")[1]
    found, expected = words.split(", expected ")
    assert found != expected
    verdict = written("def loss(logits, labels):\n    return logits.sum() * 0 + 1\n", tmp_path, "training")
    assert "it is 1; expected " in verdict.symptom


def test_without_a_known_fault_the_function_above_may_be_the_cause(tmp_path: Path) -> None:
    step = next(step for step in STEPS if step.name == "embeddings")
    text = (
        "def norm(x, weight, bias, eps):\n    return x * 2\n"
        "def embed(input_ids, positions, word, position, token_type, weight, bias, eps):\n"
        "    return norm(word[input_ids], weight, bias, eps)\n"
    )
    put(tmp_path, embeddings=text)
    norm, embed = judge(step, tmp_path / step.file)
    assert "compare your lines with the page's formula" in norm.why
    assert "if it calls `norm`, which is wrong as well, mend that first" in embed.why


def test_wrong_tensors_of_a_file_are_described(tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in STEPS[10].solution.read_text(encoding="utf-8").splitlines())
    text += "right = load\ndef load(published):\n    return {x: y[:1] for x, y in right(published).items()}\n"
    symptom = written(text, tmp_path, "loading").symptom
    assert "wrong tensors: " in symptom
    assert "it returns the shape" in symptom


def test_what_a_function_prints_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Workbook.start(tmp_path)
    put(tmp_path, positions="def position_ids(input_ids, pad):\n    print('seen', end='')\n    return input_ids\n")
    [verdict] = book.check(STEPS[1])
    assert not verdict.ok
    assert capsys.readouterr().out.startswith("seen")


def test_a_slow_way_is_right_and_is_said_to_be_slow(tmp_path: Path) -> None:
    text = (
        "import math, time\n"
        "def activation(x):\n"
        "    time.sleep(0.4)\n"
        "    return x * (1 + (x / 2**0.5).erf()) / 2\n"
        "def feed_forward(**given):\n"
        "    raise NotImplementedError\n"
    )
    verdict = written(text, tmp_path, "feed-forward")
    assert verdict.ok
    assert "times slower than it could be" in verdict.slow


def test_the_hints_say_where(tmp_path: Path) -> None:
    text = (
        "import torch\n"
        "def activation(x):\n"
        "    y = x * (1 + torch.erf(x / 2**0.5)) / 2\n"
        "    y[:, 2] *= 3\n"
        "    return y\n"
    )
    verdict = written(text, tmp_path, "feed-forward")
    assert verdict.where == "wrong only at token 2"
    assert verdict.fault == ""
    text = "def activation(x):\n    return x * (1 + (x / 2**0.5).erf())\n"
    assert written(text, tmp_path, "feed-forward").where.endswith("every number is 2 times what it should be")


def xlmr(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xlmr_core", "course", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def in_process(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["course", *arguments])


def test_a_learner_goes_through_the_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Workbook.start(tmp_path / "mine")
    assert len(list(book.folder.glob("*.md"))) == len(list(book.folder.glob("*.py"))) == len(STEPS)
    assert len(list(book.folder.glob("pictures/*.svg"))) == len(STEPS)
    (book.folder / "ids.py").write_text("def model_ids(spm_ids):\n    return spm_ids\n", encoding="utf-8")
    Workbook.start(book.folder)  # again: nothing is lost
    assert "return spm_ids" in (book.folder / "ids.py").read_text(encoding="utf-8")

    monkeypatch.chdir(book.folder)
    failed = xlmr("check", "ids", "--why", cwd=book.folder)
    assert failed.returncode == 1
    assert "model_ids: " in failed.stdout
    assert "pair_ids: ids.py has no function pair_ids" in failed.stdout
    refused = in_process("fill", "What are <mask> doing here?")
    assert "first pass ids, stack, lm-head, loading" in refused.stderr

    for step in STEPS:
        (book.folder / step.file).write_bytes(step.solution.read_bytes())
    passed = in_process("check", "1")
    assert passed.exit_code == 0, passed.output
    assert "Next: 02-positions.md" in passed.stdout
    assert "passed" in in_process().stdout
    (book.folder / "progress.json").write_text(json.dumps(dict.fromkeys((step.name for step in STEPS), "today")))
    filled = xlmr("fill", "What are <mask> doing here?", cwd=book.folder)
    expected = CliRunner().invoke(main, ["fill-mask", "What are <mask> doing here?", "--top-k", "3"]).stdout
    assert filled.stdout.splitlines() == expected.splitlines()

    put(book.folder, stack="def encode(:\n")
    failed = in_process("fill", "What are <mask> doing here?")
    assert "stack.py fails with SyntaxError" in failed.stderr
    assert "Run `xlmr course check stack`" in failed.stderr
    put(book.folder, stack="ARRAYS = 'numpy'\n")
    assert "stack.py fails with TypeError" in in_process("fill", "What are <mask> doing here?").stderr


def test_an_endless_loop_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook = importlib.import_module("xlmr_course.workbook")
    monkeypatch.setattr(workbook, "LONGEST", 2.0)
    book = Workbook.start(tmp_path)
    (tmp_path / "positions.py").write_text("while True:\n    pass\n", encoding="utf-8")
    [verdict] = book.check(STEPS[1])
    assert "stopped after 2 seconds" in verdict.symptom


def test_a_folder_that_is_none_of_the_course(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder of the course: make one with `xlmr course start`"):
        Workbook.find(tmp_path)
    Workbook.start(tmp_path)
    (tmp_path / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"progress\.json is damaged"):
        Workbook.find(tmp_path).passed()
    (tmp_path / "ids.py").unlink()
    with pytest.raises(ValueError, match=r"ids\.py is missing"):
        Workbook.find(tmp_path).check(STEPS[0])


def test_the_material_is_the_model_in_float64() -> None:
    made = material()
    assert made.published.keys() != made.parameters.keys()
    assert all(tensor.dtype == torch.float64 for tensor in made.parameters.values())


def test_the_package_knows_nothing_of_the_course() -> None:
    package = Path(importlib.import_module("xlmr_core").__file__ or "").parent
    importing = [path for path in package.rglob("*.py") if "import xlmr_course" in path.read_text(encoding="utf-8")]
    importing += [path for path in package.rglob("*.py") if "from xlmr_course" in path.read_text(encoding="utf-8")]
    assert importing == []
