"""The course in NumPy: the solutions pass, what NumPy returns is taken, and a folder is made for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from xlmr_course.command import lines
from xlmr_course.convert import as_tensors
from xlmr_course.judge import Verdict, judge, judge_function
from xlmr_course.notebook import write_notebooks
from xlmr_course.step import Fault, Function, Step
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


def test_the_cause_is_announced_only_if_there_is_one() -> None:
    without_cause = Verdict("norm", False, "ValueError", where="shapes are compared from the last axis on")
    assert lines(without_cause, 0)[-1] == "  --hint shows where"
    with_cause = replace(without_cause, why="no mean")
    assert lines(with_cause, 0)[-1] == "  --hint shows where; --why shows the cause"


def test_a_notebook_is_in_numpy(tmp_path: Path) -> None:
    pytest.importorskip("nbformat", reason="needs jupytext: the extra `notebooks`")
    [file] = write_notebooks(["packing"], tmp_path, "xlmr-core", "numpy")
    text = file.read_text(encoding="utf-8")
    assert "!xlmr course start . --numpy" in text
    assert 'ARRAYS = \\"numpy\\"' in text
    assert "# !xlmr course solution context --numpy > context.py" in text


def in_numpy(fault: Fault) -> Callable[..., Any]:
    """A wrong function as one that a learner wrote in NumPy."""

    def call(**given: Any) -> Any:
        return as_arrays(fault.make(**{name: as_tensors(value) for name, value in given.items()}))

    return call


def as_arrays(value: Any) -> Any:
    """What a function in torch returned, with arrays in place of tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, tuple):
        return tuple(as_arrays(one) for one in value)
    return {name: as_arrays(one) for name, one in value.items()} if isinstance(value, dict) else value


SHORT = [
    (step, function, fault)
    for step in STEPS
    for function in step.functions
    for fault in function.faults
    if step.name not in ("xl", "stack", "numpy-port", "loading")  # xl is given functions; the others take long
]


@pytest.mark.parametrize(("step", "function", "fault"), SHORT, ids=lambda value: value.name)
def test_every_fault_is_named_in_numpy(step: Step, function: Function, fault: Fault) -> None:
    verdict = judge_function(step, function, in_numpy(fault), "numpy", step.stub)
    assert verdict.fault == fault.name
    assert "torch" not in verdict.symptom + verdict.where


KEYS = "def scores(q, k, mask):\n    s = {}\n    return np.where({}, s, np.finfo(s.dtype).min)\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("heads", "def project(x, weight, bias, heads):\n    return x[..., None].transpose(1, 2)\n", "takes all axes"),
        ("heads", "def project(x, weight, bias, heads):\n    return x.view(1, 2, 3)\n", "use `reshape`"),
        ("embeddings", "def norm(x, **_):\n    return x.mean(-1, keepdim=True)\n", "`axis` and `keepdims`"),
        ("positions", "def position_ids(input_ids, pad):\n    return input_ids.long()\n", "`x.astype(int)`"),
        (
            "positions",
            "def position_ids(input_ids, pad):\n    return input_ids.cumsum(dim=1)\n",
            "`axis` and `keepdims`",
        ),
        ("scores", KEYS.format("q @ k.T", "mask"), "reverses all axes"),
        ("scores", KEYS.format("q @ k.swapaxes(2, 3)", "mask"), "mask[:, None]"),
        ("scores", "def scores(q, k, mask):\n    return q[mask]\n", "selects along the first two axes"),
        ("embeddings", "def norm(x, **_):\n    return x - x.mean(-1)\n", "keepdims=True"),
        ("feed-forward", "import math\ndef activation(x):\n    return math.erf(x)\n", "`np.vectorize`"),
        ("heads", "def project(x, **_):\n    return x[:0].max(0)\n", "places of the cuts"),
        (
            "scores",
            "from math import exp\ndef scores(q, k, mask):\n    exp = exp(q)\n",
            "give the variable another name",
        ),
    ],
)
def test_the_usual_errors_of_numpy_are_explained(name: str, text: str, words: str, tmp_path: Path) -> None:
    verdict = written(name, text, tmp_path)
    assert words in verdict.where, verdict


WEIGHTS = "    e = np.exp(scores - scores.max(-1, keepdims=True))\n    w = e / e.sum(-1, keepdims=True)\n"
NORM = "def norm(x, weight, bias, eps):\n    y = x - x.mean(-1, keepdims=True)\n"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        (
            "heads",
            "def project(x, weight, bias, heads):\n    return (x @ weight.T + bias).reshape(*x.shape[:2], heads, -1)\n",
            "axes in another order",
        ),
        (
            "embeddings",
            NORM + "    y = y.astype(np.float32)\n    s = np.sqrt((y**2).mean(-1, keepdims=True) + eps)\n"
            "    return y / s * weight + bias\n",
            "rounding",
        ),
        (
            "scores",
            "def scores(q, k, mask):\n    s = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5\n"
            "    return np.where(mask[:, None, None], s, -100.0)\n",
            "padding not low enough",
        ),
        (
            "context",
            "def context(scores, v):\n" + WEIGHTS + "    w = w * np.where(w == w.max(), 0, 1)\n"
            "    c = w / (w > 1) @ v\n    return c.swapaxes(1, 2).reshape(len(v), v.shape[2], -1)\n",
            "NaN or infinity",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_numbers_that_follow_a_pattern_have_a_cause(name: str, text: str, fault: str, tmp_path: Path) -> None:
    assert written(name, text, tmp_path).fault == fault


def test_a_file_that_changed_since_it_passed_is_named(tmp_path: Path) -> None:
    for step in STEPS:
        (tmp_path / step.file).write_bytes(step.solution_in("numpy").read_bytes())
    heads = tmp_path / "heads.py"
    heads.write_text(heads.read_text(encoding="utf-8").replace("weight.T", "weight"), encoding="utf-8")
    [verdict] = judge(BY_NAME["stack"], tmp_path / "stack.py")
    assert "heads.py, which is imported, is wrong as it is now" in verdict.why


@pytest.mark.parametrize("text", ["import numpy as np\n", ""])
def test_a_file_in_numpy_that_says_torch_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids.py").write_text("ARRAYS = 'torch'\n" if text else "ARRAYS = 'numpy'\n", encoding="utf-8")
    text += "def project(x, **_):\n    return x.transpose(0, 2, 1)\n"
    (tmp_path / "heads.py").write_text(text, encoding="utf-8")
    [verdict] = judge(BY_NAME["heads"], tmp_path / "heads.py")
    assert verdict.fault == "ARRAYS"
    assert "write ARRAYS = 'numpy'" in verdict.why


def test_given_functions_say_what_they_take(tmp_path: Path) -> None:
    text = "def pre_norm_layer(x, attention, **_):\n    return attention({})\n"
    verdict = written("xl", text.format("x[0]"), tmp_path)
    assert "attention takes (B, S, H) of float64, got the shape (11, 256) of float64" in verdict.symptom
    verdict = written("xl", text.format("x.astype('float32')"), tmp_path)
    assert "got the shape (3, 11, 256) of float32" in verdict.symptom
