"""Writes docs/course-marks.md: how the check of the course marks empty files, solutions and every known fault.

`make pages` runs it. Every number of the page comes from marking a file or a function, as a learner's is marked.
"""

from pathlib import Path

from xlmr_course.judge import judge, judge_function
from xlmr_course.step import Step
from xlmr_course.steps import STEPS

PATH = Path(__file__).parents[1] / "docs" / "course-marks.md"

INTRODUCTION = """\
# What the course marks

The check of [the course](course.md) is tested by mutation. It marks the empty file and the solution of every step, and
every function with each known fault in it. *Caught* means that the check does not pass it, *named* that `--why` gives
this fault as the cause. Learners: the names of the faults say what to avoid, so do a step before you read on.

| step | functions | empty file | solution | faults | caught | named |
|---|--:|---|---|--:|--:|--:|
"""


def page() -> str:
    """The text of the page."""
    rows = [row(number, step) for number, step in enumerate(STEPS, start=1)]
    return INTRODUCTION + "\n".join(rows) + "\n\n## The faults\n\n" + "\n\n".join(map(faults, STEPS)) + "\n"


def row(number: int, step: Step) -> str:
    """What the check makes of one step."""
    empty = "fails" if not any(verdict.ok for verdict in judge(step, step.stub)) else "passes"
    solution = "passes" if all(verdict.ok for verdict in judge(step, step.solution)) else "fails"
    known = [(function, fault) for function in step.functions for fault in function.faults]
    verdicts = [judge_function(step, function, fault.make, "torch", step.stub) for function, fault in known]
    caught = sum(not verdict.ok for verdict in verdicts)
    named = sum(verdict.fault == fault.name for verdict, (_, fault) in zip(verdicts, known, strict=True))
    return (
        f"| {number}. {step.name} | {len(step.functions)} | {empty} | {solution} | {len(known)} | {caught} | {named} |"
    )


def faults(step: Step) -> str:
    """The names of the faults of one step."""
    lines = [
        f"- `{function.name}`: {', '.join(f'`{fault.name}`' for fault in function.faults)}"
        for function in step.functions
    ]
    return "\n".join([f"**{step.name}**", "", *lines])


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
