"""What noise hides: faults that stay below every noise floor, and that a dump has all the same.

In bfloat16 a tanh GELU or BERT's eps moves no value further than rounding does. But rounding errors point in all
directions, and a fault moves all values at once in a direction that can be computed. So the local errors of the dump
(local.py) are projected on the change that each fault makes, over all values of all taps: rounding averages out, and
what remains is the size of the fault, 0 where the port does not have it and 1 where it does.

    found = leanings(model, inputs, dump, torch.bfloat16)
    print(found[0])  # leaning towards gelu_tanh (size 1.000 +- 0.001, 21 sigma among 179 candidates)

The error of a size is measured, not assumed. Rounding errors that belong to one token, to one feature or to one
value may be alike, so the error is the largest that sums over tokens, features or values give (Cameron, Gelbach and
Miller 2011, "Robust inference with multiway clustering"), and at least the size that right runs of our own model have
in the precision of the dump. A fault is reported only if its size is 1 within that error, and far from 0 for the number
of faults that were tried. Rounding to int8 is found in the same way, and is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import EncoderLayer
from xlmr_core.parity.compare import Leaning
from xlmr_core.parity.faults import FAULTS, Fault, Patch
from xlmr_core.parity.faults.patching import override_method, parts_of, set_attribute
from xlmr_core.parity.int8 import rounded_by_token, rounded_input, rounded_weight
from xlmr_core.parity.local import (
    STORAGES,
    Inputs,
    Storage,
    errors_of_right_runs,
    predicted,
    rounding_steps,
    stored_as,
    values,
)
from xlmr_core.parity.tap_values import LOGSUMEXP, TOP, Dump
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick

RIGHT_RUNS = 12
# A chance of one in ten thousand that rounding gives such a size for any of the candidates.
CHANCE = 1e-4
MOST_OFF = 0.6  # a size further from 1 is not looked at closer
SIZE_TOLERANCE = 0.1  # and three times the error of the size
QUANTISATION_TOLERANCE = 0.3  # a value between two steps may be rounded to either
MOST_OF_ONE = 4.0  # that a single value may add to the square of a significance
TIE = 12.0  # logarithm of a ratio of likelihoods: below it, two faults explain the dump equally well
INVISIBLE = 1e-6  # of a rounding step: what float64 makes of another order of operations
NOISELESS = 0.01  # of the variance of one rounding: the least that the variance of an error is taken for
# Rounding that is right where the port computes in a type that is no finer.
ROUNDINGS = ("scores_float16", "weights_float16")
AT_RANDOM = "dropout_left_on"


def leanings(
    model: PretrainedModel, inputs: Inputs, dump: Dump, dtype: torch.dtype, *, tick: Tick = no_tick
) -> tuple[Leaning, ...]:
    """The faults whose effect the dump has.

    Args:
        model: The right model.
        inputs: Of the dump.
        dump: Tap -> tensor of the port, batch first. Names that are no taps are ignored.
        dtype: What the port computes in; of int8, what it stores its sums in.
        tick: Is called with 1 after each candidate.

    Returns:
        The faults and quantisations that were found, the one that explains most first. In a dump with few taps, such as
        the last hidden state only, few are found: the errors of all operations before a tap lie over it.
    """
    known = {tap.name for tap in model.taps()} | ({TOP, LOGSUMEXP} if inputs.top_ids is not None else set[str]())
    dump = {tap: tensor.double() for tap, tensor in dump.items() if tap in known}
    return _Search(model, inputs, dump, dtype).found(tick) if dump else ()


# ---- candidates ------------------------------------------------------------------------------------------------------


def candidates(dtype: torch.dtype) -> Iterator[Fault]:
    """The faults that are tried, and the quantisations."""
    half = torch.finfo(dtype).eps >= torch.finfo(torch.float16).eps
    for fault in FAULTS:
        if fault.shows == "outputs" and fault.name != AT_RANDOM and not (half and fault.name in ROUNDINGS):
            yield fault
    yield from QUANTISATIONS


def _weights_rounded(per_channel: bool) -> Patch:
    def patch(model: nn.Module, _config: XLMRobertaConfig, undo: ExitStack) -> None:
        for linear in _linear_maps(model):
            weight = nn.Parameter(rounded_weight(linear.weight.detach(), per_channel))
            set_attribute(undo, linear, "weight", weight)

    return patch


def _inputs_rounded(rule: Callable[[Tensor], Tensor]) -> Patch:
    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(rule(x), linear.weight, linear.bias)

    def patch(model: nn.Module, _config: XLMRobertaConfig, undo: ExitStack) -> None:
        for linear in _linear_maps(model):
            override_method(undo, linear, "forward", partial(forward, linear))

    return patch


def _linear_maps(model: nn.Module) -> list[nn.Linear]:
    """Those of the layers, which is what int8 is used for in every scheme."""
    return [linear for layer in parts_of(model, EncoderLayer) for linear in parts_of(layer, nn.Linear)]


def _quantisation(name: str, cause: str, patch: Patch) -> Fault:
    symptom = "errors of about 1 % of the largest value at every linear map, and none at the norms"
    return Fault(name, cause, symptom, "layers.0.attention.q", patch)


QUANTISATIONS = (
    _quantisation("int8_weights", "weights in int8, one scale for each matrix", _weights_rounded(False)),
    _quantisation("int8_weights_per_channel", "weights in int8, a scale for each output", _weights_rounded(True)),
    _quantisation(
        "int8_inputs", "inputs of linear maps in int8, 8 bits", _inputs_rounded(partial(rounded_input, steps=255))
    ),
    _quantisation("int8_inputs_of_7_bits", "inputs of linear maps in int8, 7 bits", _inputs_rounded(rounded_input)),
    _quantisation(
        "int8_inputs_by_token",
        "inputs of linear maps in int8, a scale for each token",
        _inputs_rounded(rounded_by_token),
    ),
)


# ---- sums over the values of taps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """Of some taps: products of the errors with the change, in units of the errors' variance."""

    projected: float  # errors times change
    power: float  # change times change
    # Rows: sums over tokens, features, equal values, single values. Of the sums p of the errors and q of the change:
    # the totals of p * p, p * q and q * q. (4, 3)
    squares: Tensor
    right: Tensor  # as `projected`, of each right run

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.projected + other.projected,
            self.power + other.power,
            self.squares + other.squares,
            self.right + other.right,
        )

    @property
    def size(self) -> float:
        return self.projected / self.power

    def error(self) -> tuple[float, float]:
        """The standard error of the size, and its degrees of freedom."""
        pp, pq, qq = self.squares.unbind(dim=1)
        groups = min(self.power**2 / float(total) for total in qq[:3])  # as many as there would be of equal weight
        tokens, features, equal, single = ((pp - 2 * self.size * pq + self.size**2 * qq) / self.power**2).tolist()
        variance = max(tokens + features + equal - 2 * single, tokens, features, equal, 0.0)
        freedom = max(groups - 1, 0.01)
        variance *= (freedom + 1) / freedom
        of_right_runs = float((self.right / self.power).square().mean())
        if of_right_runs > variance:
            return math.sqrt(of_right_runs), min(freedom, len(self.right))
        return math.sqrt(variance), freedom


class _Groups:
    """Which values of a tap belong together."""

    def __init__(self, values: Tensor) -> None:
        """Args: values: (T, M), of the dump."""
        _, exponents = torch.frexp(values.abs())
        self._sizes = torch.unique(exponents, return_inverse=True)[1]  # rounding errors grow with the value
        self._equal = torch.unique(values, return_inverse=True)[
            1
        ]  # a function of one number errs equally on equal ones

    def means(self, x: Tensor) -> Tensor:
        """The mean over the values of about the same size, at each value."""
        totals = _totals(x, self._sizes)
        return (totals / _totals(torch.ones_like(x), self._sizes))[self._sizes]

    def sums(self, p: Tensor, q: Tensor) -> Tensor:
        """See `_Sums.squares`."""
        pairs = (
            (p.sum(dim=1), q.sum(dim=1)),
            (p.sum(dim=0), q.sum(dim=0)),
            (_totals(p, self._equal), _totals(q, self._equal)),
            (p, q),
        )
        return torch.stack([torch.stack([(a * a).sum(), (a * b).sum(), (b * b).sum()]) for a, b in pairs])


def _totals(x: Tensor, groups: Tensor) -> Tensor:
    """The sum of each group of numbers."""
    return x.new_zeros(int(groups.max()) + 1).index_add_(0, groups.flatten(), x.flatten())


# ---- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A fault, in every layer or in one, and the change that it makes at each tap."""

    name: str
    is_quantisation: bool
    changes: Mapping[str, Tensor]  # (T, M)


class _Search:
    def __init__(self, model: PretrainedModel, inputs: Inputs, dump: Dump, dtype: torch.dtype) -> None:
        self.inputs, self.dump, self.dtype = inputs, dump, dtype
        self.own = {tap: values(tap, tensor, inputs.real) for tap, tensor in dump.items()}
        self.steps = {tap: rounding_steps(x, dtype) for tap, x in self.own.items()}
        rounded = stored_as(model, "rounded", dtype)
        self.right = errors_of_right_runs(model, rounded, inputs, dump, dtype, RIGHT_RUNS)
        del rounded  # in float64, a model takes much memory
        self.exact = stored_as(model, self._storage(model), dtype)
        self.expected = predicted(self.exact, inputs, dump)
        self.errors = {tap: self.own[tap] - expected for tap, expected in self.expected.items()}
        self.groups = {tap: _Groups(self.own[tap]) for tap in self.errors}
        self.variances = {tap: self._variance_of_right_runs(tap) for tap in self.errors}

    def found(self, tick: Tick) -> tuple[Leaning, ...]:
        """The candidates that the dump leans towards. Each is subtracted before the next is looked for."""
        tried = 0
        near: list[_Candidate] = []  # those of about the right size
        for fault in candidates(self.dtype):
            made = self._made(fault)
            tried += len(made)
            near += [candidate for candidate in made if self._judged(candidate)]
            tick(1)
        found: list[Leaning] = []
        while True:
            judged = [(candidate, self._judged(candidate)) for candidate in near]
            passing = [(candidate, its) for candidate, its in judged if its and _is_found(its, tried)]
            gains = [self._gain(candidate) for candidate, _ in passing]
            if max(gains, default=0.0) <= 0:
                return tuple(found)
            most = max(gains)
            best, leaning = passing[gains.index(most)]
            ties = [its.name for (_, its), gain in zip(passing, gains, strict=True) if most - gain < TIE]
            found.append(replace(leaning, candidates=tried, ties=tuple(name for name in ties if name != best.name)))
            for tap, change in best.changes.items():
                self.errors[tap] = self.errors[tap] - change
            near.remove(best)

    def _storage(self, model: PretrainedModel) -> Storage:
        """Which weights the port seems to have: with those, the local errors are smallest."""
        if torch.finfo(self.dtype).eps <= torch.finfo(torch.float32).eps:
            return "as given"
        sizes: dict[Storage, float] = {}
        for storage in STORAGES:
            expected = predicted(stored_as(model, storage, self.dtype), self.inputs, self.dump)
            sizes[storage] = sum(self._log_error(tap, x) for tap, x in expected.items())
        return min(STORAGES, key=sizes.__getitem__)

    def _log_error(self, tap: str, expected: Tensor) -> float:
        error = (self.own[tap] - expected).square().mean() + NOISELESS * self.steps[tap].square().mean()
        return math.log(float(error))

    def _variance_of_right_runs(self, tap: str) -> Tensor:
        squares = torch.stack([run[tap].square() for run in self.right]).mean(dim=0)
        return self.groups[tap].means(squares) + NOISELESS / 12 * self.steps[tap].square()

    def _made(self, fault: Fault) -> list[_Candidate]:
        """The fault in every layer, and in each layer that the dump shows by itself; nothing if it changes no tap."""
        try:
            with fault.applied(self.exact):
                found = predicted(self.exact, self.inputs, self.dump)
        except ValueError:
            return []  # the model has no such part
        changes: dict[str, Tensor] = {}
        for tap in found.keys() & self.errors.keys():
            change = found[tap] - self.expected[tap]
            if change.isfinite().all() and (change.abs() > INVISIBLE * self.steps[tap]).any():
                changes[tap] = change
        is_quantisation = fault in QUANTISATIONS
        made = [_Candidate(fault.name, is_quantisation, changes)] if changes else []
        if is_quantisation or not fault.tap.startswith("layers.0."):
            return made
        for layer in self._separate_layers():
            inside = {tap: change for tap, change in changes.items() if tap.startswith(f"layers.{layer}.")}
            if inside:
                made.append(_Candidate(fault.in_layer(layer).name, False, inside))
        return made

    def _separate_layers(self) -> list[int]:
        """The layers whose input is in the dump: what was done in the layers before is no part of their errors."""
        count = sum(1 for _ in parts_of(self.exact, EncoderLayer))
        return [i for i in range(count) if count > 1 and (i == 0 or f"layers.{i - 1}.output" in self.dump)]

    def _judged(self, candidate: _Candidate) -> Leaning | None:
        """The size of a candidate, if it is about 1."""
        weights = {tap: self._weight(tap, change) for tap, change in candidate.changes.items()}
        power = sum(float((weights[tap] * change).sum()) for tap, change in candidate.changes.items())
        projected = sum(float((weights[tap] * self.errors[tap]).sum()) for tap in weights)
        if power == 0 or abs(projected / power - 1) > MOST_OFF:
            return None
        sums = [self._sums(tap, weight, candidate.changes[tap]) for tap, weight in weights.items()]
        total = sum(sums[1:], start=sums[0])
        error, freedom = total.error()
        if error == 0:
            return None
        sigmas = _normal_deviate(total.size / error, freedom)
        return Leaning(candidate.name, total.size, error, sigmas, is_quantisation=candidate.is_quantisation)

    def _sums(self, tap: str, weight: Tensor, change: Tensor) -> _Sums:
        p, q = weight * self.errors[tap], weight * change
        right = torch.stack([(weight * run[tap]).sum() for run in self.right])
        return _Sums(float(p.sum()), float(q.sum()), self.groups[tap].sums(p, q), right)

    def _gain(self, candidate: _Candidate) -> float:
        """How much likelier the errors are, as a logarithm, once the change is taken out of them."""
        gain = 0.0
        for tap, change in candidate.changes.items():
            before = self._variance(tap, torch.zeros_like(change))
            gain += float((before / self._variance(tap, change)).log().sum()) / 2
        return gain

    def _weight(self, tap: str, change: Tensor) -> Tensor:
        """Of each value in the projection. Limited: a few values that say all would leave no spread to measure."""
        return change / (self._variance(tap, change) + change.square() / MOST_OF_ONE)

    def _variance(self, tap: str, change: Tensor) -> Tensor:
        """Of the errors, if the change is taken out of them."""
        return self.variances[tap] + self.groups[tap].means((self.errors[tap] - change).square())


def _normal_deviate(t: float, freedom: float) -> float:
    """How many standard deviations of a normal distribution are as unlikely as Student's t (Wallace 1959)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))


def _is_found(leaning: Leaning, tried: int) -> bool:
    tolerance = QUANTISATION_TOLERANCE if leaning.is_quantisation else SIZE_TOLERANCE
    is_whole = abs(leaning.size - 1) <= tolerance + 3 * leaning.error
    return is_whole and tried * math.erfc(leaning.sigmas / math.sqrt(2)) < CHANCE
