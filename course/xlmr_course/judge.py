"""Marks one step: runs the learner's functions on right inputs, and says what is wrong, where, and why.

    python -m xlmr_course.judge STEP FILE      # prints the verdicts as JSON

`xlmr course check` runs it as a process of its own, so that an endless loop can be stopped.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_course.causes import of_error, of_numbers
from xlmr_course.compare import agree, agrees, kept, over, wrong_numbers
from xlmr_course.convert import UnexpectedError, copied, given_as, returned, same
from xlmr_course.material import material
from xlmr_course.step import LOW, Case, Fault, Function, Step
from xlmr_course.steps import STEPS

SLOW_SECONDS, SLOW_TIMES = 0.5, 50  # a function is slow if it takes longer than both: in all, and times the solution
IMPORTS_TORCH, IMPORTS_NUMPY = (re.compile(rf"^\s*(import|from) {name}\b", re.M) for name in ("torch", "numpy"))
LONGEST = 90.0  # seconds for one step
UNKNOWN = "no fault that is known here gives this result"
FORMULA = f"{UNKNOWN}; compare your lines with the page's formula"


@dataclass(frozen=True)
class Verdict:
    """How one function did. The hints build on one another."""

    function: str
    ok: bool
    symptom: str = ""  # what differs
    where: str = ""  # where it differs
    fault: str = ""  # the name of the fault; empty if it is none that is known
    why: str = ""
    slow: str = ""  # right, but by a slow way


def unmarked(step: Step, symptom: str) -> list[Verdict]:
    """The verdicts on the functions of a file that cannot be marked."""
    return [Verdict(function.name, False, symptom) for function in step.functions]


def judge(step: Step, file: Path) -> list[Verdict]:
    """Marks the functions of one step.

    Args:
        step: The step.
        file: The learner's file. It is run.

    Returns:
        A verdict for each function, in the order of the page.
    """
    try:
        space = run_file(file)
    except Exception as error:
        symptom = f"{file.name} cannot be run: {_where_raised(error, file)}"
        return unmarked(step, symptom)
    arrays = step.arrays or space.get("ARRAYS", "torch")
    if arrays not in ("torch", "numpy"):
        symptom = f"ARRAYS is {arrays!r} in {file.name}: write 'torch' or 'numpy'"
        return unmarked(step, symptom)
    if step.arrays == "numpy" and IMPORTS_TORCH.search(file.read_text(encoding="utf-8")):
        return unmarked(step, f"{file.name} imports torch: this step is to be done without")
    imported = [other for other in STEPS if other.file.removesuffix(".py") in sys.modules]
    if step.arrays and imported:
        return unmarked(step, f"{file.name} imports {imported[0].file}: this step is to be done in one file")
    verdicts = [judge_function(step, function, space.get(function.name), arrays, file) for function in step.functions]
    verdicts = [_after(verdict, verdicts[:index]) for index, verdict in enumerate(verdicts)]
    if any(verdict.why == FORMULA for verdict in verdicts):
        verdicts = _from_imported(verdicts, imported, file.parent)
    return verdicts


def _after(verdict: Verdict, above: Sequence[Verdict]) -> Verdict:
    """A function without a known fault may call one above it that is wrong."""
    wrong = [other.function for other in above if not other.ok]
    if verdict.fault or not verdict.why or not wrong:
        return verdict
    return replace(verdict, why=f"{UNKNOWN}; if it calls `{wrong[-1]}`, which is wrong as well, mend that first")


def _from_imported(verdicts: list[Verdict], imported: Sequence[Step], folder: Path) -> list[Verdict]:
    """A file of an earlier step may have changed since it passed."""
    for other in imported:
        if not all(verdict.ok for verdict in judge(other, folder / other.file)):
            why = f"{other.file}, which is imported, is wrong as it is now: run `xlmr course check {other.name}`"
            return [replace(verdict, why=why) if verdict.why == FORMULA else verdict for verdict in verdicts]
    return verdicts


def run_file(file: Path) -> dict[str, Any]:
    """Runs a file of the course; it may import the others in its folder. Returns its names."""
    steps = {step.file.removesuffix(".py") for step in STEPS}
    for name in steps & sys.modules.keys():
        del sys.modules[name]  # of another folder
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        return runpy.run_path(str(file))
    finally:
        sys.path.pop(0)


def judge_function(step: Step, function: Function, written: Any, arrays: str, file: Path) -> Verdict:
    """Marks one function.

    Args:
        step: Of the function.
        function: What is asked for.
        written: What the learner wrote; None if there is nothing of that name.
        arrays: "torch" or "numpy".
        file: Where it was written, for messages.
    """
    if not callable(written):
        return Verdict(function.name, False, f"{file.name} has no function {function.name}")
    results: list[Any] = []
    cases = function.cases(material())
    seconds = 0.0
    for case in cases:
        given = {name: given_as(arrays, value) for name, value in case.arguments.items()}
        before = {name: copied(value) for name, value in given.items()}
        start = time.perf_counter()
        try:
            with torch.no_grad():
                result = written(**given)
        except NotImplementedError as error:
            return Verdict(function.name, False, _not_written(error, file))
        except Exception as error:
            return _raised(function, case, error, arrays, file)
        seconds += time.perf_counter() - start
        changed = [name for name in given if not same(before[name], given[name])]
        if changed:
            return Verdict(
                function.name,
                False,
                f"it changes its argument {changed[0]} in place: whoever called it still needs the old numbers",
                "look for `+=`, `*=`, `x[...] =`, `out=`"
                + (", or a method that ends in an underscore" if arrays == "torch" else ""),
            )
        try:
            results.append(returned(result, case.expected))
        except UnexpectedError as error:
            return Verdict(function.name, False, f"on {case.about}: {error}")
    wrong = [(case, result) for case, result in zip(cases, results, strict=True) if not agrees(case, result)]
    if not wrong:
        return Verdict(function.name, True, slow=_slow(step, function, cases, seconds, arrays))
    case, result = wrong[0]
    symptom = f"on {case.about}: {_symptom(case, result)}"
    where = _where(function, case, result)
    fault = _recognised(function, cases, results)
    if fault is not None:
        return Verdict(function.name, False, symptom, where, fault.name, fault.why)
    name, why = of_numbers(case, result) or ("", FORMULA)
    return Verdict(function.name, False, symptom, where, name, why)


def _recognised(function: Function, cases: Sequence[Case], results: Sequence[Any]) -> Fault | None:
    """The fault that gives all these results."""
    for fault in function.faults:
        for case, result in zip(cases, results, strict=True):
            with torch.no_grad():
                try:
                    theirs = returned(fault.make(**given_as("torch", case.arguments)), case.expected)
                except UnexpectedError:
                    break
            hidden = None if case.hidden is None else theirs <= LOW
            reshaped = isinstance(theirs, Tensor) and theirs.shape != case.expected.shape
            counts = None if reshaped else case.counts  # it has the axes of the right result
            if not agrees(Case(case.arguments, theirs, case.about, counts, hidden), result):
                break
        else:
            return fault
    return None


# ---- the words -------------------------------------------------------------------------------------------------------


def _own_frames(error: Exception, file: Path) -> list[traceback.FrameSummary]:
    """The frames in the learner's folder."""
    folder = file.parent.resolve()
    return [x for x in traceback.extract_tb(error.__traceback__) if Path(x.filename).resolve().parent == folder]


def _where_raised(error: Exception, file: Path) -> str:
    frames = _own_frames(error, file)
    line = f" in line {frames[-1].lineno}" if frames else ""
    if frames and Path(frames[-1].filename).name != file.name:
        line += f" of {Path(frames[-1].filename).name}"
    return f"{type(error).__name__}{line}: {error}"


def _not_written(error: NotImplementedError, file: Path) -> str:
    frames = _own_frames(error, file)
    if not frames or Path(frames[-1].filename).name == file.name:
        return "not written yet"
    return f"it calls `{frames[-1].name}` of {Path(frames[-1].filename).name}, which is not written yet"


def _raised(function: Function, case: Case, error: Exception, arrays: str, file: Path) -> Verdict:
    symptom = f"on {case.about}: {_where_raised(error, file)}"
    modules = [(step.file, sys.modules.get(step.file.removesuffix(".py"))) for step in STEPS]
    others = [name for name, module in modules if module and getattr(module, "ARRAYS", "torch") != arrays]
    where = of_error(error, arrays)
    if others:
        why = f"{file.name} has ARRAYS = {arrays!r}, and imports {others[0]}, which has the other: write both in one."
        return Verdict(function.name, False, symptom, where, "torch and NumPy mixed", why)
    if arrays == "torch" and _may_be_in_numpy(file):
        why = (
            f"{file.name} has ARRAYS = 'torch', so its functions are given tensors. For NumPy, write ARRAYS = 'numpy'."
        )
        return Verdict(function.name, False, symptom, where, "ARRAYS", why)
    return Verdict(function.name, False, symptom, where)


def _may_be_in_numpy(file: Path) -> bool:
    """Whether a file that says it is in torch imports NumPy, or lies among files in NumPy."""
    text = file.read_text(encoding="utf-8")
    others = [path for path in (file.parent / step.file for step in STEPS) if path.is_file()]
    in_numpy = any(re.search(r"^ARRAYS = .numpy\b", path.read_text(encoding="utf-8"), re.M) for path in others)
    return not IMPORTS_TORCH.search(text) and (in_numpy or bool(IMPORTS_NUMPY.search(text)))


def _shapes(found: Tensor, expected: Tensor) -> str:
    message = f"it returns the shape {tuple(found.shape)}; expected {tuple(expected.shape)}"
    if sorted(found.shape) == sorted(expected.shape):
        return message + ": the axes are in another order"
    if found.numel() == expected.numel():
        return message + ": the same numbers, with axes that are split or joined differently"
    return message


def _symptom(case: Case, result: Any) -> str:
    expected = case.expected
    if isinstance(expected, list):
        place = next((i for i, (a, b) in enumerate(zip(expected, result, strict=False)) if a != b), None)
        if len(expected) != len(result):
            return f"it returns {len(result)} numbers; expected {len(expected)}"
        assert place is not None
        return f"number {place} is {result[place]}; expected {expected[place]}"
    if isinstance(expected, dict):
        missing, extra = expected.keys() - result.keys(), result.keys() - expected.keys()
        wrong = [x for x in expected if x in result and not agree(expected[x], result[x], case)]
        parts = [
            f"{word}: {len(names)}, such as {min(names)}"
            for names, word in ((missing, "missing names"), (extra, "names that the model lacks"))
            if names
        ]
        if wrong:
            of_one = _symptom(Case({}, expected[wrong[0]], ""), result[wrong[0]])
            parts.append(f"wrong tensors: {len(wrong)}, such as {wrong[0]}: {of_one}")
        return "; ".join(parts)
    if isinstance(expected, tuple):
        number = next(i for i, (a, b) in enumerate(zip(expected, result, strict=True)) if not agree(a, b, case))
        return f"part {number} of the result: {_symptom(Case({}, expected[number], ''), result[number])}"
    if result.shape != expected.shape:
        return _shapes(result, expected)
    if not result.isfinite().all() and case.hidden is None:
        return f"{int((~result.isfinite()).sum())} of {result.numel()} numbers are NaN or infinite"
    wrong = wrong_numbers(expected, result, case)
    share = float(wrong.sum() / (over(case.counts, wrong).sum() if case.counts is not None else wrong.numel()))
    place = tuple(wrong.nonzero()[0].tolist())
    found, right = _apart(float(result[place]), float(expected[place]))
    if not place:
        return f"it is {found}; expected {right}"
    return f"{share:.0%} of the numbers are wrong; at {list(place)} is {found}, expected {right}"


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with four digits, or with as many as show that they differ."""
    pairs = ((f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(4, 18))
    return next((pair for pair in pairs if pair[0] != pair[1]), (repr(one), repr(other)))


def _where(function: Function, case: Case, result: Any) -> str:
    """On which indices of each axis something is wrong."""
    expected = case.expected
    if not isinstance(expected, Tensor) or not expected.ndim or expected.shape != result.shape:
        return ""
    wrong = wrong_numbers(expected, result, case)
    counted = over(case.counts, wrong) if case.counts is not None else torch.ones_like(wrong)
    lines: list[str] = []
    for axis, name in enumerate(function.axes[: wrong.ndim]):
        others = [i for i in range(wrong.ndim) if i != axis]
        bad = wrong.any(dim=others) if others else wrong
        there = counted.any(dim=others) if others else counted
        if bool((there & ~bad).any()):
            lines.append(f"{name} {_ranges(bad)}")
    place = "wrong at every index of every axis" if not lines else "wrong only at " + ", ".join(lines)
    both = kept(expected, case) & result.isfinite()
    ratio = (result[both] / expected[both]) if expected.is_floating_point() else torch.ones(0)
    constant = ratio.numel() > 1 and float(ratio.std()) < 1e-6 * abs(float(ratio.mean()))
    if constant and abs(float(ratio.mean()) - 1) > 1e-6:
        place += f"; every number is {float(ratio.mean()):.6g} times what it should be"
    return place


def _ranges(bad: Tensor) -> str:
    """[2, 3, 4, 7] as "2 to 4, 7"."""
    numbers = bad.nonzero()[:, 0].tolist()
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    words = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def _slow(step: Step, function: Function, cases: Sequence[Case], seconds: float, arrays: str) -> str:
    if seconds < SLOW_SECONDS:
        return ""
    solution = run_file(step.solution_in(arrays))[function.name]
    arguments = [{x: given_as(arrays, value) for x, value in case.arguments.items()} for case in cases]
    start = time.perf_counter()
    for given in arguments:
        solution(**given)
    times = seconds / (time.perf_counter() - start)
    if times < SLOW_TIMES:
        return ""
    return (
        f"right, but {times:.0f} times slower than it could be: replace loops over tokens or features by whole arrays"
    )


def main() -> None:
    name, file = sys.argv[1:]
    step = next(step for step in STEPS if step.name == name)
    verdicts = judge(step, Path(file))
    print()  # what the learner's functions print may end without a line break
    print(json.dumps([asdict(verdict) for verdict in verdicts]))


if __name__ == "__main__":
    main()
