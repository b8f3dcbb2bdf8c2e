"""Narrower numbers: each function gives a tensor rounded to a format, as float."""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ERROR = 2.0**-18  # of a number in float32 that is the sum of many
BETWEEN = 2e-5  # of a step: float32 has numbers up to 128 to 1e-5


def _through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounding to a narrower format. From float64 by way of float32, as a checkpoint is."""
    return lambda x: x.float().to(dtype).to(x.dtype)


def _either(rule: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A rounding that gives a tensor in float32 or less the other number where rounding errors decide between two.

    So that this counts as a rounding error of the model in that precision.
    """

    def rounded(x: Tensor) -> Tensor:
        nearest = rule(x)
        if x.dtype == torch.float64:
            return nearest
        low, high = rule(x * (1 - ERROR)), rule(x * (1 + ERROR))
        return torch.where(low == nearest, high, low)

    return rounded


def _cut_to_bfloat16(x: Tensor) -> Tensor:
    """The upper 16 bits of float32, without rounding."""
    return (x.float().view(torch.int32) & -65536).view(torch.float32).to(x.dtype)


def _to_tf32(x: Tensor) -> Tensor:
    """10 bits of fraction, as the tensor cores of NVIDIA's GPUs read float32."""
    return ((x.float().view(torch.int32) + 4096) & -8192).view(torch.float32).to(x.dtype)


def _cut_to_tf32(x: Tensor) -> Tensor:
    """10 bits of fraction, without rounding."""
    return (x.float().view(torch.int32) & -8192).view(torch.float32).to(x.dtype)


def _to_scaled_float8(x: Tensor) -> Tensor:
    scale = (x.abs().max() / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-30)
    return _through(torch.float8_e4m3fn)(x / scale) * scale


def in_steps(x: Tensor, step: Tensor) -> Tensor:
    """The number of steps of each entry, rounded in float32 as ports do it.

    Between two steps rounding errors decide. A tensor in float32 or less gets the other one there, so that this counts
    as a rounding error of the model in that precision.
    """
    number = x.float() / step
    nearest = number.round()
    if x.dtype == torch.float64:
        return nearest
    between = (number - number.floor() - 0.5).abs() < BETWEEN
    return torch.where(between, number.floor() + number.ceil() - nearest, nearest)


def _grid(x: Tensor, largest: Tensor, steps: int, limits: tuple[int, int]) -> Tensor:
    step = (largest.float() / steps).clamp(min=1e-30)
    return (in_steps(x, step).clamp(*limits) * step).to(x)


def _symmetric(bits: int, dim: int | None, *, full: bool = False) -> Callable[[Tensor], Tensor]:
    """Whole numbers of so many bits, the largest of each row (or of all) at the end of the range."""
    top = 2 ** (bits - 1) - 1

    def rounded(x: Tensor) -> Tensor:
        largest = x.abs().max() if dim is None else x.abs().amax(dim=dim, keepdim=True)
        return _grid(x, largest, top + full, (-top - 1, top))

    return rounded


def _asymmetric(bits: int, dim: int | None) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        low = x.min() if dim is None else x.amin(dim=dim, keepdim=True)
        high = x.max() if dim is None else x.amax(dim=dim, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low).float() / (2**bits - 1)).clamp(min=1e-30)
        zero = (-low.float() / step).round()
        return (((in_steps(x, step) + zero).clamp(0, 2**bits - 1) - zero) * step).to(x)

    return rounded


def _from_zero(dim: int | None) -> Callable[[Tensor], Tensor]:
    """255 steps from 0 to the largest, as for what comes from ReLU."""

    def rounded(x: Tensor) -> Tensor:
        positive = x.clamp(min=0)
        largest = positive.max() if dim is None else positive.amax(dim=dim, keepdim=True)
        return _grid(positive, largest, 255, (0, 255))

    return rounded


def _in_groups(size: int, bits: int) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        if x.shape[-1] % size:
            raise ValueError(f"rows of {x.shape[-1]} do not split into groups of {size}")
        return _symmetric(bits, -1)(x.unflatten(-1, (-1, size))).flatten(-2)

    return rounded


# The 16 numbers of NF4 (Dettmers et al. 2023), quantiles of the normal distribution.
NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
       0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)  # fmt: skip
EVEN = tuple(-1 + 2 * n / 15 for n in range(16))
EIGHTHS = tuple((n - 7) / 8 for n in range(16))


def by_codes(size: int, read: tuple[float, ...] = NF4) -> Callable[[Tensor], Tensor]:
    """NF4 in groups of a row, whose codes are read by a table."""

    def rounded(x: Tensor) -> Tensor:
        if x.shape[-1] % size:
            raise ValueError(f"rows of {x.shape[-1]} do not split into groups of {size}")
        groups = x.float().unflatten(-1, (-1, size))
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        table = torch.tensor(NF4, device=x.device)
        borders = (table[1:] + table[:-1]) / 2
        codes = torch.bucketize(groups / largest, borders)
        return (torch.tensor(read, device=x.device)[codes] * largest).flatten(-2).to(x)

    return rounded


QUANTISED: dict[str, Callable[[Tensor], Tensor]] = {
    "quantised to int8 by tensor": _symmetric(8, None),
    "quantised to int8 by row": _symmetric(8, -1),
    "quantised to int8 by column": _symmetric(8, -2),
    "quantised to int8 by tensor, asymmetric": _asymmetric(8, None),
    "quantised to int8 by row, asymmetric": _asymmetric(8, -1),
    "quantised to uint8 by tensor, from 0": _from_zero(None),
    "quantised to uint8 by row, from 0": _from_zero(-1),
    "quantised to int8 by tensor, of 128 steps": _symmetric(8, None, full=True),
    "quantised to int4 by tensor": _symmetric(4, None),
    "quantised to int4 by row": _symmetric(4, -1),
    "quantised to int4 in groups of 32": _in_groups(32, 4),
    "quantised to int4 in groups of 64": _in_groups(64, 4),
    "quantised to int4 in groups of 128": _in_groups(128, 4),
    "quantised to NF4 in groups of 32": by_codes(32),
    "quantised to NF4 in groups of 64": by_codes(64),
    "quantised to int8 in groups of 32": _in_groups(32, 8),
}
ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded to float16": _through(torch.float16),
    "rounded to bfloat16": _through(torch.bfloat16),
    "rounded to float8 e4m3": _through(torch.float8_e4m3fn),
    "rounded to float8 e5m2": _through(torch.float8_e5m2),
    "rounded to float8 e4m3, scaled by tensor": _to_scaled_float8,
    "rounded to tf32": _to_tf32,
    "cut off to tf32, not rounded": _cut_to_tf32,
    "cut off to bfloat16, not rounded": _cut_to_bfloat16,
    "rounded to 2 decimals": lambda x: x.round(decimals=2),
    "rounded to 3 decimals": lambda x: x.round(decimals=3),
    "rounded to 4 decimals": lambda x: x.round(decimals=4),
}
PRECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: _either(rule) for name, rule in ROUNDED.items()},
    **QUANTISED,
}
