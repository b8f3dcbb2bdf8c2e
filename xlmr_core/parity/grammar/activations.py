"""The variants of the activation: other functions, formulas and tables of GELU, and functions with a number in them."""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.parity.grammar.tokens import Kind

# ---- formulas of erf and of GELU -------------------------------------------------------------------------------------


def _gelu_by(erf: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """GELU by another formula of erf, which is given for numbers that are not negative."""
    return lambda x: 0.5 * x * (1 + x.sign() * erf(x.abs() / math.sqrt(2)))


def _powers(t: Tensor, *factors: float) -> Tensor:
    return sum((factor * t ** (n + 1) for n, factor in enumerate(factors)), start=torch.zeros_like(t))


# Abramowitz and Stegun 1964, equations 7.1.25 to 7.1.28.
_ERFS: dict[str, Callable[[Tensor], Tensor]] = {
    "7.1.25": lambda z: 1 - _powers(1 / (1 + 0.47047 * z), 0.3480242, -0.0958798, 0.7478556) * (-z * z).exp(),
    "7.1.26": lambda z: (
        1
        - _powers(1 / (1 + 0.3275911 * z), 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
        * (-z * z).exp()
    ),
    "7.1.27": lambda z: 1 - (1 + _powers(z, 0.278393, 0.230389, 0.000972, 0.078108)) ** -4,
    "7.1.28": lambda z: (
        1 - (1 + _powers(z, 0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638)) ** -16
    ),
}


def _winitzki(a: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (1 - (-z * z * (4 / math.pi + a * z * z) / (1 + a * z * z)).exp()).sqrt()


def _polynomial(z: Tensor) -> Tensor:
    """I-BERT (Kim et al. 2021)."""
    return -0.2888 * (z.clamp(max=1.769) - 1.769).square() + 1


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu with erf of |x|, without its sign": lambda x: 0.5 * x * (1 + torch.erf(x.abs() / math.sqrt(2))),
    **{f"gelu by erf of Abramowitz and Stegun, {name}": _gelu_by(erf) for name, erf in _ERFS.items()},
    "gelu by erf of Winitzki, 0.147": _gelu_by(_winitzki(0.147)),
    "gelu by erf of Winitzki, 0.140012": _gelu_by(_winitzki(0.140012)),
    "gelu by the polynomial of I-BERT": _gelu_by(_polynomial),
    "gelu with a straight line for its sigmoid (1.702 x / 6 + 1/2)": lambda x: x * (1.702 * x / 6 + 0.5).clamp(0, 1),
    "gelu with a straight line for its sigmoid (x / 4 + 1/2)": lambda x: x * (x / 4 + 0.5).clamp(0, 1),
    "gelu with a straight line for its sigmoid (x / 5 + 1/2)": lambda x: x * (x / 5 + 0.5).clamp(0, 1),
}

# ---- other functions -------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu 0.01": F.leaky_relu,
    "leaky relu 0.1": lambda x: F.leaky_relu(x, 0.1),
    "leaky relu 0.2": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "a cut at -1 and 1 (hardtanh)": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "relu squared": lambda x: F.relu(x).square(),
    "square": torch.square,
    "absolute value": torch.abs,
    "gelu without the division by sqrt(2)": lambda x: 0.5 * x * (1 + torch.erf(x)),
    "gelu without the factor 1/2": lambda x: x * (1 + torch.erf(x * 0.5**0.5)),
    "normal distribution function (gelu without its factor x)": lambda x: 0.5 * (1 + torch.erf(x * 0.5**0.5)),
    "tanh gelu without the cubic term": lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * x)),
    "tanh gelu without sqrt(2/pi)": lambda x: 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3)),
    "tanh gelu with 0.044715 inside the root only": lambda x: (
        0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**2)))
    ),
    "tanh gelu with 2/pi for its root": lambda x: 0.5 * x * (1 + torch.tanh(2 / math.pi * (x + 0.044715 * x**3))),
    "quick gelu of 1.7": lambda x: x * torch.sigmoid(1.7 * x),
    "sigmoid gelu of 1.5957": lambda x: x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * x),
    "gelu cut off at 10": lambda x: F.gelu(x).clamp(-10, 10),
    "sine": torch.sin,
    "exponential": torch.exp,
    "arctangent": torch.atan,
    **FORMULAS,
}

# ---- tables ----------------------------------------------------------------------------------------------------------


Table = Callable[[Tensor, float, float], Tensor]  # of x, where an entry lies, and the step between entries


def _nearest(x: Tensor, start: float, step: float) -> Tensor:
    return F.gelu(((x - start) / step).round() * step + start)


def _below(x: Tensor, start: float, step: float) -> Tensor:
    return F.gelu(((x - start) / step).floor() * step + start)


def _line(x: Tensor, start: float, step: float) -> Tensor:
    """A straight line between two entries."""
    low = ((x - start) / step).floor() * step + start
    a, b = F.gelu(low), F.gelu(low + step)
    return a + (b - a) * (x - low) / step


_TABLES: dict[str, Table] = {
    "the nearest entry": _nearest,
    "the entry below": _below,
    "a line between two entries": _line,
}


def _in_range(x: Tensor, entries: int, end: int, table: Table, *, kept: bool) -> Tensor:
    """A table from -end to end. Outside its last entry, or relu."""
    found = table(x.clamp(-end, end), -end, 2 * end / (entries - 1))
    return found if kept else torch.where(x.abs() <= end, found, F.relu(x))


BY_NUMBER: dict[str, Callable[..., Tensor]] = {
    **{
        f"gelu by a table with steps of 1/{{}}, {name}": lambda x, n, table=table: table(x, 0.0, 1 / n)
        for name, table in _TABLES.items()
    },
    **{
        f"gelu by a table of {{0}} entries from -{{1}} to {{1}}, {name}{beyond}": (
            lambda x, n, end, table=table, kept=bool(beyond): _in_range(x, n, end, table, kept=kept)
        )
        for name, table in _TABLES.items()
        for beyond in ("", ", its ends beyond it")
    },
}
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 5, 10, 20, 50, 100, 1000)
_ENTRIES = (16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025, 2048, 4096, 100, 101, 1000, 1001)
NUMBERED: tuple[Kind, ...] = (
    *((name, n) for name in BY_NUMBER if "steps" in name for n in _STEPS),
    *((name, n, end) for name in BY_NUMBER if "entries from" in name for n in _ENTRIES for end in (3, 4, 5, 6, 8, 10)),
)


def activation(kind: Kind, x: Tensor) -> Tensor:
    """A variant of the activation."""
    if isinstance(kind, tuple):
        name, *numbers = kind
        return BY_NUMBER[name](x, *numbers)
    return ACTIVATIONS[kind](x)


# ---- with a number that is estimated ---------------------------------------------------------------------------------

OPEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {  # of x and the number, and where to begin
    "x * sigmoid({} x)": (lambda x, c: x * torch.sigmoid(c * x), 1.7),
    "leaky relu of slope {}": (lambda x, c: torch.where(x > 0, x, c * x), 0.01),
    "elu of alpha {}": (lambda x, c: torch.where(x > 0, x, c * x.clamp(max=0).expm1()), 1.0),
    "tanh gelu with {} for 0.044715": (
        lambda x, c: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + c * x**3))),
        0.044715,
    ),
    "tanh gelu with {} for sqrt(2 / pi)": (
        lambda x, c: 0.5 * x * (1 + torch.tanh(c * (x + 0.044715 * x**3))),
        (2 / math.pi) ** 0.5,
    ),
    "gelu with {} for sqrt(2)": (lambda x, c: 0.5 * x * (1 + torch.erf(x / c)), 2**0.5),
    "gelu with erf({} x) for erf(x / sqrt(2))": (lambda x, c: 0.5 * x * (1 + torch.erf(c * x)), 2**-0.5),
}
