"""Where in a tensor a change was made: for some rows of the batch, tokens, heads or features only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.tokens import ends, in_rows, inner

SHOWN = 8  # indices that the words list


@dataclass(frozen=True)
class Region:
    """Some indices of one axis.

    Attributes:
        axis: "row", "token", "head" or "feature"; "text" for tokens by their part in a text, "packed token" for
            tokens by their number in a packed batch.
        which: "only", "but", "from" or "up to" `number`, or "some"; of "text", the name of the part.
        number: An index.
        numbers: The indices of "some".
    """

    axis: str
    which: str
    number: int = 0
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.axis == "text":
            return f"at {self.which} only"
        if self.which == "some":
            of = "token" if self.axis == "packed token" else self.axis
            listed = ", ".join(map(str, self.numbers[:SHOWN])) + (", ..." if len(self.numbers) > SHOWN else "")
            where = " of the packed batch" if self.axis == "packed token" else ""
            return f"for {len(self.numbers)} {of}s only: {listed}{where}"
        if self.axis == "packed token":
            return f"for tokens from token {self.number} of the packed batch on"
        one = f"the first {self.axis}" if self.number == 0 else f"{self.axis} {self.number}"
        return {
            "only": f"for {one} only",
            "but": f"for every {self.axis} but {one}",
            "from": f"for {self.axis}s from {self.axis} {self.number} on",
            "up to": f"for {self.axis}s up to {self.axis} {self.number}",
        }[self.which]

    def of(self, x: Tensor, real: Tensor, rows: int, heads: int) -> Tensor:
        """Which values lie in it, in a shape that broadcasts to that of `x`: (B, S, H), (B, N, S, S) or (B, H)."""
        if self.axis == "text":
            tokens = PARTS[self.which](real)
            return tokens[:, None, :, None] if x.dim() == 4 else tokens[:, :, None]
        if self.axis == "packed token":
            tokens = in_rows(real, rows, lambda run: self._has(_packed(run)))
            return tokens[:, None, :, None] if x.dim() == 4 else tokens[:, :, None]
        dim = _dim(self.axis, x.dim())
        if dim is None:
            raise ValueError(f"a tensor of {x.dim()} axes has no {self.axis}s")
        places = torch.arange(x.shape[dim], device=x.device)
        if self.axis == "row":
            places = places % rows
        elif self.axis == "head" and x.dim() != 4:
            places = places // (x.shape[dim] // heads)
        return self._has(places).reshape([-1 if axis == dim else 1 for axis in range(x.dim())])

    def _has(self, places: Tensor) -> Tensor:
        if self.which == "some":
            return torch.isin(places, torch.tensor(self.numbers, device=places.device))
        return {
            "only": places == self.number,
            "but": places != self.number,
            "from": places >= self.number,
            "up to": places <= self.number,
        }[self.which]


def _packed(real: Tensor) -> Tensor:
    """(B, S): the number of each real token in a packed batch, from 0."""
    return (real.flatten().cumsum(0) - 1).view_as(real)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "the last token of each text": ends,
    "all tokens but the last of each text": lambda real: real & ~ends(real),
    "<s> and </s>": lambda real: real & ~inner(real),
    "all tokens but <s> and </s>": inner,
}


def _dim(axis: str, dims: int) -> int | None:
    """The number of an axis of (B, S, H), (B, N, S, S) or (B, H)."""
    if dims == 4:
        return {"row": 0, "head": 1, "token": 2}.get(axis)
    if dims == 3:
        return {"row": 0, "token": 1, "feature": 2, "head": 2}.get(axis)
    return {"row": 0, "feature": 1, "head": 1}.get(axis)


def regions(x: Tensor, there: Tensor, elsewhere: Tensor, real: Tensor, heads: int) -> Sequence[Region]:
    """The regions that have all values in `there` and none in `elsewhere`; some tokens, if no other has.

    Args:
        x: A tensor of the shape of both.
        there: Where a change was made.
        elsewhere: Where it was not.
        real: (B, S), which tokens count.
        heads: Their number; 0 of a tensor that has none.
    """
    return [*_regions(x, there, elsewhere, real, heads)] or [*_packed_tokens(there, elsewhere, real)]


def _regions(x: Tensor, there: Tensor, elsewhere: Tensor, real: Tensor, heads: int) -> Iterator[Region]:
    for axis in ("row", "token", "head", "feature"):
        dim = _dim(axis, x.dim())
        if dim is None or (axis == "head" and (not heads or x.shape[dim] % heads)):
            continue
        others = [other for other in range(x.dim()) if other != dim]
        inside, outside = there.any(dim=others), elsewhere.any(dim=others)
        if axis == "head" and x.dim() != 4:
            inside, outside = (each.unflatten(0, (heads, -1)).any(dim=1) for each in (inside, outside))
        if not outside.any() or (inside & outside).any():
            continue
        yield from _described(axis, inside.nonzero()[:, 0].tolist(), outside.nonzero()[:, 0].tolist())
    if x.dim() == 2:
        return
    tokens, rest = (_tokens(each) for each in (there, elsewhere))
    for name, part in PARTS.items():
        chosen = part(real)
        if rest.any() and not (tokens & ~chosen).any() and not (rest & chosen).any():
            yield Region("text", name)


def _packed_tokens(there: Tensor, elsewhere: Tensor, real: Tensor) -> Iterator[Region]:
    """The end of a packed batch, or some of its tokens."""
    if there.dim() == 2:
        return
    inside, outside = (_packed(real)[_tokens(each) & real].tolist() for each in (there, elsewhere))
    if inside and outside and min(inside) > max(outside):
        yield Region("packed token", "from", min(inside))
    elif inside and outside and not {*inside} & {*outside}:
        yield Region("packed token", "some", numbers=tuple(inside))


def _tokens(values: Tensor) -> Tensor:
    """(B, S): the tokens that have one of the values, (B, S, H) or (B, N, S, S) by query."""
    return values.any(dim=(1, 3) if values.dim() == 4 else 2)


def _described(axis: str, inside: list[int], outside: list[int]) -> Iterator[Region]:
    if len(inside) == 1:
        yield Region(axis, "only", inside[0])
    elif len(outside) == 1:
        yield Region(axis, "but", outside[0])
    elif min(inside) > max(outside):
        yield Region(axis, "from", min(inside))
    elif max(inside) < min(outside):
        yield Region(axis, "up to", max(inside))
    else:
        yield Region(axis, "some", numbers=tuple(inside))
