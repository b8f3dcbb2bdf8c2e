"""A function of one number that a dump shows: on which intervals it is gelu, the number itself or a straight line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.activations import ACTIVATIONS

MOST = 5  # pieces
FEWEST = 12  # values that each must explain
KNOWN = ("gelu", "gelu_pytorch_tanh", "quick gelu", "silu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Piece:
    """The function up to a limit.

    Attributes:
        name: Of an activation; None for a straight line.
        slope: Of the line.
        offset: Of the line.
    """

    name: str | None
    slope: float = 0.0
    offset: float = 0.0

    def of(self, x: Tensor) -> Tensor:
        return self.slope * x + self.offset if self.name is None else ACTIVATIONS[self.name](x)

    def __str__(self) -> str:
        if self.name is not None:
            return self.name
        if not self.slope:
            return f"{self.offset:g}"
        factor = {1.0: "x", -1.0: "-x"}.get(self.slope, f"{self.slope:g} x")
        if not self.offset:
            return factor
        return f"{factor} {'+' if self.offset > 0 else '-'} {abs(self.offset):g}"


@dataclass(frozen=True)
class Pieces:
    """A function that is made of several.

    Attributes:
        pieces: From left to right.
        limits: Between each two.
    """

    pieces: tuple[Piece, ...]
    limits: tuple[float, ...]

    def of(self, x: Tensor) -> Tensor:
        """The function of each value."""
        which = torch.bucketize(x, torch.tensor(self.limits, dtype=torch.float64, device=x.device).to(x))
        found = self.pieces[0].of(x)
        for number, piece in enumerate(self.pieces[1:], start=1):
            found = torch.where(which == number, piece.of(x), found)
        return found

    def __str__(self) -> str:
        if [str(piece) for piece in self.pieces] == ["0", "gelu", "x"] and self.limits[0] == -self.limits[1]:
            return f"gelu, relu beyond {self.limits[0]:g} and {self.limits[1]:g}"
        words: list[str] = []
        for number, piece in enumerate(self.pieces):
            low = f"{self.limits[number - 1]:g}" if number else None
            high = f"{self.limits[number]:g}" if number < len(self.limits) else None
            words.append(f"{piece} {_interval(low, high)}")
        return ", ".join(words)


def _interval(low: str | None, high: str | None) -> str:
    if low is None:
        return f"below {high}"
    return f"above {low}" if high is None else f"from {low} to {high}"


def pieces_of(given: Tensor, values: Tensor, allowed: float) -> Pieces | None:
    """The function that gives all values of what it is given; None if too many pieces would be needed.

    Args:
        given: Any shape.
        values: The same shape.
        allowed: How far rounding may move one of the values.
    """
    x, order = given.flatten().sort()
    y = values.flatten()[order]
    known = [Piece(name) for name in KNOWN]
    pieces: list[Piece] = []
    ends: list[int] = []
    start = 0
    while start < len(x):
        if len(pieces) == MOST:
            return None
        piece, end = _longest(x, y, start, allowed, known)
        if end - start < FEWEST:
            return None
        pieces.append(piece)
        ends.append(end)
        start = end
    if len(pieces) < 2:
        return None
    limits = _limits(x, ends[:-1])
    return None if limits is None else Pieces(tuple(pieces), limits)


def _longest(x: Tensor, y: Tensor, start: int, allowed: float, known: Sequence[Piece]) -> tuple[Piece, int]:
    """The piece that holds for most values from `start` on, and where it ends; of equals the first."""
    x, y = x[start:], y[start:]
    best, most = known[0], -1
    for piece in (Piece(None), Piece(None, 1.0), *known, *_lines(x, y)):
        far = ((piece.of(x) - y).abs() > allowed).nonzero()
        length = int(far[0, 0]) if len(far) else len(x)
        if length > most:
            best, most = piece, length
    return best, start + most


def _lines(x: Tensor, y: Tensor) -> Iterator[Piece]:
    """Constants and lines through values at the start, with short numbers if those give the same."""
    length = FEWEST
    yield Piece(None, 0.0, _short(float(y[: min(length, len(y))].mean())))
    while length <= len(x):
        a, b = x[:length], y[:length]
        centred = a - a.mean()
        spread = float(centred.square().sum())
        if spread > 0:
            slope = float((centred * b).sum()) / spread
            offset = float(b.mean()) - slope * float(a.mean())
            for digits in (3, 6, 17):
                yield Piece(
                    None, float(f"{slope:.{digits}g}"), float(f"{offset:.{digits}g}") if abs(offset) > 1e-6 else 0.0
                )
        length *= 2


def _short(number: float) -> float:
    return float(f"{number:.6g}") if abs(number) > 1e-9 else 0.0


def _limits(x: Tensor, ends: Sequence[int]) -> tuple[float, ...] | None:
    """The shortest numbers between the pieces; of both signs the same, if that fits."""
    gaps = [(float(x[end - 1]), float(x[end])) for end in ends]
    found = [shortest(low, high) for low, high in gaps]
    if len(gaps) == 2:
        low, high = max(-gaps[0][1], gaps[1][0]), min(-gaps[0][0], gaps[1][1])
        if 0 < low <= high:
            same = shortest(low, high)
            found = [-same, same]
    return tuple(found)


def shortest(low: float, high: float) -> float:
    """The roundest number between two: a multiple of the largest of the steps 10, 5, 2.5, 2, 1, 0.5 and so on."""
    middle = (low + high) / 2
    for power in range(4, -10, -1):
        for part in (1.0, 0.5, 0.25, 0.2):
            step = part * 10.0**power
            number = float(f"{round(middle / step) * step:.12g}")
            if low <= number <= high:
                return number
    return middle
