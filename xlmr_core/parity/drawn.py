"""What is drawn at random: dropout, and weights that were not loaded. It is recognised, not simulated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.compare import Row
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.findings import Evidence, Finding, recognised
from xlmr_core.parity.grammar.terms import resolved, terms_of, weights_of
from xlmr_core.parity.simulate import Run, Simulator
from xlmr_core.parity.tap_values import Dump, elements

DROPOUT = find_fault("dropout_left_on")
BEYOND = 4.0  # standard errors
FEWEST = 8  # tokens
LARGEST = 1.1  # how far the largest variance may be above that of random numbers


def dropout(simulator: Simulator, dump: Dump, run: Run, row: Row) -> Finding | None:
    """Dropout at the embeddings: it leaves zeros there, and scales the rest."""
    if row.tap != "embeddings.output":
        return None
    keep = 1 - simulator.dropout
    kept = dump[row.tap] != 0
    if keep in (0, 1) or kept.all():
        return None
    allowed = (row.allowed or 0.0) / keep
    expected = run.expected[row.tap] * kept / keep
    difference = elements(row.tap, dump[row.tap], run.real) - elements(row.tap, expected, run.real)
    distance = float(difference.abs().max())
    if distance > allowed:
        return None
    return Finding(row.tap, (DROPOUT,), (Evidence(row.tap, row.max_abs, distance, allowed),))


def not_loaded(simulator: Simulator, dump: Dump, run: Run, row: Row) -> Finding | None:
    """A weight of a linear map that is new: its products are those of random numbers of the size of new ones.

    Args:
        simulator: With the right model.
        dump: The foreign tensors.
        run: The model with the faults that were found.
        row: The first wrong tap: the output of a linear map.

    Returns:
        None where the weight is not seen to be new: random numbers of this size explain the products, and the right
        weight is of another size.
    """
    model = simulator.exact
    term = terms_of(model).get(row.tap)
    if term is None or term.op != "add" or term.args[0].op != "linear" or term.args[1].op != "weight":
        return None
    read, weight = term.args[0].args
    if read.op != "tap" or resolved(read.value) not in run.expected:
        return None
    weights = weights_of(model)
    right, bias = weights[weight.value], weights[term.args[1].value]
    given, found = (
        elements(row.tap, x, run.real) for x in (run.expected[resolved(read.value)], dump[row.tap].double())
    )
    size = _size_of_weight(given, found, bias)
    if size is None:
        return None
    std, error, lost = size
    if abs(float(right.std()) - std) <= BEYOND * error:
        return None  # it may be the right weight, rearranged
    for words, usual in _sizes_of_new_weights(model.config, right):
        if abs(std - usual) <= BEYOND * error:
            what = f"{weight.value} was not loaded: it is drawn at random, with the standard deviation {words}"
            cause = f"{what}{'; its bias is 0' if lost else ''}"
            return recognised(row.tap, cause, f"standard deviation {std:.3g}", ())
    return None


def _sizes_of_new_weights(config: XLMRobertaConfig, weight: Tensor) -> Iterator[tuple[str, float]]:
    """The standard deviations with which libraries fill a new weight, (out, in)."""
    outputs, inputs = weight.shape
    std = config.initializer_range
    yield f"{std:g} of initializer_range", std
    yield "1 / sqrt(3 * inputs) of torch's Linear", (3 * inputs) ** -0.5
    yield "sqrt(2 / (inputs + outputs)) of Glorot's rule", (2 / (inputs + outputs)) ** 0.5
    yield "sqrt(2 / inputs) of He's rule", (2 / inputs) ** 0.5
    yield "1 / sqrt(inputs)", inputs**-0.5


def _size_of_weight(given: Tensor, found: Tensor, bias: Tensor) -> tuple[float, float, bool] | None:
    """The standard deviation of the entries of a weight of random numbers, from its products.

    The products of random numbers have a covariance over the tokens that is known: that of what the map reads. In the
    axes in which it is 1, they are independent numbers of one size.

    Args:
        given: What the linear map reads, (T, in).
        found: What it gives, (T, out).
        bias: (out).

    Returns:
        The deviation, its standard error, and whether the bias is 0. None where the products are not those of random
        numbers.
    """
    count = min(len(found), given.shape[1] // 2)  # of fewer tokens than inputs the covariance has an inverse
    if count < FEWEST:
        return None
    given, found, outputs = given[:count], found[:count], found.shape[1]
    factor, fails = torch.linalg.cholesky_ex(given @ given.T)
    if fails:
        return None
    ones, products = (
        torch.linalg.solve_triangular(factor, x, upper=False) for x in (torch.ones(count, 1).double(), found)
    )
    times, error = _times_of_bias(products, ones, bias)
    if abs(times - 1) > BEYOND * error and abs(times) > BEYOND * error:
        return None
    lost = abs(times) <= BEYOND * error < abs(times - 1)
    products = products if lost else products - ones * bias
    std = float(products.square().mean().sqrt())
    largest = float(torch.linalg.matrix_norm(products, 2)) / math.sqrt(outputs)
    if largest > LARGEST * std * (1 + math.sqrt(count / outputs)):  # Marchenko and Pastur 1967
        return None
    return std, std / math.sqrt(2 * products.numel()), lost


def _times_of_bias(products: Tensor, ones: Tensor, bias: Tensor) -> tuple[float, float]:
    """How often the bias is in the products, by least squares, and the standard error of that."""
    square = float(ones.square().sum() * bias.square().sum())
    if not square:
        return 1.0, 0.0
    times = float((ones * products).sum(0) @ bias) / square
    left = products - times * ones * bias
    return times, float(left.square().mean().sqrt()) / math.sqrt(square)
