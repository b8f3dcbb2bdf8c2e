"""Causes that have a pattern and no wrong function: of errors that NumPy raises, and of wrong numbers."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from xlmr_course.compare import agree, kept, largest, wrong_numbers
from xlmr_course.step import Case

ROUNDED = 1e-6  # of the largest expected number: what float32 leaves of it
SAME_NAME = "a variable has the name of a function that is used here: give the variable another name"
NUMPY_ERRORS = (  # what the message has, and what is meant
    (r"axes don't match array", "`transpose` of NumPy takes all axes, (0, 2, 1, 3); `swapaxes(1, 2)` exchanges two"),
    (r"\bview\(\) takes", "`view` of NumPy is not that of torch: use `reshape`"),
    (r"'(keep)?dim'", "`dim` and `keepdim` are names of torch: in NumPy, `axis` and `keepdims`"),
    (
        r"'numpy.ndarray' object has no attribute",
        "that may be a method of torch: NumPy has `x.astype(int)`, and functions such as `np.exp(x)`",
    ),
    (
        r"mismatch in its core dimension",
        "`a @ b` needs the last axis of a as long as the last but one of b: `swapaxes(-1, -2)` exchanges the two. `.T` "
        "reverses all axes",
    ),
    (
        r"could not be broadcast together",
        "shapes are compared from the last axis on: keep the axis of a sum or mean (keepdims=True), or give a mask the "
        "axes that it lacks, as in mask[:, None]",
    ),
    (
        r"boolean index did not match",
        "a mask of (B, S) selects along the first two axes: `np.where` with mask[:, None] takes any shape that fits",
    ),
    (
        r"arrays can be converted to Python scalars",
        "functions of `math` take one number: use those of NumPy, or `np.vectorize`",
    ),
    (r"zero-size array", "a part is empty: `np.split` takes the places of the cuts, not lengths"),
)


def of_error(error: Exception, arrays: str) -> str:
    """What an error means, if it is one of those that are usual in NumPy; else nothing."""
    if isinstance(error, UnboundLocalError):
        return SAME_NAME
    found = (words for pattern, words in NUMPY_ERRORS if arrays == "numpy" and re.search(pattern, str(error)))
    return next(found, "")


def of_numbers(case: Case, result: Any) -> tuple[str, str] | None:
    """The name of a cause and its sentence, from where and how far the numbers are wrong.

    Args:
        case: The call.
        result: What the learner's function returned, as a tensor; it is wrong.
    """
    expected = case.expected
    if not isinstance(expected, Tensor):
        return None
    order = _order(case, expected, result)
    if order:
        return (
            "axes in another order",
            f"The numbers are right, the order of the axes is not: transpose the result to {order}.",
        )
    if result.shape != expected.shape or not expected.is_floating_point():
        return None
    counted = kept(expected, case)
    if not result[counted].isfinite().all():
        return (
            "NaN or infinity",
            "0 * inf, inf - inf and 0 / 0 give NaN, and exp of a large number is infinite. The lowest number of padding "
            "may only go into a softmax.",
        )
    gap = float((result - expected)[counted].abs().max())
    if case.hidden is not None and not wrong_numbers(expected, result, case)[counted].any():
        return (
            "padding not low enough",
            "The scores of real keys are right. Those of padding are too near to them: take the lowest finite number.",
        )
    if gap <= ROUNDED * largest(expected, case):
        return (
            "rounding",
            "All numbers are right to about six digits: something on the way is float32, or is computed by an "
            "approximation.",
        )
    return None


def _order(case: Case, expected: Tensor, result: Tensor) -> tuple[int, ...] | None:
    """The order of its axes in which a result of another shape is right."""
    if result.shape == expected.shape or result.ndim != expected.ndim:
        return None
    orders = (
        order for order in permutations(range(result.ndim)) if agree(expected, torch.permute(result, order), case)
    )
    return next(orders, None)
