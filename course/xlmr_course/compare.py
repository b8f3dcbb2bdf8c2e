"""Whether the learner's numbers are the right ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlmr_course.step import LOW, Case

RELATIVE = 1e-9  # of the largest expected number: the inputs are float64, so rounding stays far below


def agrees(case: Case, result: Any) -> bool:
    """Whether a result is the expected one."""
    return agree(case.expected, result, case)


def agree(expected: Any, result: Any, case: Case) -> bool:
    """Whether a result, or a part of it, is the expected one."""
    if isinstance(expected, dict):
        return expected.keys() == result.keys() and all(agree(expected[x], result[x], case) for x in expected)
    if isinstance(expected, tuple):
        return all(agree(a, b, case) for a, b in zip(expected, result, strict=True))
    if isinstance(expected, Tensor):
        return expected.shape == result.shape and not bool(wrong_numbers(expected, result, case).any())
    return bool(expected == result)


def wrong_numbers(expected: Tensor, result: Tensor, case: Case) -> Tensor:
    """Where a number is wrong, of those that count."""
    if not expected.is_floating_point():
        wrong = expected != result
    else:
        allowed = RELATIVE * largest(expected, case) + 1e-12
        wrong = ~((expected - result).abs() <= allowed)  # NaN is wrong, too
    if case.hidden is not None:
        wrong = torch.where(case.hidden, ~(result <= LOW), wrong)
    if case.counts is not None:
        wrong = wrong & over(case.counts, wrong)
    return wrong


def largest(expected: Tensor, case: Case) -> float:
    """The largest number that is compared, without its sign."""
    return float(torch.where(kept(expected, case), expected.abs(), 0).max())


def over(counts: Tensor, like: Tensor) -> Tensor:
    """What counts, of its first axes, over all axes."""
    return counts.reshape(*counts.shape, *[1] * (like.ndim - counts.ndim)).expand_as(like)


def kept(expected: Tensor, case: Case) -> Tensor:
    """Where there is a number to compare."""
    there = torch.ones_like(expected, dtype=torch.bool)
    if case.counts is not None:
        there = there & over(case.counts, there)
    return there & ~case.hidden if case.hidden is not None else there
