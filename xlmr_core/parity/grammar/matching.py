"""The arrangement that makes one tensor of another, slice by slice: found on half of the values, confirmed on the rest.

A slice of the wanted tensor is looked up among the slices of the source. The answer is a map only where every slice
that counts has its like there, or is zero, and where other slices are far away in the measure of the tolerance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xlmr_core.parity.grammar.gather import AXES, Gather

SAMPLED = 32  # values of a slice in each half
FEWEST = 2  # as many in each half must be there
APART = 50  # tolerances between slices that have nothing to do with each other
MOST_CELLS = 1 << 16  # values that are matched one by one


def arrangements(
    wanted: Tensor, source: Tensor, counts: Tensor, real: Tensor, heads: int, tolerance: float
) -> Iterator[Gather]:
    """How the slices of `source` must be arranged to give `wanted`, the simplest axis first.

    Args:
        wanted: (B, S, H), (B, N, S, S), (B, H) or a weight.
        source: Of the same shape.
        counts: Which values of `wanted` are known.
        real: (B, S), which tokens are real.
        heads: Their number.
        tolerance: How far rounding may move a value.
    """
    for axis in _axes(wanted, real, heads):
        opened = [AXES[axis](x, heads) for x in (wanted, source, counts)]
        new, old, known = (x.movedim(dim, 0).reshape(x.shape[dim], -1) for x, dim in opened)
        if new.shape[1] == 1:
            indices = _values_matched(new[:, 0], old[:, 0], known[:, 0], tolerance)
            found = None if indices is None else Gather(axis, tuple(indices))
            found = found if found is None or found.has_rule or axis == "entry" else None
        else:
            near = near_slices(new, old, known, tolerance)
            if axis == "place":
                found = None if near is None else map_of_places(near, real)
            else:
                indices = None if near is None else _chosen(near)
                found = None if indices is None else Gather(axis, tuple(indices))
        if found is not None and not found.is_trivial:
            yield found
    if wanted.dim() == 3 and real.shape == wanted.shape[:2]:
        yield from _cells_of_texts(wanted, source, counts, tolerance)


def _axes(x: Tensor, real: Tensor, heads: int) -> Sequence[str]:
    if x.dim() == 4:
        return ("head", "row", "query", "key", "text and head")
    tokens = x.dim() == 3 and x.shape[:2] == real.shape
    split = ("head",) if x.shape[-1] % heads == 0 else ()
    if tokens:
        mixed = ("text and head", "token and head") if split else ()
        return (*split, "feature", "place", *mixed)
    if x.dim() == 2 and len(x) == len(real):
        return (*split, "feature", "row")
    return ("output", "input", "weight") if x.dim() == 2 else ("entry",)


def near_slices(wanted: Tensor, source: Tensor, counts: Tensor, tolerance: float) -> Tensor | None:
    """Which slices (n, m) of the source, and zero in the last column, equal each slice of the wanted values.

    A slice of which too little is known may equal any. None where slices are too much alike to say.
    """
    if bool((counts == counts[0]).all()):
        return equal_slices(wanted, source, counts[0], tolerance)
    near = torch.ones(len(wanted), len(source) + 1, dtype=torch.bool)
    near[:, -1] = False
    for columns in counts.unique(dim=0):
        rows = (counts == columns).all(dim=1)
        if int(columns.sum()) < 2 * FEWEST:
            continue
        found = equal_slices(wanted[rows], source, columns, tolerance)
        if found is None:
            return None
        near[rows] = found
    return near


def equal_slices(wanted: Tensor, source: Tensor, counts: Tensor, tolerance: float) -> Tensor | None:
    """Those that are near by one half of the values that count, where they are near by the other half, too."""
    columns = counts.nonzero()[:, 0]
    halves = [_spread(columns[start::2]) for start in (0, 1)]
    if len(halves[1]) < FEWEST:
        return None
    if not _any_near(wanted[:, halves[0]], source[:, halves[0]], tolerance):
        return None
    first, second = (_distances(wanted[:, half], source[:, half]) for half in halves)
    if float(first.median()) < APART * tolerance:
        return None
    near = first <= tolerance
    if bool((near.any(dim=1) & ~(near & (second <= tolerance)).any(dim=1)).any()):
        return None
    return near & (second <= tolerance)


def _any_near(wanted: Tensor, source: Tensor, tolerance: float) -> bool:
    """Whether a few of the slices have their like: most sources have none, which is soon seen."""
    few = wanted[:: max(1, len(wanted) // SAMPLED)]
    return bool((_distances(few, source) <= tolerance).any(dim=1).all())


def _spread(columns: Tensor) -> Tensor:
    """At most `SAMPLED` of them, from all over."""
    step = max(1, len(columns) // SAMPLED)
    return columns[::step][:SAMPLED]


def _distances(wanted: Tensor, source: Tensor) -> Tensor:
    """The largest difference of each slice from each slice of the source, and from zero in the last column."""
    zero = source.new_zeros(1, source.shape[1])
    return torch.cdist(wanted, torch.cat([source, zero]), p=torch.inf)


def _chosen(near: Tensor, size: int = 0) -> list[int] | None:
    """For each slice one that equals it, -1 for zero: of several its own, or the one at the distance of most others.

    Args:
        near: (n, k + 1), which are equal; the last column is zero.
        size: Of the axis, if slices that leave it at the end come in at its beginning.
    """
    if not bool(near.any(dim=1).all()):
        return None
    zero = near.shape[1] - 1
    single = near.sum(dim=1) == 1
    first = near.int().argmax(dim=1).tolist()
    steps = Counter(index - place for place, index in enumerate(first) if single[place] and index < zero)
    usual = steps.most_common(1)[0][0] if steps else 0
    found: list[int] = []
    for place, index in enumerate(first):
        moved = (place + usual) % zero if size else place + usual
        choices = [place, moved, index]
        index = next(choice for choice in choices if 0 <= choice <= zero and bool(near[place, choice]))
        found.append(-1 if index == zero else index)
    return found


# ---- single values ---------------------------------------------------------------------------------------------------


def _values_matched(wanted: Tensor, source: Tensor, counts: Tensor, tolerance: float) -> list[int] | None:
    """For each value the number of the only value of the source that equals it; None if many have several."""
    if len(source) > MOST_CELLS or len(source) < 2 * FEWEST:
        return None
    values, order = source.sort()
    low = torch.searchsorted(values, wanted - tolerance)
    high = torch.searchsorted(values, wanted + tolerance, right=True)
    places = torch.arange(len(wanted))
    own = (wanted - source).abs() <= tolerance
    single = high - low == 1
    if not bool((own | (high > low))[counts].all()) or float((own | single)[counts].double().mean()) < 0.9:
        return None
    found = torch.where(own, places, order[low.clamp(max=len(order) - 1)])
    indices = torch.where(counts, found, places)
    return indices.tolist()


def _cells_of_texts(wanted: Tensor, source: Tensor, counts: Tensor, tolerance: float) -> Iterator[Gather]:
    """The same rule for the values of each text, (S, H): a reshape that exchanges tokens and features."""
    whole = [row for row in range(len(wanted)) if bool(counts[row].all())]
    maps: set[tuple[int, ...]] = set()
    for row in whole:
        new, old, known = (x[row].flatten() for x in (wanted, source, counts))
        maps.add(tuple(_values_matched(new, old, known, tolerance) or ()))
    if len(maps) == 1 and (indices := maps.pop()):
        found = Gather("cell", indices)
        if found.has_rule and not found.is_trivial:
            yield found


# ---- texts and tokens ------------------------------------------------------------------------------------------------


def map_of_places(near: Tensor, real: Tensor) -> Gather | None:
    """The map of the tokens of all texts: as one of tokens, of rows, or of the packed batch, if it is one.

    Args:
        near: (B * S, B * S + 1), which tokens equal each one.
        real: (B, S).
    """
    rows, width = real.shape
    pairs, zero = near[:, :-1].unflatten(0, (rows, width)).unflatten(-1, (rows, width)), near[:, -1].view(rows, width)
    same_row = torch.stack([pairs[row, :, row] for row in range(rows)])  # (B, S, S)
    same_token = torch.stack([pairs[:, token, :, token] for token in range(width)], dim=1)  # (B, S, B)
    for axis, found, over in (("token", same_row, 0), ("row", same_token, 1)):
        every = torch.cat([found, zero[..., None]], dim=-1)
        indices = _chosen((every | ~real[..., None]).all(dim=over), size=1)
        if indices is not None:
            return Gather(axis, tuple(indices))
    places = real.flatten().nonzero()[:, 0]
    of_packed = _chosen(torch.cat([near[places][:, places], near[places][:, -1:]], dim=1), size=1)
    if of_packed is not None and Gather("packed token", tuple(of_packed)).has_rule:
        return Gather("packed token", tuple(of_packed))
    indices = _in_runs(near, width)
    return None if indices is None else Gather("place", tuple(indices), width)


def _in_runs(near: Tensor, width: int) -> list[int] | None:
    """For each token one that equals it: in runs that are as long as they can be, each from one place of one text."""
    indices: list[int] = []
    zero = near.shape[1] - 1
    while len(indices) < zero:
        start = len(indices)
        end = (start // width + 1) * width
        choices = [start, *(index for index in near[start].nonzero()[:, 0].tolist() if index != start)]
        best: list[int] = []
        for first in choices:
            run: list[int] = []
            for place in range(start, end):
                index = zero if first == zero else first + place - start
                if not bool(near[place, index]) or (first < zero and index >= (first // width + 1) * width):
                    break
                run.append(-1 if index == zero else index)
            best = max(best, run, key=len)
        if not best:
            return None
        indices += best
    return indices
