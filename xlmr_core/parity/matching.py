"""Which tensor of a dump is which tap, without a map of names: from the numbers, then from shapes, names and order.

A tensor is recognised by its numbers, in whatever order of axes. Where a port is wrong, its numbers are not ours from
some tap on. There the tensors are recognised by what their like in earlier layers are called, and where there is no
earlier layer, by their names and by the order in which the port wrote them. A tap that later taps prove right, but that
no tensor has the numbers of, is not in the dump: a tensor that is merely near to it, such as a product before its
bias, is not taken for it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from xlmr_core.parity.axes import LAYERS, PART, layer_of
from xlmr_core.parity.dump_files import Shape, shapes_in, tensors_in
from xlmr_core.parity.formats import INPUTS
from xlmr_core.parity.likeness import likeness, looks_like_another, next_name, numbers_in, period
from xlmr_core.parity.readings import Kind, Reading, Readings, kinds_of
from xlmr_core.parity.tap_values import in_reading_order
from xlmr_core.parity.trace import Trace

Reader = Callable[[Iterable[str]], Iterator[tuple[str, Tensor]]]  # reads the tensors of these names
How = Literal["by numbers", "by shape and name", "by shape and order"]
# Errors are norms of differences in units of the norm of the tap.
SMALLEST = 1e-6  # below it all are the same: copies of one tensor
CLEAN = 1e-4  # of a right port in float32; in a narrower type, CLEAN_UNITS times its precision
CLEAN_UNITS = 8
FARTHEST = 0.3  # no tensor is recognised by numbers that are farther away
GROWTH = 20.0  # of the error, from a tap to the taps computed from it
LIKE, ALIKE = 0.5, 0.98  # a name this like the tap's, or numbers at this cosine, are enough where the port is wrong
LEAST = 3  # neighbours that show an order
ORDERED = 0.9  # part of the neighbours in reading order that a dump has in the same order, if its order means anything


@dataclass(frozen=True)
class Found:
    """A tensor of the dump, or a part of one, read in one way."""

    name: str
    position: int  # in the dump
    reading: Reading
    part: int
    layer: int  # of the axis of layers
    effort: int  # the number of simpler readings of this tensor

    def of_layer(self, name: str, position: int, steps: int) -> "Found":
        """What is to a later layer what this is to its own."""
        layer = self.layer + steps if LAYERS in self.reading.letters else self.layer
        return Found(name, position, self.reading, self.part, layer, self.effort)


@dataclass(frozen=True)
class Match:
    """What a tap is called in the dump, and how sure that is."""

    tap: str
    found: Found
    how: How
    error: float  # of the sampled numbers, in units of the tap's norm


@dataclass(frozen=True)
class Matching:
    """The taps of a trace that were recognised in a dump, in reading order, and those that were not."""

    matches: tuple[Match, ...]
    absent: tuple[str, ...]  # not in the dump, but proved right by what is computed from them
    unknown: tuple[str, ...]  # not in the dump, or wrong and not recognised


def match_file(trace: Trace, path: Path) -> Matching:
    """Looks for the taps of a trace in a dump.

    Args:
        trace: The trace.
        path: An .npz or .safetensors file. Only tensors of shapes that taps can have are read, one after the other.

    Returns:
        What was recognised.

    Raises:
        TraceError: The file is neither, it is damaged, or it has too many tensors.
    """

    def read(names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        return tensors_in(path, {name: math.prod(shapes[name]) for name in names})

    shapes = shapes_in(path)
    return _Search(trace, shapes).run(read)


def match_tensors(trace: Trace, dump: Mapping[str, Tensor]) -> Matching:
    """The same for tensors in memory. dump: in the order in which the port computed them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in dump.items()}
    return _Search(trace, shapes).run(lambda names: ((name, dump[name]) for name in names))


@dataclass
class _Table:
    """Every reading of every tensor as one kind of tap."""

    kind: Kind
    found: list[Found] = field(default_factory=list[Found])
    errors: list[Tensor] = field(default_factory=list[Tensor])  # (K,) each
    cosines: list[Tensor] = field(default_factory=list[Tensor])
    clean: list[float] = field(default_factory=list[float])  # the error of a right tensor of this precision

    def add(self, name: str, position: int, tensor: Tensor, readings: list[Reading]) -> None:
        """Compares a tensor with every tap, in every reading."""
        entries = [
            (Found(name, position, reading, part, layer, effort), numbers)
            for effort, reading in enumerate(readings)
            for part, layer, numbers in reading.numbers(tensor, self.kind)
        ]
        numbers = torch.stack([numbers for _, numbers in entries])
        errors, cosines = self.kind.errors(numbers)
        self.found += [found for found, _ in entries]
        self.errors += [_rounded(row) for row in errors]
        self.cosines += list(cosines)
        self.clean += [_clean_error(row) for row in numbers]


class _Search:
    """The search for the taps of one trace in one dump."""

    def __init__(self, trace: Trace, shapes: Mapping[str, Shape]) -> None:
        self.shapes = {name: shape for name, shape in shapes.items() if name not in INPUTS and "{" not in name}
        self.names = list(self.shapes)
        self.layers = trace.config.num_hidden_layers
        self.taps = in_reading_order(trace.taps)
        self.order = {tap: _order(tap, self.taps) for tap in self.taps}
        self.readings = Readings(kinds_of(trace))
        self.tables = [_Table(kind) for kind in self.readings.kinds]
        self.table = {tap: table for table in self.tables for tap in table.kind.taps}
        self.placed: dict[str, Match] = {}
        self.clean: set[str] = set()  # recognised by numbers that are ours but for rounding
        self.proved: set[str] = set()  # these, and what they are computed from

    def run(self, read: Reader) -> Matching:
        """Compares all tensors with all taps, then decides."""
        wanted = [name for name in self.names if self.readings.of(self.shapes[name])]
        position = {name: index for index, name in enumerate(self.names)}
        for name, tensor in read(wanted):
            if tensor.is_floating_point():
                for table in self.tables:
                    readings = [reading for kind, reading in self.readings.of(self.shapes[name]) if kind is table.kind]
                    if readings:
                        table.add(name, position[name], tensor, readings)
        self._by_numbers(self._nearest())
        self._names_of_projections()
        self._by_order()
        self._by_layer()
        self._by_name()
        self._by_layer()
        matches = [self.placed[tap] for tap in self.taps if tap in self.placed]
        left = [tap for tap in self.taps if tap not in self.placed]
        absent = tuple(tap for tap in left if tap in self.proved)
        return Matching(tuple(matches), absent, tuple(tap for tap in left if tap not in self.proved))

    # ---- numbers ----

    def _nearest(self) -> dict[str, Match]:
        """For each tap the tensor nearest to it, unless that is nearer to another tap."""
        nearest: dict[str, Match] = {}
        for table in self.tables:
            if not table.found:
                continue
            errors = torch.stack(table.errors)  # (R, K)
            own = errors.amin(1)
            for column, tap in enumerate(table.kind.taps):
                least = float(errors[:, column].min())
                if least >= FARTHEST:
                    continue
                tied: list[int] = (errors[:, column] == least).nonzero()[:, 0].tolist()
                best = min((*_oddity(tap, table.found[row]), row) for row in tied)[-1]
                if own[best] == least:
                    nearest[tap] = Match(tap, table.found[best], "by numbers", least)
        return nearest

    def _by_numbers(self, nearest: Mapping[str, Match]) -> None:
        """Accepts those that what is computed from them does not contradict."""
        for tap, match in nearest.items():
            after = [other for other in nearest if self._feeds(tap, other)]
            near = [other for other in after if self._part(other) <= self._part(tap) + 1] or after
            scores = tap.removesuffix("k") + "scores"
            if tap.endswith("attention.k") and scores in nearest:
                near = [scores]  # what adds a number to a whole row of scores changes nothing after them
            limit = GROWTH * min((nearest[other].error for other in near), default=FARTHEST)
            if match.error <= max(limit, 10 * SMALLEST):
                self.placed[tap] = match
                table = self.table[tap]
                row = table.found.index(match.found)
                if match.error <= table.clean[row]:
                    self.clean.add(tap)
        self.proved = {tap for tap in self.taps if any(self._feeds(tap, other) for other in self.clean)} | self.clean

    def _feeds(self, tap: str, other: str) -> bool:
        """Whether the second is computed from the first."""
        if self._part(tap) != self._part(other):
            return self._part(tap) < self._part(other)
        beside = tap.endswith("attention.v") and other.endswith(("attention.scores", "attention.probs"))
        return self.order[tap] < self.order[other] and not beside

    def _names_of_projections(self) -> None:
        """Believes a port that names queries, keys and values: where it exchanged their weights, numbers mislead."""
        for i in range(self.layers):
            its = {f"attention.{letter}": self.placed.get(f"layers.{i}.attention.{letter}") for letter in "qkv"}
            meant = {name: looks_like_another(name, match.found.name) for name, match in its.items() if match}
            if {*meant.values()} - {None} and sorted(new or old for old, new in meant.items()) == sorted(meant):
                found = {f"layers.{i}.{new or old}": its[old] for old, new in meant.items()}
                for tap, match in found.items():
                    if match is not None and match.tap != tap:
                        error = self._error(tap, match.found)
                        self.placed[tap] = Match(tap, match.found, "by shape and name", error)

    # ---- order ----

    def _by_order(self) -> None:
        """After the last right tap, gives the tensors to the taps in their order, if there is just one for each."""
        taps = [tap for tap in self.taps if tap not in self.proved]
        start = min((self.order[tap] for tap in taps), default=0)
        last = [self.placed[tap].found.position for tap in self.clean if self.order[tap] < start]
        used = {self.placed[tap].found.name for tap in self.clean}
        names = [name for name in self.names[max(last, default=-1) + 1 :] if name not in used]
        names = [name for name in names if self.readings.of(self.shapes[name])]
        if len(taps) != len(names) or not self._in_order(self.clean, least=0):
            return
        pairs = [(tap, self._simplest(tap, name)) for tap, name in zip(taps, names, strict=True)]
        for tap, found in pairs:
            if any(found is None for _, found in pairs):
                return
            match = self.placed.get(tap)
            if found is not None and (match is None or match.found.name != found.name):
                self.placed[tap] = Match(tap, found, "by shape and order", self._error(tap, found))

    def _simplest(self, tap: str, name: str) -> Found | None:
        """The tensor in the simplest reading as the tap."""
        return next((found for found in self.table[tap].found if found.name == name), None)

    # ---- the layers before ----

    def _by_layer(self) -> None:
        """Gives each tap of a layer the tensor that is called, or lies, as that of the layers before."""
        for tap in self.taps:
            if not tap.startswith("layers.") or (layer := layer_of(tap)) == 0:
                continue
            before = {i: self.placed.get(_in_layer(tap, i)) for i in range(layer)}
            known = {i: match.found for i, match in before.items() if match is not None}
            match = self.placed.get(tap)
            if tap in self.proved:
                continue
            if not known:
                if self._settled(layer - 1):
                    self.placed.pop(tap, None)  # no layer before it shows this tap, so neither does this one
                continue
            found, how = self._like_before(tap, known)
            if found is not None and (match is None or found.name != match.found.name):
                self.placed[tap] = Match(tap, found, how, self._error(tap, found))

    def _like_before(self, tap: str, known: Mapping[int, Found]) -> tuple[Found | None, How]:
        layer = layer_of(tap)
        last = max(known)
        names = {i: found.name for i, found in known.items()}
        name = next_name(names, layer, lambda name: self.shapes.get(name) == self.shapes[names[last]])
        if name is not None:
            return known[last].of_layer(name, self.names.index(name), layer - last), "by shape and name"
        step = self._period(last)
        position = known[last].position + step * (layer - last)
        if step and position < len(self.names) and self.shapes[self.names[position]] == self.shapes[names[last]]:
            return known[last].of_layer(self.names[position], position, layer - last), "by shape and order"
        return None, "by shape and name"

    def _period(self, layer: int) -> int:
        """How many tensors a layer has, where the dump has those of one after those of another; 0 if it has not."""
        its = [match.found.position for tap, match in self.placed.items() if tap.startswith(f"layers.{layer}.")]
        left = self.layers - layer
        if len(its) < LEAST or left < 2 or not self._in_order(self.placed):
            return 0
        return period([self.shapes[name] for name in self.names], min(its), max(its) + 1, left)

    # ---- names and order ----

    def _by_name(self) -> None:
        """Places what is left and may be wrong, in the first layer that is, and outside of the layers."""
        unknown = [tap for tap in self.taps if tap not in self.placed and tap not in self.proved]
        first = min((layer_of(tap) for tap in unknown if tap.startswith("layers.")), default=0)
        left = [tap for tap in unknown if not tap.startswith("layers.") or layer_of(tap) == first]
        used = {(match.found.name, match.found.part, match.found.layer) for match in self.placed.values()}
        ordered = self._in_order(self.placed)
        choices: list[tuple[float, str, Found, How]] = []
        for tap in left:
            if first and tap.startswith("layers.") and self._settled(first - 1):
                continue  # the layer before shows all that this port shows, and `_by_layer` has looked for it
            low, high = self._bounds(tap) if ordered else (-1, len(self.names))
            table = self.table[tap]
            column = table.kind.taps.index(tap)
            fitting: list[tuple[float, float, Found]] = []
            for row, found in enumerate(table.found):
                taken = (found.name, found.part, found.layer) in used
                if found.effort == 0 and low < found.position < high and not taken:
                    fitting.append((likeness(tap, found.name), float(table.cosines[row][column]), found))
            if tap.startswith("layers."):
                of_layer = [choice for choice in fitting if first in numbers_in(choice[2].name)]
                fitting = of_layer or fitting
            for like, cosine, found in fitting:
                if like >= LIKE or cosine >= ALIKE:
                    choices.append((like + max(cosine, 0.0), tap, found, "by shape and name"))
                elif ordered and high - low < len(self.names) and len(fitting) == 1:
                    choices.append((like, tap, found, "by shape and order"))
        for _, tap, found, how in sorted(choices, key=lambda choice: -choice[0]):
            key = (found.name, found.part, found.layer)
            if tap not in self.placed and key not in used:
                used.add(key)
                self.placed[tap] = Match(tap, found, how, self._error(tap, found))

    def _bounds(self, tap: str) -> tuple[int, int]:
        """The positions of the nearest taps before and after it that were recognised."""
        here = self.order[tap]
        before = [m.found.position for other, m in self.placed.items() if self.order[other] < here]
        after = [m.found.position for other, m in self.placed.items() if self.order[other] > here]
        return max(before, default=-1), min(after, default=len(self.names))

    def _in_order(self, taps: Iterable[str], *, least: int = LEAST) -> bool:
        """Whether the dump has these in the order in which they are computed, as at least some neighbours show."""
        ranked = sorted((self.order[tap], self.placed[tap].found.position) for tap in taps)
        pairs = [(a, b) for a, b in pairwise(ranked) if a[0] < b[0]]
        return len(pairs) >= least and sum(a[1] <= b[1] for a, b in pairs) >= ORDERED * len(pairs)

    # ---- small things ----

    def _error(self, tap: str, found: Found) -> float:
        table = self.table[tap]
        column = table.kind.taps.index(tap)
        same = [row for row, other in enumerate(table.found) if other == found]
        return float(table.errors[same[0]][column]) if same else math.inf

    def _settled(self, layer: int) -> bool:
        """Whether all of a layer is proved right."""
        return all(tap in self.proved for tap in self.taps if tap.startswith(f"layers.{layer}."))

    def _part(self, tap: str) -> int:
        """0 for the embeddings, then the layers, then what is above them."""
        if tap.startswith("layers."):
            return layer_of(tap) + 1
        return 0 if tap.startswith("embeddings.") else self.layers + 1


# What does not feed on one another, by the first of it in reading order.
BESIDE = {
    "attention.k": "attention.q",
    "attention.v": "attention.q",
    "embeddings.token_type": "embeddings.word",
    "embeddings.position": "embeddings.word",
}


def _order(tap: str, taps: Sequence[str]) -> int:
    """The place in reading order; the same for taps that do not feed on one another."""
    first = next((tap.removesuffix(name) + other for name, other in BESIDE.items() if tap.endswith(name)), tap)
    return taps.index(first if first in taps else tap)


def _oddity(tap: str, found: Found) -> tuple[bool, int, float]:
    """What makes a reading unlikely where others fit as well: parts are queries, keys and values; layers are others."""
    is_projection = tap.endswith(("attention.q", "attention.k", "attention.v"))
    letters = found.reading.letters
    before_first = LAYERS in letters and found.layer < layer_of(tap)
    odd = before_first or (PART in letters and not is_projection) or (LAYERS in letters and is_projection)
    return odd, found.effort, -likeness(tap, found.name)


def _in_layer(tap: str, layer: int) -> str:
    return ".".join(["layers", str(layer), *tap.split(".")[2:]])


def _rounded(errors: Tensor) -> Tensor:
    """To three digits, and not below SMALLEST: copies of one tensor are a tie."""
    errors = errors.clamp(min=SMALLEST)
    unit = 10.0 ** (errors.log10().floor() - 2)
    return torch.where(errors.isfinite(), (errors / unit).round() * unit, errors)


def _clean_error(numbers: Tensor) -> float:
    """How far rounding takes a right tensor from the tap, by the narrowest type that holds these numbers."""
    finite = numbers[numbers.isfinite()]
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(finite.to(dtype).double(), finite):
            return CLEAN_UNITS * torch.finfo(dtype).eps
    return CLEAN
