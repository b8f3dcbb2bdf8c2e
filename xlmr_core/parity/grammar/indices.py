"""The variants of ids and positions: which row of a table each token reads.

A table's rows can be read back from a dump, which says which rows a port read: `Read`. From these whole numbers the
variants with numbers in them are found in closed form.
"""

# pyright: reportUnknownLambdaType=false
# The types of torch's operators are partly unknown.
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.tokens import Kind, by_length, pairs_exchanged, two_exchanged

SEPARATOR = 2  # </s>
MOST_PRODUCTS = 2e10  # of tokens, rows and features, to read back the rows of a table

# ---- positions: of ids and pad, both on their own rows ---------------------------------------------------------------


def _all(ids: Tensor, start: int, step: int = 1) -> Tensor:
    """Padding is counted, too."""
    end = start + step * ids.shape[-1]
    return torch.arange(start, end, step, device=ids.device)[: ids.shape[-1]].expand_as(ids)


def _count(ids: Tensor, pad: int) -> Tensor:
    """The number of each real token in its row, from 0; that of the token before for padding."""
    return ((ids != pad).long().cumsum(-1) - 1).clamp(min=0)


def _usual(ids: Tensor, pad: int, by: int = 0) -> Tensor:
    real = (ids != pad).long()
    return real.cumsum(-1) * real + pad + by * real


def _lowered(ids: Tensor, pad: int, by: int) -> Tensor:
    usual = _usual(ids, pad)
    return torch.where(usual > pad, usual - by, usual)


def _real_or_pad(ids: Tensor, pad: int, positions: Tensor) -> Tensor:
    return torch.where(ids != pad, positions, pad)


def _through(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flatten().cumsum(0).view_as(real) * real + pad


def _backwards(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.flip(-1).cumsum(-1).flip(-1) * real + pad


def _restarted(ids: Tensor, pad: int, *, after: bool) -> Tensor:
    """Counted anew at each </s>, or after it."""
    begins = ids == SEPARATOR
    begins = begins.roll(1, -1) if after else begins
    begins[..., 0] = True
    places = _all(ids, 0)
    return _real_or_pad(ids, pad, places - (places * begins).cummax(-1).values + pad + 1)


def _row_numbers(ids: Tensor) -> Tensor:
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)


def _after_padding(ids: Tensor, pad: int) -> Tensor:
    """Padding is on the left, and counted."""
    counts = (ids != pad).sum(-1, keepdim=True)
    return _real_or_pad(ids, pad, _usual(ids, pad) + counts.max() - counts)


POSITIONS: dict[str | None, Callable[[Tensor, int], Tensor]] = {
    None: _usual,
    "from 0, padding counted": lambda ids, pad: _all(ids, 0),
    "from 1, padding counted": lambda ids, pad: _all(ids, 1),
    "from pad + 1, padding counted": lambda ids, pad: _all(ids, pad + 1),
    "from 1": lambda ids, pad: (ids != pad).long().cumsum(-1) * (ids != pad).long(),
    "from 0": _count,
    "from pad + 2": lambda ids, pad: _usual(ids, pad, 1),
    "from pad + 3": lambda ids, pad: _usual(ids, pad, 2),
    "from pad + 2, padding counted": lambda ids, pad: _all(ids, pad + 2),
    "two too low (rows cut as [:n], not [2:])": lambda ids, pad: _lowered(ids, pad, 2),
    "one too low": lambda ids, pad: _lowered(ids, pad, 1),
    "numbered through the batch": _through,
    "numbered through the batch, padding counted": lambda ids, pad: (
        torch.arange(ids.numel(), device=ids.device).view_as(ids) + pad + 1
    ),
    "backwards": _backwards,
    "backwards, padding counted": lambda ids, pad: _all(ids, pad + 1).flip(-1),
    "all 0": lambda ids, pad: torch.zeros_like(ids),
    "all pad": lambda ids, pad: torch.full_like(ids, pad),
    "all pad + 1": lambda ids, pad: torch.full_like(ids, pad + 1),
    "counted without <s> and </s>, which have that of padding": lambda ids, pad: (
        (ids > SEPARATOR).long().cumsum(-1) * (ids > SEPARATOR).long() + pad
    ),
    "padding not left out of the product": lambda ids, pad: (ids != pad).long().cumsum(-1) + pad,
    "the token's id": lambda ids, pad: ids,
    "counted anew from each </s>": lambda ids, pad: _restarted(ids, pad, after=False),
    "counted anew after each </s>": lambda ids, pad: _restarted(ids, pad, after=True),
    "the number of the row in the batch": lambda ids, pad: _row_numbers(ids),
    "the number of the row in the batch, from pad + 1": lambda ids, pad: _row_numbers(ids) + pad + 1,
    "counted along the batch, not along the tokens": lambda ids, pad: (
        (ids != pad).long().cumsum(0) * (ids != pad).long() + pad
    ),
    "begun later by the padding of the row": _after_padding,
    "those of a row filled up to the longest": lambda ids, pad: _all(ids, pad + 1).flip(0),
    "those of the next row of the batch": lambda ids, pad: _usual(ids.roll(-1, 0), pad),
    "those of the first row of the batch": lambda ids, pad: _usual(ids[:1].expand_as(ids), pad),
    "those of the last row of the batch": lambda ids, pad: _usual(ids[-1:].expand_as(ids), pad),
    "those of the row of the batch before": lambda ids, pad: _usual(ids.roll(1, 0), pad),
}
POSITIONS_BY_NUMBER: dict[str, Callable[..., Tensor]] = {  # of ids, pad and whole numbers
    "clamped at {}": lambda ids, pad, n: _usual(ids, pad).clamp(max=n),
    "taken modulo {}": lambda ids, pad, n: _usual(ids, pad) % max(n, 1),
    "counted anew after every {} tokens": lambda ids, pad, n: _real_or_pad(
        ids, pad, _count(ids, pad) % max(n, 1) + pad + 1
    ),
    "in steps of {} from {}": lambda ids, pad, step, start: _real_or_pad(ids, pad, step * _count(ids, pad) + start),
    "in steps of {} from {}, padding counted": lambda ids, pad, step, start: _all(ids, start, step),
    "the same for {} tokens, from {}": lambda ids, pad, n, start: _real_or_pad(ids, pad, _count(ids, pad) // n + start),
    "counted down from {}": lambda ids, pad, n: _real_or_pad(ids, pad, n - _count(ids, pad)),
    "all {}": lambda ids, pad, n: _real_or_pad(ids, pad, torch.full_like(ids, n)),
    "{} for the tokens whose position is {}": lambda ids, pad, new, old: torch.where(
        _usual(ids, pad) == old, new, _usual(ids, pad)
    ),
    "moved by {:+d} from {} on": lambda ids, pad, by, n: _usual(ids, pad) + by * (_usual(ids, pad) >= n),
    "moved by {:+d} up to {}": lambda ids, pad, by, n: _usual(ids, pad) + by * (_usual(ids, pad) <= n),
    "counted with id {} for padding": lambda ids, pad, other: _usual(ids, other) - other + pad,
    "counted with id {} for padding, from the next": lambda ids, pad, other: _usual(ids, other),
}


# ---- ids: of ids and pad ---------------------------------------------------------------------------------------------


def _in_each_text(ids: Tensor, pad: int) -> Tensor:
    """The real ids backwards, padding where it was."""
    real = (ids != pad).long()
    count = real.sum(-1, keepdim=True)
    places = torch.where(real.bool(), count - real.cumsum(-1), _all(ids, 0))
    return ids.gather(-1, places)


def _rounded(dtype: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    most = torch.finfo(dtype).max
    return lambda ids, pad: ids.clamp(max=int(min(most, 2**31))).to(dtype).long()


IDS: dict[str | None, Callable[[Tensor, int], Tensor]] = {
    None: lambda ids, pad: ids,
    "one too low above 3": lambda ids, pad: torch.where(ids > 3, ids - 1, ids),
    "one too high above 2": lambda ids, pad: torch.where(ids > 2, ids + 1, ids),
    "one too low": lambda ids, pad: (ids - 1).clamp(min=0),
    "one too high": lambda ids, pad: ids + 1,
    "two too low above 3": lambda ids, pad: torch.where(ids > 4, ids - 2, ids),
    "<s> and </s> exchanged": lambda ids, pad: torch.where(ids == 0, 2, torch.where(ids == 2, 0, ids)),
    "of the token before": lambda ids, pad: ids.roll(1, -1),
    "of the token after": lambda ids, pad: ids.roll(-1, -1),
    "backwards": lambda ids, pad: ids.flip(-1),
    "backwards in each text": _in_each_text,
    "of the next row of the batch": lambda ids, pad: ids.roll(-1, 0),
    "of the row of the batch before": lambda ids, pad: ids.roll(1, 0),
    "of the rows of the batch in reverse order": lambda ids, pad: ids.flip(0),
    "of the rows of the batch, the first two exchanged": lambda ids, pad: two_exchanged(ids, 0, 1),
    "of the rows of the batch, the last two exchanged": lambda ids, pad: two_exchanged(ids, -1, -2),
    "of the rows of the batch, each two exchanged": lambda ids, pad: pairs_exchanged(ids),
    "of the rows of the batch sorted by length, the longest first": lambda ids, pad: by_length(
        ids, ids != pad, len(ids), longest_first=True
    ),
    "of the rows of the batch sorted by length, the shortest first": lambda ids, pad: by_length(
        ids, ids != pad, len(ids), longest_first=False
    ),
    "rounded to float16": _rounded(torch.float16),
    "rounded to bfloat16": _rounded(torch.bfloat16),
    "read in the wrong order of batch and tokens": lambda ids, pad: ids.T.reshape(ids.shape),
}
IDS_BY_NUMBER: dict[str, Callable[..., Tensor]] = {  # of ids, pad and whole numbers
    "moved by {:+d} from {} on ({} is right)": lambda ids, pad, by, n, right: torch.where(ids >= n, ids + by, ids),
    "moved by {:+d} up to {} ({} is right)": lambda ids, pad, by, n, right: torch.where(ids <= n, ids + by, ids),
    "clamped at {}": lambda ids, pad, n: ids.clamp(max=n),
    "taken modulo {}": lambda ids, pad, n: ids % max(n, 1),
    "{} from {} on ({} is right)": lambda ids, pad, new, n, right: torch.where(ids >= n, new, ids),
    "{} for the tokens of id {}": lambda ids, pad, new, old: torch.where(ids == old, new, ids),
    "from {} to below {}, the first of these for others": lambda ids, pad, start, end: torch.where(
        (ids >= start) & (ids < end), ids, start
    ),
    "from {} to below {}, the nearest of these for others": lambda ids, pad, start, end: ids.clamp(start, end - 1),
    "with {} and {} exchanged": lambda ids, pad, a, b: torch.where(ids == a, b, torch.where(ids == b, a, ids)),
}


def indices(op: str, kind: Kind, ids: Tensor, pad: int) -> Tensor:
    """The rows that a variant of "ids" or "positions" reads."""
    plain, numbered = (IDS, IDS_BY_NUMBER) if op == "ids" else (POSITIONS, POSITIONS_BY_NUMBER)
    if isinstance(kind, tuple):
        name, *numbers = kind
        return numbered[name](ids, pad, *numbers)
    return plain[kind](ids, pad)


# ---- positions that are not learned ----------------------------------------------------------------------------------

SINUSOIDS = (  # Vaswani et al. 2017; the last as in tensor2tensor and fairseq
    "sines before cosines",
    "sines and cosines in turn",
    "sines before cosines, the last of the lowest frequency",
)


def sinusoids(kind: str, places: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(B, S, H): sines and cosines of places (B, S), whose angles are computed in `dtype`."""
    half = size // 2
    last = half - 1 if kind == SINUSOIDS[2] else half
    powers = -torch.arange(half, device=places.device, dtype=dtype) / max(last, 1)
    angles = places[..., None].to(dtype) * 10000.0**powers
    if kind == SINUSOIDS[1]:
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


# ---- what a dump says of the rows that were read ---------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """The rows that real tokens should read, and those that a port read.

    Attributes:
        right: (T,).
        found: (T,); None where they are not known.
        moved: (T,), where the two differ.
    """

    right: Tensor
    found: Tensor | None
    moved: Tensor


def rows_of(table: Tensor, values: Tensor, near: float) -> Tensor | None:
    """(T,): the row of a table (V, H) that each of the values (T, H) is, to `near`; None if one is none of them."""
    if table.numel() * len(values) > MOST_PRODUCTS:
        return None
    kinds, of = torch.unique(values.float(), dim=0, return_inverse=True)
    nearest = torch.cdist(kinds, table.float()).argmin(-1)
    away = (table[nearest] - kinds.to(table)).abs().max() if len(kinds) else torch.tensor(0.0)
    return nearest[of] if float(away) <= near else None


def numbered(op: str, read: Read | None, pad: int, size: int) -> Iterator[Kind]:
    """The variants with numbers that what was read allows.

    Args:
        op: "ids" or "positions".
        read: What was read; None where nothing is known of it.
        pad: The id of padding.
        size: The length of the batch.
    """
    yield from _numbered_ids(read) if op == "ids" else _numbered_positions(read, pad, size)


def _numbered_ids(read: Read | None) -> Iterator[Kind]:
    if read is None or read.found is None or not read.moved.any():
        return
    right, found = read.right[read.moved], read.found[read.moved]
    lowest, highest = int(right.min()), int(right.max())
    shifts, rows = (found - right).unique().tolist(), found.unique().tolist()
    divisor = math.gcd(*(right - found).tolist())
    same = read.right[~read.moved].tolist()
    below = max((token for token in same if token < lowest), default=0)
    if len(shifts) == 1:
        yield ("moved by {:+d} from {} on ({} is right)", int(shifts[0]), lowest, below)
        above = min((token for token in same if token > highest), default=highest + 1)
        yield ("moved by {:+d} up to {} ({} is right)", int(shifts[0]), highest, above)
    if len(rows) == 1:
        yield ("clamped at {}", int(rows[0]))
        yield ("{} from {} on ({} is right)", int(rows[0]), lowest, below)
        if lowest == highest:
            yield ("{} for the tokens of id {}", int(rows[0]), lowest)
    if divisor > 1:
        yield ("taken modulo {}", divisor)
    if len(rows) == 2 and set(rows) == {lowest, highest}:
        yield ("with {} and {} exchanged", lowest, highest)


def _numbered_positions(read: Read | None, pad: int, size: int) -> Iterator[Kind]:
    for step in (1, 2, 3, 4, 8):
        for start in range(6):
            for of in ("", ", padding counted"):
                yield (f"in steps of {{}} from {{}}{of}", step, start)
            if step > 1:
                yield ("the same for {} tokens, from {}", step, start)
    for other in (0, 2, 3):
        yield ("counted with id {} for padding", other)
        yield ("counted with id {} for padding, from the next", other)
    if read is None or not read.moved.any():
        return
    right = read.right[read.moved]
    first, last = int(right.min()), int(right.max())
    yield ("clamped at {}", first - 1)
    yield ("taken modulo {}", first)
    yield ("counted anew after every {} tokens", first - pad - 1)
    if read.found is None:
        return
    found = read.found[read.moved]
    shifts, rows = (found - right).unique().tolist(), found.unique().tolist()
    if len(rows) == 1:
        yield ("all {}", int(rows[0]))
        yield ("clamped at {}", int(rows[0]))
        if first == last:
            yield ("{} for the tokens whose position is {}", int(rows[0]), first)
    if len(shifts) == 1:
        yield ("moved by {:+d} from {} on", int(shifts[0]), first)
        yield ("moved by {:+d} up to {}", int(shifts[0]), last)
    sums = (found + right).unique().tolist()
    if len(sums) == 1:
        yield ("counted down from {}", int(sums[0]) - pad - 1)
    divisor = math.gcd(*(right - found).tolist())
    if divisor > 1:
        yield ("taken modulo {}", divisor)
        yield ("counted anew after every {} tokens", divisor)
