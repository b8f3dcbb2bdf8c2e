"""The pages of the course: why, the formula with its shapes, a picture with real numbers, the trap and its thread."""

import re
from pathlib import Path

import course_marks
import course_pictures
import pytest
from xlmr_course.step import Step
from xlmr_course.steps import STEPS

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")
AXES = re.compile(r"\((?:[BSHNDFVT]|1)(?:, ?[BSHNDFV])*,?\)")


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return course_pictures.pictures()


def name_of(step: Step) -> str:
    return step.name


@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_a_page_is_complete(step: Step) -> None:
    page = step.page.read_text(encoding="utf-8")
    formulas = re.findall(r"^    .*$|^```.*?^```", page, re.MULTILINE | re.DOTALL)
    assert any(AXES.search(formula) for formula in formulas), "no formula has a shape"
    assert re.search(rf"^!\[.{{20,}}\]\(pictures/{step.name}\.svg\)$", page, re.MULTILINE), "no picture with words"
    trap = page.partition("## Where ports fell")[2]
    assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", trap), "no thread"


@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_a_picture_has_the_numbers_of_the_model(step: Step, drawn: dict[str, str]) -> None:
    """Compared as numbers: the last digit may depend on the processor."""
    kept = step.picture.read_text(encoding="utf-8")
    assert NUMBER.sub("#", kept) == NUMBER.sub("#", drawn[step.name]), "run `make pages`"
    pairs = zip(NUMBER.findall(kept), NUMBER.findall(drawn[step.name]), strict=True)
    assert all(float(a) == pytest.approx(float(b), rel=0.02, abs=0.11) for a, b in pairs), "run `make pages`"


def test_the_pictures_are_small() -> None:
    assert sum(step.picture.stat().st_size for step in STEPS) < 400_000


def test_the_slides_show_pictures_of_the_course() -> None:
    shown = re.findall(r"course/pictures/([\w-]+)\.svg", (ROOT / "docs" / "slides.md").read_text(encoding="utf-8"))
    assert len(shown) >= 6
    assert set(shown) <= {step.name for step in STEPS}


def test_the_page_of_marks_lists_the_faults_that_are_known() -> None:
    """That each is caught and named is tested in tests/course/test_course.py."""
    page = course_marks.PATH.read_text(encoding="utf-8")
    for number, step in enumerate(STEPS, start=1):
        count = sum(len(function.faults) for function in step.functions)
        marks = f"{len(step.functions)} | fails | passes | {count} | {count} | {count}"
        assert f"| {number}. {step.name} | {marks} |" in page, "run `make pages`"
        assert course_marks.faults(step) in page, "run `make pages`"


def test_the_page_of_the_course_has_the_number_of_faults() -> None:
    count = sum(len(function.faults) for step in STEPS for function in step.functions)
    assert f"{count} in all" in (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
