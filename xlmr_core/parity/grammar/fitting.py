"""The open number of an edit, estimated from the numbers of a dump, and the usual numbers that it may stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from xlmr_core.config import XLMRobertaConfig

STEPS = 12  # of Gauss and Newton
EPS = (1e-12, 1e-5, 1e-6, 1e-8, 1e-7, 1e-3, 1e-4, 1e-10, 1e-14, 1e-15, 1e-9, 1e-2, 0.0, 0.1, 1.0)


@dataclass(frozen=True)
class Fitted:
    """A number with its uncertainty."""

    value: float
    spread: float  # one standard deviation of what rounding makes of it


def fitted(compute: Callable[[float], Tensor | None], target: Tensor, start: float, noise: float) -> Fitted | None:
    """The number at which `compute` comes closest to `target`, by least squares.

    Args:
        compute: The values at a number; None where it has none.
        target: The values of the dump.
        start: Where to begin.
        noise: The size of rounding errors of one value, root mean square.

    Returns:
        None if no number comes close.
    """
    at, previous = start, math.inf
    for step in range(STEPS):
        found = compute(at)
        width = max(abs(at), 1e-3) * 1e-4
        moved = compute(at + width)
        if found is None or moved is None:
            return None
        residual, slope = (target - found).flatten(), ((moved - found) / width).flatten()
        steepness, error = float(slope @ slope), float(residual @ residual)
        if not steepness or not math.isfinite(steepness) or not math.isfinite(error):
            return None
        spread = noise / math.sqrt(steepness)
        by = float(slope @ residual) / steepness
        if error <= noise * noise * target.numel():
            return Fitted(at + by, spread)
        if step == 0 and error and by * by * steepness < 0.02 * error:
            return None  # this number has nothing to do with the difference
        if step == 3 and error > 0.5 * previous:
            return None
        previous = min(previous, error) if step else error
        at += by
        if abs(by) <= 1e-9 * abs(at) + 1e-14 or by * by * steepness < 1e-6 * noise * noise * target.numel():
            return Fitted(at, spread)
    return None


def usual_numbers(config: XLMRobertaConfig) -> tuple[float, ...]:
    """Numbers that ports write, the most usual first."""
    sizes = (config.head_dim, config.hidden_size, config.num_attention_heads, config.num_hidden_layers)
    roots = [power for size in sizes for power in (size**0.5, size**-0.5, size, 1 / size)]
    depth = config.num_hidden_layers
    deep = [(2 * depth) ** 0.5, (2 * depth) ** -0.5, (2 * depth) ** 0.25, (8 * depth) ** -0.25, (8 * depth) ** 0.25]
    kept = [1 - config.hidden_dropout_prob, 1 - config.attention_probs_dropout_prob, 0.9]
    dropped = [number for keep in kept if keep for number in (keep, 1 / keep)]
    scales = [n**-0.5 for n in (8, 16, 32, 48, 64, 80, 96, 128, 256)]  # of other heads
    tens = [10.0**n for n in range(-8, 10)]
    plain = [0, 1, 2, 0.5, 3, 1 / 3, 4, 0.25, 2 / 3, 1.5, 5, 6, 8, 10, 0.2, 0.1, 0.05, 16, 32, 64, 128, 256, 512, 20,
             30, 50, 100, 0.3, 0.7, 0.8, 0.6, 0.4, 0.75, 1.25, 1.1, 0.95, 1.05, 0.98, 1.2, 0.01, 0.02, 0.99, 1.01,
             2**0.5, 2**-0.5, math.log(2), 1 / math.log(2), math.pi, 2 / math.pi, (2 / math.pi) ** 0.5, 1.702, 10000,
             65504, 0.125]  # fmt: skip
    numbers = [float(n) for n in (*plain[:10], *roots, *plain[10:], *deep, *dropped, *scales, *tens)]
    return tuple(dict.fromkeys([signed for number in numbers for signed in (number, -number)]))


def usual_near(fit: Fitted, usual: Sequence[float]) -> list[float]:
    """The usual numbers that rounding cannot tell from the fitted one, the most usual first."""
    reach = 5 * fit.spread + 1e-7 * abs(fit.value)
    return [number for number in usual if abs(number - fit.value) <= reach]


def in_words(number: float, config: XLMRobertaConfig) -> str:
    """A number, and how it may have come about."""
    names = {
        "sqrt(head_dim)": config.head_dim**0.5,
        "1/sqrt(head_dim)": config.head_dim**-0.5,
        "1/head_dim": 1 / config.head_dim,
        "head_dim": float(config.head_dim),
        "sqrt(hidden_size)": config.hidden_size**0.5,
        "1/sqrt(hidden_size)": config.hidden_size**-0.5,
        "hidden_size": float(config.hidden_size),
        "1/hidden_size": 1 / config.hidden_size,
        "sqrt(2)": 2**0.5,
        "1/sqrt(2)": 2**-0.5,
    }
    for name, value in names.items():
        for sign, mark in ((1, ""), (-1, "-")):
            if math.isclose(number, sign * value, rel_tol=1e-9):
                return f"{mark}{name} = {number:.6g}"
    return f"{number:.6g}"


def as_factor(value: float, start: float | None, usual: Sequence[float]) -> str:
    """How often the right number a number is, in words, if that is a usual number and it is none itself."""
    if start is None or start <= 0 or start == 1 or value in usual:
        return ""
    times = [number for number in usual if math.isclose(value, number * start, rel_tol=1e-6)]
    return f" ({times[0]:.6g} times as much)" if times else ""
