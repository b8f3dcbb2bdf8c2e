"""The course in NumPy: the solutions pass, what NumPy returns is taken, and a folder is made for it."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from xlmr_course.judge import Verdict, judge
from xlmr_course.notebook import write_notebooks
from xlmr_course.step import Step
from xlmr_course.steps import STEPS
from xlmr_course.workbook import Workbook

from xlmr_core.cli import main

BY_NAME = {step.name: step for step in STEPS}


def written(name: str, text: str, folder: Path) -> Verdict:
    """The verdict on the first function of a step, whose file has this text."""
    step = BY_NAME[name]
    (folder / step.file).write_text(f"import numpy as np\nARRAYS = 'numpy'\n{text}", encoding="utf-8")
    return judge(step, folder / step.file)[0]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_solution_in_numpy_passes_without_torch(step: Step) -> None:
    assert "torch" not in step.solution_in("numpy").read_text(encoding="utf-8")
    for verdict in judge(step, step.solution_in("numpy")):
        assert verdict.ok, verdict
        assert not verdict.slow


@pytest.mark.parametrize("number", ["x.mean()", "float(x.mean())", "np.array(x.mean())"])
def test_one_number_has_no_axis(number: str, tmp_path: Path) -> None:
    text = (
        "def loss(logits, labels):\n"
        "    real = labels != -100\n"
        "    x = np.log(np.exp(logits).sum(-1))[real] - logits[real, labels[real]]\n"
        f"    return {number}\n"
    )
    assert written("training", text, tmp_path).ok


@pytest.mark.parametrize("row", ["list(ids + 1)", "(ids + 1).tolist()", "(ids + 1)"])
def test_a_list_may_hold_integers_of_numpy(row: str, tmp_path: Path) -> None:
    text = f"def model_ids(spm_ids):\n    ids = np.array([-1, *(i or 2 for i in spm_ids), 1])\n    return {row}\n"
    assert written("ids", text, tmp_path).ok


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("ids", "def model_ids(spm_ids):\n    return [0.0]\n", "number 0 of the result is a float"),
        ("ids", "def model_ids(spm_ids):\n    return np.array([spm_ids])\n", "number 0 of the result is a list"),
        ("positions", "def position_ids(input_ids, pad):\n    return input_ids + 0.5\n", "returns float64 numbers"),
        ("positions", "def position_ids(input_ids, pad):\n    return input_ids.astype(object)\n", "dtype object"),
        ("loading", "def load(published):\n    return {'x': [1.0]}\n", "the value of 'x' is a list"),
    ],
)
def test_what_is_no_answer_is_named_without_torch(name: str, text: str, words: str, tmp_path: Path) -> None:
    verdict = written(name, text, tmp_path)
    assert words in verdict.symptom
    assert "torch" not in verdict.symptom


def test_a_folder_and_its_solutions_are_in_numpy(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["course", "start", str(tmp_path / "mine"), "--numpy"])
    assert made.exit_code == 0, made.output
    for step in STEPS:
        text = Workbook(tmp_path / "mine").file(step).read_text(encoding="utf-8")
        assert text.count('ARRAYS = "numpy"') == (0 if step.arrays else 1)
    shown = CliRunner().invoke(main, ["course", "solution", "positions", "--numpy"])
    assert "np.cumsum" in shown.output
    assert "cumsum(dim=1)" in CliRunner().invoke(main, ["course", "solution", "positions"]).output


def test_a_notebook_is_in_numpy(tmp_path: Path) -> None:
    pytest.importorskip("nbformat", reason="needs jupytext: the extra `notebooks`")
    [file] = write_notebooks(["packing"], tmp_path, "xlmr-core", "numpy")
    text = file.read_text(encoding="utf-8")
    assert "!xlmr course start . --numpy" in text
    assert 'ARRAYS = \\"numpy\\"' in text
    assert "# !xlmr course solution context --numpy > context.py" in text
