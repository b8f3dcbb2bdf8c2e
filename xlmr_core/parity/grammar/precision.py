"""Narrower numbers: each function gives a tensor rounded to a format, as float."""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounding to a narrower format. From float64 by way of float32, as a checkpoint is."""
    return lambda x: x.float().to(dtype).to(x.dtype)


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


def _grid(x: Tensor, largest: Tensor, steps: int, limits: tuple[int, int]) -> Tensor:
    step = (largest / steps).clamp(min=1e-30)
    return (x / step).round().clamp(*limits) * step


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
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-30)
        zero = (-low / step).round()
        return ((x / step + zero).round().clamp(0, 2**bits - 1) - zero) * step

    return rounded


def _in_groups(size: int, bits: int) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        if x.shape[-1] % size:
            raise ValueError(f"rows of {x.shape[-1]} do not split into groups of {size}")
        return _symmetric(bits, -1)(x.unflatten(-1, (-1, size))).flatten(-2)

    return rounded


PRECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
    "quantised to int8 by tensor": _symmetric(8, None),
    "quantised to int8 by row": _symmetric(8, -1),
    "quantised to int8 by column": _symmetric(8, -2),
    "quantised to int8 by tensor, asymmetric": _asymmetric(8, None),
    "quantised to int8 by row, asymmetric": _asymmetric(8, -1),
    "quantised to int8 by tensor, of 128 steps": _symmetric(8, None, full=True),
    "quantised to int4 by tensor": _symmetric(4, None),
    "quantised to int4 by row": _symmetric(4, -1),
    "quantised to int4 in groups of 32": _in_groups(32, 4),
    "quantised to int4 in groups of 64": _in_groups(64, 4),
    "quantised to int4 in groups of 128": _in_groups(128, 4),
    "quantised to int8 in groups of 32": _in_groups(32, 8),
}
