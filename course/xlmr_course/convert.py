"""From torch to what the learner writes in, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def given_as(arrays: str, value: Any) -> Any:
    """A copy of an argument, in "torch" or in "numpy"."""
    if isinstance(value, Tensor):
        return value.detach().numpy().copy() if arrays == "numpy" else value.detach().clone()
    if isinstance(value, Mapping):
        return {name: given_as(arrays, one) for name, one in value.items()}
    if callable(value) and arrays == "numpy":
        return _with_arrays(value)
    return list(value) if isinstance(value, list) else value


def _with_arrays(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def call(array: Any) -> Any:
        return function(_as_tensor(array)).numpy()

    return call


def with_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is written in NumPy as one that takes and returns tensors."""

    def call(*values: Any) -> Any:
        return as_tensors(function(*(given_as("numpy", value) for value in values)))

    return call


def as_tensors(value: Any) -> Any:
    """What a function in NumPy returned, with tensors in place of arrays."""
    if isinstance(value, np.ndarray):
        return _as_tensor(value)
    return {name: as_tensors(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _as_tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # np.ascontiguousarray would give a single number an axis


def copied(value: Any) -> Any:
    """A copy of an argument, of the same kind."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: copied(one) for name, one in value.items()}
    return value.copy() if isinstance(value, list | np.ndarray) else value


def same(a: Any, b: Any) -> bool:
    """Whether two arguments hold the same numbers."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


class UnexpectedError(Exception):
    """What came back is not of the kind that is asked for."""


def returned(result: Any, expected: Any) -> Any:
    """The result as a tensor, or as a tuple, dict or list as expected."""
    if result is None:
        raise UnexpectedError("it returns None: is `return` missing?")
    if isinstance(expected, dict):
        if not isinstance(result, Mapping):
            raise UnexpectedError(f"it returns {_kind(result)}; expected a dict")
        odd = next((name for name, value in result.items() if not isinstance(value, Tensor | np.ndarray)), None)
        if odd is not None:
            raise UnexpectedError(f"the value of {str(odd)!r} is {_kind(result[odd])}; expected the tensor of the file")
        return {str(name): _tensor(value, None) for name, value in result.items()}
    if isinstance(expected, tuple):
        if not isinstance(result, tuple | list) or len(result) != len(expected):
            raise UnexpectedError(f"it returns {_kind(result)}; expected {len(expected)} things: return a, b")
        return tuple(_tensor(a, b) for a, b in zip(result, expected, strict=True))
    if isinstance(expected, list):
        return _integers(result)
    return _tensor(result, expected)


def _integers(result: Any) -> list[int]:
    numbers = result.tolist() if isinstance(result, Tensor | np.ndarray) else result
    if not isinstance(numbers, list):
        raise UnexpectedError(f"it returns {_kind(result)}; expected a list of integers")
    odd = next((i for i, number in enumerate(numbers) if not isinstance(number, int | np.integer)), None)
    if odd is not None:
        raise UnexpectedError(f"number {odd} of the result is {_kind(numbers[odd])}; expected a list of integers")
    return [int(number) for number in numbers]


def _tensor(value: Any, expected: Tensor | None) -> Tensor:
    if isinstance(value, int | float | np.generic):
        value = np.asarray(value)
    if isinstance(value, list):
        try:
            value = np.asarray(value)
        except ValueError:
            raise UnexpectedError("it returns lists of unequal lengths") from None
    if not isinstance(value, Tensor | np.ndarray):
        raise UnexpectedError(f"it returns {_kind(value)}; expected an array")
    try:
        tensor = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
    except TypeError:  # torch has no such dtype
        raise UnexpectedError(f"it returns an array of dtype {value.dtype}; expected numbers in one array") from None
    if expected is None:
        return tensor.double()
    if expected.is_floating_point() != tensor.is_floating_point():
        kinds = "floating-point numbers" if expected.is_floating_point() else "integers"
        raise UnexpectedError(f"it returns {_dtype(tensor)} numbers; expected {kinds}")
    if expected.is_floating_point() and tensor.dtype != torch.float64:
        raise UnexpectedError(
            f"it returns {_dtype(tensor)} for float64: something on the way rounds. Make new arrays with the dtype of the "
            "input"
        )
    return tensor.double() if expected.is_floating_point() else tensor.long()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return "an array" if isinstance(value, np.ndarray) else "a tensor"
    return "a tuple" if isinstance(value, tuple) else f"a {type(value).__name__}"
