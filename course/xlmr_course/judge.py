"""Marks one step: runs the learner's functions on right inputs, and says what is wrong, where, and why.

    python -m xlmr_course.judge STEP FILE      # prints the verdicts as JSON

`xlmr course check` runs it as a process of its own, so that an endless loop can be stopped.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlmr_course.material import material
from xlmr_course.step import LOW, Case, Fault, Function, Step
from xlmr_course.steps import STEPS

RELATIVE = 1e-9  # of the largest expected number: the inputs are float64, so rounding stays far below
SLOW_SECONDS, SLOW_TIMES = 0.5, 50  # a function is slow if it takes longer than both: in all, and times the solution
LONGEST = 90.0  # seconds for one step


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
        return [Verdict(function.name, False, symptom) for function in step.functions]
    arrays = step.arrays or space.get("ARRAYS", "torch")
    if arrays not in ("torch", "numpy"):
        symptom = f"ARRAYS is {arrays!r} in {file.name}: write 'torch' or 'numpy'"
        return [Verdict(function.name, False, symptom) for function in step.functions]
    if step.arrays == "numpy" and "import torch" in file.read_text(encoding="utf-8"):
        return [
            Verdict(x.name, False, f"{file.name} imports torch: this step is to be done without")
            for x in step.functions
        ]
    return [judge_function(step, function, space.get(function.name), arrays, file) for function in step.functions]


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
        given = {name: _to(arrays, value) for name, value in case.arguments.items()}
        before = {name: _copy(value) for name, value in given.items()}
        start = time.perf_counter()
        try:
            with torch.no_grad():
                result = written(**given)
        except NotImplementedError:
            return Verdict(function.name, False, "not written yet")
        except Exception as error:
            return Verdict(function.name, False, f"on {case.about}: {_where_raised(error, file)}")
        seconds += time.perf_counter() - start
        changed = [name for name in given if not _same(before[name], given[name])]
        if changed:
            return Verdict(
                function.name,
                False,
                f"it changes its argument {changed[0]} in place: whoever called it still needs the old numbers",
                "look for `+=`, `*=`, `out=`, or a method that ends in an underscore",
            )
        try:
            results.append(_from(result, case.expected))
        except _UnexpectedError as error:
            return Verdict(function.name, False, f"on {case.about}: {error}")
    wrong = [(case, result) for case, result in zip(cases, results, strict=True) if not agrees(case, result)]
    if not wrong:
        return Verdict(function.name, True, slow=_slow(step, function, cases, seconds))
    case, result = wrong[0]
    symptom = f"on {case.about}: {_symptom(case, result)}"
    fault = _recognised(function, cases, results)
    where = _where(function, case, result)
    if fault is None:
        return Verdict(function.name, False, symptom, where)
    return Verdict(function.name, False, symptom, where, fault.name, fault.why)


# ---- from torch to what the learner writes in, and back --------------------------------------------------------------


def _to(arrays: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy().copy() if arrays == "numpy" else value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _to(arrays, one) for name, one in value.items()}
    if callable(value) and arrays == "numpy":
        return _with_arrays(value)
    return list(value) if isinstance(value, list) else value


def _with_arrays(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def call(array: Any) -> Any:
        return function(torch.from_numpy(np.ascontiguousarray(array))).numpy()

    return call


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copy(one) for name, one in value.items()}
    return value.copy() if isinstance(value, list | np.ndarray) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


class _UnexpectedError(Exception):
    """What came back is not of the kind that is asked for."""


def _from(result: Any, expected: Any) -> Any:
    """The result as a tensor, or as a tuple, dict or list as expected."""
    if result is None:
        raise _UnexpectedError("it returns None: is `return` missing?")
    if isinstance(expected, dict):
        if not isinstance(result, Mapping):
            raise _UnexpectedError(f"it returns {_kind(result)}; expected a dict")
        odd = next((str(name) for name, value in result.items() if not isinstance(value, Tensor | np.ndarray)), None)
        if odd is not None:
            raise _UnexpectedError(f"the value of {odd!r} is no tensor")
        return {str(name): _tensor(value, None) for name, value in result.items()}
    if isinstance(expected, tuple):
        if not isinstance(result, tuple | list) or len(result) != len(expected):
            raise _UnexpectedError(f"it returns {_kind(result)}; expected {len(expected)} things: return a, b")
        return tuple(_tensor(a, b) for a, b in zip(result, expected, strict=True))
    if isinstance(expected, list):
        numbers = result.tolist() if isinstance(result, Tensor | np.ndarray) else result
        if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
            raise _UnexpectedError(f"it returns {_kind(result)}; expected a list of integers")
        return numbers
    return _tensor(result, expected)


def _tensor(value: Any, expected: Tensor | None) -> Tensor:
    if isinstance(value, int | float | np.generic):
        value = np.asarray(value)
    if isinstance(value, list):
        try:
            value = np.asarray(value)
        except ValueError:
            raise _UnexpectedError("it returns lists of unequal lengths") from None
    if not isinstance(value, Tensor | np.ndarray):
        raise _UnexpectedError(f"it returns {_kind(value)}; expected an array")
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    if expected is None:
        return tensor.double()
    if expected.is_floating_point() != tensor.is_floating_point():
        kinds = "floating-point numbers" if expected.is_floating_point() else "integers"
        raise _UnexpectedError(f"it returns {tensor.dtype} numbers; expected {kinds}")
    if expected.is_floating_point() and tensor.dtype != torch.float64:
        raise _UnexpectedError(
            f"it returns {str(tensor.dtype).removeprefix('torch.')} for float64: something on the way rounds. Make new "
            "arrays with the dtype of the input"
        )
    return tensor.double() if expected.is_floating_point() else tensor.long()


def _shapes(found: Tensor, expected: Tensor) -> str:
    message = f"it returns the shape {tuple(found.shape)}; expected {tuple(expected.shape)}"
    if sorted(found.shape) == sorted(expected.shape):
        return message + ": the axes are in another order"
    if found.numel() == expected.numel():
        return message + ": the same numbers, with axes that are split or joined differently"
    return message


def _kind(value: Any) -> str:
    return "a tuple" if isinstance(value, tuple) else f"a {type(value).__name__}"


# ---- right or wrong --------------------------------------------------------------------------------------------------


def agrees(case: Case, result: Any) -> bool:
    """Whether a result is the expected one."""
    return _agree(case.expected, result, case)


def _agree(expected: Any, result: Any, case: Case) -> bool:
    if isinstance(expected, dict):
        return expected.keys() == result.keys() and all(_agree(expected[x], result[x], case) for x in expected)
    if isinstance(expected, tuple):
        return all(_agree(a, b, case) for a, b in zip(expected, result, strict=True))
    if isinstance(expected, Tensor):
        return expected.shape == result.shape and not bool(_wrong(expected, result, case).any())
    return bool(expected == result)


def _wrong(expected: Tensor, result: Tensor, case: Case) -> Tensor:
    """Where a number is wrong, of those that count."""
    if not expected.is_floating_point():
        wrong = expected != result
    else:
        size = torch.where(_kept(expected, case), expected.abs(), 0).max()
        allowed = RELATIVE * float(size) + 1e-12
        wrong = ~((expected - result).abs() <= allowed)  # NaN is wrong, too
    if case.hidden is not None:
        wrong = torch.where(case.hidden, ~(result <= LOW), wrong)
    if case.counts is not None:
        wrong = wrong & _over(case.counts, wrong)
    return wrong


def _over(counts: Tensor, like: Tensor) -> Tensor:
    return counts.reshape(*counts.shape, *[1] * (like.ndim - counts.ndim)).expand_as(like)


def _kept(expected: Tensor, case: Case) -> Tensor:
    """Where there is a number to compare."""
    kept = torch.ones_like(expected, dtype=torch.bool)
    if case.counts is not None:
        kept = kept & _over(case.counts, kept)
    return kept & ~case.hidden if case.hidden is not None else kept


def _recognised(function: Function, cases: Sequence[Case], results: Sequence[Any]) -> Fault | None:
    """The fault that gives all these results."""
    for fault in function.faults:
        for case, result in zip(cases, results, strict=True):
            with torch.no_grad():
                try:
                    theirs = _from(fault.make(**_to("torch", case.arguments)), case.expected)
                except _UnexpectedError:
                    break
            hidden = None if case.hidden is None else theirs <= LOW
            if not agrees(Case(case.arguments, theirs, case.about, case.counts, hidden), result):
                break
        else:
            return fault
    return None


# ---- the words -------------------------------------------------------------------------------------------------------


def _where_raised(error: Exception, file: Path) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    line = f" in line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{line}: {error}"


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
        wrong = [x for x in expected if x in result and not _agree(expected[x], result[x], case)]
        parts = [
            f"{len(names)} names {word}, such as {min(names)}"
            for names, word in ((missing, "are missing"), (extra, "have no place in the model"))
            if names
        ]
        if wrong:
            parts.append(f"{len(wrong)} tensors are wrong, such as {wrong[0]}")
        return "; ".join(parts)
    if isinstance(expected, tuple):
        number = next(i for i, (a, b) in enumerate(zip(expected, result, strict=True)) if not _agree(a, b, case))
        return f"part {number} of the result: {_symptom(Case({}, expected[number], ''), result[number])}"
    if result.shape != expected.shape:
        return _shapes(result, expected)
    if not result.isfinite().all() and case.hidden is None:
        return f"{int((~result.isfinite()).sum())} of {result.numel()} numbers are NaN or infinite"
    wrong = _wrong(expected, result, case)
    share = float(wrong.sum() / (_over(case.counts, wrong).sum() if case.counts is not None else wrong.numel()))
    place = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{share:.0%} of the numbers are wrong; at {list(place)} is {_n(result[place])}, expected {_n(expected[place])}"
    )


def _n(number: Tensor) -> str:
    return f"{float(number):.4g}"


def _where(function: Function, case: Case, result: Any) -> str:
    """On which indices of each axis something is wrong."""
    expected = case.expected
    if not isinstance(expected, Tensor) or not expected.ndim or expected.shape != result.shape:
        return ""
    wrong = _wrong(expected, result, case)
    counted = _over(case.counts, wrong) if case.counts is not None else torch.ones_like(wrong)
    lines: list[str] = []
    for axis, name in enumerate(function.axes[: wrong.ndim]):
        others = [i for i in range(wrong.ndim) if i != axis]
        bad = wrong.any(dim=others) if others else wrong
        there = counted.any(dim=others) if others else counted
        if bool((there & ~bad).any()):
            lines.append(f"{name} {_ranges(bad)}")
    place = "wrong at every index of every axis" if not lines else "wrong only at " + ", ".join(lines)
    both = _kept(expected, case) & result.isfinite()
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


def _slow(step: Step, function: Function, cases: Sequence[Case], seconds: float) -> str:
    if seconds < SLOW_SECONDS:
        return ""
    solution = run_file(step.solution)[function.name]
    arguments = [{x: _to(step.arrays or "torch", value) for x, value in case.arguments.items()} for case in cases]
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
    print(json.dumps([asdict(verdict) for verdict in judge(step, Path(file))]))


if __name__ == "__main__":
    main()
