"""An index map in words: which entry stands where, by the rule that gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

SHOWN = 8  # indices of a map without a rule
MOST_FACTORS = 3


def rule_of(indices: Sequence[int]) -> str | None:
    """The rule of an index map; None if it has none of those that are known.

    Args:
        indices: For each place the index of what stands there, -1 for zero.
    """
    size = len(indices)
    whole = _whole(indices)
    if whole is not None:
        return whole
    same = 0
    while indices[same] == same:
        same += 1
    end = size
    while indices[end - 1] == end - 1:
        end -= 1
    changed = [place for place in range(size) if indices[place] != place]
    if len(changed) == 2 and indices[changed[0]] == changed[1] and indices[changed[1]] == changed[0]:
        return f"{changed[0]} and {changed[1]} exchanged"
    if all(indices[place] == -1 for place in changed):
        return f"{_listed(changed)} 0"
    if len(changed) == 1:
        return f"{indices[changed[0]]} in place of {changed[0]}"
    for first, last, words in ((same, size, f"from {same} on "), (0, end, f"up to {end - 1} ")):
        part = [index - first for index in indices[first:last]]
        if 2 < len(part) < size and min(part) >= 0 and (inside := _whole(part)) is not None:
            return words + inside
    if same < size:
        steps = {place - index for place, index in enumerate(indices) if place >= same}
        if len(steps) == 1 and size - same > 2:
            return f"from {same} on moved by {steps.pop()}"
    return _in_blocks(indices) or _strided(indices)


def in_words(indices: Sequence[int], nouns: str) -> str:
    """The map in words, with what its entries are called: "features moved by 3"."""
    rule = rule_of(indices)
    if rule is not None:
        return f"{nouns} {rule}"
    first = ", ".join("none" if index < 0 else str(index) for index in indices[:SHOWN])
    if len(indices) <= SHOWN:
        return f"{nouns} {first} stand where 0 to {len(indices) - 1} should"
    return f"{nouns} {first}, ... stand where 0 to {SHOWN - 1}, ... should"


def _whole(indices: Sequence[int]) -> str | None:
    """A rule for all places at once."""
    size = len(indices)
    places = range(size)
    if len(set(indices)) == 1:
        return f"the same for all: {indices[0]}" if indices[0] >= 0 else "0"
    if all(indices[place] == size - 1 - place for place in places):
        return "backwards"
    by = (-indices[0]) % size
    by = by if by <= size // 2 else by - size
    if indices[0] >= 0 and all(indices[place] == (place - by) % size for place in places):
        return f"moved by {by}"
    return _moved_out(indices) or _repeated(indices)


def _moved_out(indices: Sequence[int]) -> str | None:
    """Moved, with zeros or the entry of the end where nothing comes from."""
    size = len(indices)
    for by in {place - index for place, index in enumerate(indices) if index >= 0}:
        moved = [place - by for place in range(size)]
        if by and list(indices) == [index if 0 <= index < size else -1 for index in moved]:
            return f"moved by {by}, the {'first' if by > 0 else 'last'} {abs(by)} 0"
        if by and list(indices) == [min(max(index, 0), size - 1) for index in moved]:
            return f"moved by {by}, the {'first' if by > 0 else 'last'} one repeated"
    return None


def _repeated(indices: Sequence[int]) -> str | None:
    size = len(indices)
    for n in range(2, size):
        if all(index == place % n for place, index in enumerate(indices)):
            return f"0 to {n - 1} again and again"
        if all(index == place // n * n for place, index in enumerate(indices)):
            return f"in groups of {n}, each with its first one"
        if all(index == place // n for place, index in enumerate(indices)):
            return f"{n} times each, from 0 on"
    return None


def _in_blocks(indices: Sequence[int]) -> str | None:
    """The same rule in each block."""
    size = len(indices)
    for block in (n for n in range(2, size // 2 + 1) if size % n == 0):
        parts = [[index - start for index in indices[start : start + block]] for start in range(0, size, block)]
        if all(part == parts[0] for part in parts[1:]) and min(parts[0]) >= 0 and max(parts[0]) < block:
            if parts[0] == [1, 0]:
                return "exchanged in pairs"
            if block > 2 and len(set(parts[0])) > 1:
                inside = rule_of(parts[0])
                root = math.isqrt(block)
                if root * root == block and parts[0] == [place % root * root + place // root for place in range(block)]:
                    inside = "transposed"
                return None if inside is None else f"in blocks of {block}, each {inside}"
        starts = [indices[start] for start in range(0, size, block)]
        whole = all(indices[place] == starts[place // block] + place % block for place in range(size))
        if whole and all(start % block == 0 for start in starts) and block > 1 and size // block > 2:
            inside = rule_of([start // block for start in starts])
            if inside is not None:
                return f"in blocks of {block}, the blocks {inside}"
    return None


def _factors(size: int, count: int) -> Iterator[tuple[int, ...]]:
    """The ways to write a size as a product of numbers larger than 1."""
    if count == 1:
        yield (size,)
        return
    for first in (n for n in range(2, size // 2 + 1) if size % n == 0):
        yield from ((first, *rest) for rest in _factors(size // first, count - 1) if rest[-1] > 1)


def _strided(indices: Sequence[int]) -> str | None:
    """Axes that are exchanged: a reshape without its transpose, or a transpose too many."""
    size = len(indices)
    if sorted(indices) != list(range(size)):
        return None
    for count in range(2, MOST_FACTORS + 1):
        for sizes in _factors(size, count):
            strides = [math.prod(sizes[axis + 1 :]) for axis in range(count)]
            for order in permutations(range(count)):
                turned, by = [sizes[axis] for axis in order], [strides[axis] for axis in order]
                if list(order) != sorted(order) and _counts_so(indices, turned, by):
                    return _stride_in_words(sizes, order, strides)
    return None


def _counts_so(indices: Sequence[int], sizes: Sequence[int], strides: Sequence[int]) -> bool:
    for place, index in enumerate(indices):
        rest, at = place, 0
        for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
            at += rest % size * stride
            rest //= size
        if at != index:
            return False
    return True


def _stride_in_words(sizes: Sequence[int], order: Sequence[int], strides: Sequence[int]) -> str:
    """Of two axes the formula; of more, the shape and the order of its axes."""
    if len(sizes) == 2:
        size, rows = math.prod(sizes), sizes[0]
        return f"strided: i*{strides[0]} mod {size} + i//{rows}"
    return f"strided: a reshape to {tuple(sizes)} and its axes in the order {tuple(order)}"


def _listed(places: Sequence[int]) -> str:
    if len(places) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"{places[0]} to {places[-1]}"
    steps = {b - a for a, b in pairwise(places)}
    if len(places) > 3 and len(steps) == 1:
        return f"{places[0]}, {places[1]}, {places[2]}, ..., {places[-1]}"
    words = ", ".join(map(str, places[:SHOWN]))
    return words if len(places) <= SHOWN else f"{words} and {len(places) - SHOWN} more"
