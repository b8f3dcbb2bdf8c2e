"""Masks and additions to scores that were read off a dump, evaluated and in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.tokens import in_rows

SHOWN = 8  # numbers that the words list
Table = tuple[tuple[bool, ...], ...]


def groups(rule: str, real: Tensor) -> Tensor:
    """The number of the kind that each score is of, (B or 1, 1, S or 1, S).

    Args:
        rule: "key", "distance" or "key of each text".
        real: (B, S).
    """
    places = torch.arange(real.shape[1], device=real.device)
    if rule == "key":
        return places[None, None, None]
    if rule == "distance":
        return (places[None] - places[:, None] + real.shape[1] - 1)[None, None]
    return (torch.arange(len(real), device=real.device)[:, None] * real.shape[1] + places)[:, None, None]


# ---- masks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden:
    """Keys that are hidden.

    Attributes:
        rule: "key", "distance", "query and key", "key of each text" or "text, query and key".
        heads: For each head, or for all, what is hidden: one of each kind, or of each (text, query, key).
        shape: Of the batch, (B, S).
        padding: Whether padding is hidden beside.
        right: Which tokens are padding, text by text; for the words.
    """

    rule: str
    heads: tuple[tuple[bool, ...], ...]
    shape: tuple[int, int]
    padding: bool
    right: tuple[bool, ...]

    @classmethod
    def of(cls, seen: Tensor, real: Tensor) -> Hidden:
        """The simplest rule of what each query of the heads sees, (B, N, S, S)."""
        shape = (real.shape[0], real.shape[1])
        queries = real[:, None, :, None].expand_as(seen)
        hides_padding = not bool((seen & ~real[:, None, None, :]).any())
        counts = queries & real[:, None, None, :] if hides_padding else queries
        one = bool((seen == seen[:, :1])[counts].all())
        parts = [seen[:, :1]] if one else list(seen.split(1, dim=1))
        for rule in ("key", "distance", "key of each text", "query and key", "text, query and key"):
            tables = [_table(rule, ~part, counts[:, :1], real) for part in parts]
            kept = [table for table in tables if table is not None]
            if len(kept) == len(tables):
                return cls(rule, tuple(kept), shape, hides_padding, tuple((~real).flatten().tolist()))
        raise AssertionError("every mask is one of text, query and key")

    def of_scores(self, scores: Tensor, real: Tensor, rows: int) -> Tensor:
        """(B, N or 1, S, S): which keys are hidden."""
        hidden = in_rows(real, rows, lambda run: self._of_run(run, scores.shape[1]))
        return hidden | ~real[:, None, None, :] if self.padding else hidden

    def _of_run(self, real: Tensor, heads: int) -> Tensor:
        size = real.shape[1]
        new = torch.zeros(len(real), heads, size, size, dtype=torch.bool, device=real.device)
        width, kinds = self.shape[1], _kinds(self.rule, real)
        if self.rule == "distance" and size != width:
            kinds = (kinds - size + width).clamp(0, len(self.heads[0]) - 1)
        for head in range(heads):
            table = torch.tensor(self.heads[head % len(self.heads)], device=real.device)
            if self.rule in ("distance", "key") or self.shape == tuple(real.shape):
                inside = kinds.clamp(max=len(table) - 1)
                new[:, head] = (table[inside] & (kinds < len(table))).expand(len(real), 1, size, size)[:, 0]
        return new

    def __str__(self) -> str:
        words = [self._in_words(table) for table in self.heads]
        if len(words) > 1:
            words = [f"in head {head}: {each}" for head, each in enumerate(words)]
        if self.rule == "key of each text" and not self.padding:
            return "; ".join(words)
        return "; ".join(words) + (", and padding" if self.padding else "; it does not hide padding")

    def _in_words(self, table: tuple[bool, ...]) -> str:
        places = [place for place, hidden in enumerate(table) if hidden]
        if self.rule == "key of each text" and not self.padding:
            return self._in_place_of_padding(table)
        if not places:
            return "no key"
        if self.rule == "key":
            return f"the keys {ranges(places)} of each text"
        if self.rule == "distance":
            return f"keys {ranges([place - self.shape[1] + 1 for place in places])} tokens after the query"
        rows, size = self.shape
        if self.rule == "query and key":
            return self._by_query(places, "")
        if self.rule == "key of each text":
            by_text = {row: [p % size for p in places if p // size == row] for row in range(rows)}
            between = self._between_ends(by_text)
            if between:
                return between
        else:
            by_text = {row: sorted({p % size for p in places if p // size**2 == row}) for row in range(rows)}
            if sum(bool(keys) for keys in by_text.values()) == 1:
                row = next(row for row, keys in by_text.items() if keys)
                return self._by_query([p % size**2 for p in places if p // size**2 == row], f" of text {row}")
        some = " from some queries" if self.rule == "text, query and key" else ""
        listed = [f"the keys {ranges(keys)} of text {row}{some}" for row, keys in by_text.items() if keys]
        return ", ".join(listed[:SHOWN]) + (f" and of {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")

    def _between_ends(self, by_text: dict[int, list[int]]) -> str | None:
        """The keys that are hidden if they are all but the first few and the last few of each text."""
        size = self.shape[1]
        real = {row: [p for p in range(size) if not self.right[row * size + p]] for row in by_text}
        inside = {row: [real[row].index(key) for key in keys if key in real[row]] for row, keys in by_text.items()}
        row = next((row for row, keys in inside.items() if keys), None)
        if row is None:
            return None
        first, last = inside[row][0], len(real[row]) - 1 - inside[row][-1]
        alike = all(keys == list(range(first, len(real[row]) - last)) for row, keys in inside.items())
        return f"all keys of each text but the first {first} and the last {last}" if alike else None

    def _in_place_of_padding(self, table: tuple[bool, ...]) -> str:
        rows, size = self.shape
        words: list[str] = []
        for row in range(rows):
            hidden, padding = ([p for p in range(size) if of[row * size + p]] for of in (table, self.right))
            if hidden != padding:
                words.append(
                    f"the keys {ranges(hidden) or 'none'} of text {row} in place of {ranges(padding) or 'none'}"
                )
        return ", ".join(words[:SHOWN]) + (f" and those of {len(words) - SHOWN} more" if len(words) > SHOWN else "")

    def _by_query(self, places: list[int], of: str) -> str:
        size = self.shape[1]
        queries: dict[tuple[int, ...], list[int]] = {}  # by the keys that they do not see
        for query in range(size):
            keys = tuple(place % size for place in places if place // size == query)
            if keys:
                queries.setdefault(keys, []).append(query)
        listed = [
            f"the keys {ranges(list(keys))} from {'query' if len(its) == 1 else 'queries'} {ranges(its)}"
            for keys, its in queries.items()
        ]
        more = f" and so on for {sum(map(len, list(queries.values())[4:]))} more queries" if len(listed) > 4 else ""
        return ", ".join(listed[:4]) + more + of


def _kinds(rule: str, real: Tensor) -> Tensor:
    """The number of the kind of each score, (B or 1, 1, S or 1, S)."""
    rows, size = real.shape
    if rule in ("key", "distance", "key of each text"):
        return groups(rule, real)
    pairs = torch.arange(size * size, device=real.device).view(1, 1, size, size)
    if rule == "query and key":
        return pairs
    return torch.arange(rows, device=real.device)[:, None, None, None] * size * size + pairs


def _table(rule: str, hidden: Tensor, counts: Tensor, real: Tensor) -> tuple[bool, ...] | None:
    """What is hidden of each kind, (B, 1, S, S); None if the scores of one kind differ in it."""
    kinds = _kinds(rule, real).expand_as(hidden)
    size = int(kinds.max()) + 1
    some, every = torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    found, of = hidden[counts], kinds[counts]
    some[of[found]] = True
    every[of[~found]] = False
    known = torch.zeros(size, dtype=torch.bool)
    known[of] = True
    return tuple((some & known).tolist()) if bool((some == every)[known].all()) else None


def ranges(places: list[int]) -> str:
    """Numbers, those that follow each other as "3 to 7"."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


# ---- additions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Added:
    """Numbers that are added to scores.

    Attributes:
        rule: "key", "distance" (of the key after the query) or "key of each text".
        heads: For each head, or for all, a number for each kind.
        width: The number of tokens of a row of the batch.
    """

    rule: str
    heads: tuple[tuple[float, ...], ...]
    width: int

    def of(self, scores: Tensor, real: Tensor, rows: int) -> Tensor:
        """The scores with the numbers, of kinds that were not seen with 0."""
        kinds = groups(self.rule, real[:rows]).to(scores.device)
        if self.rule == "distance":
            kinds = kinds - real.shape[1] + self.width
        new = [self._numbers(head, kinds).to(scores) for head in range(scores.shape[1])]
        added = torch.cat([each.expand(each.shape[0], 1, *each.shape[2:]) for each in new], dim=1)
        return scores + (added.repeat(len(scores) // len(added), 1, 1, 1) if len(added) > 1 else added)

    def _numbers(self, head: int, kinds: Tensor) -> Tensor:
        numbers = torch.tensor(self.heads[head % len(self.heads)], dtype=torch.float64, device=kinds.device)
        inside = (kinds >= 0) & (kinds < len(numbers))
        return numbers[kinds.clamp(0, len(numbers) - 1)] * inside

    def __str__(self) -> str:
        by_head = len(self.heads) > 1
        what = f"each {self.rule} and head" if by_head else f"each {self.rule}"
        of = " in head 0:" if by_head else ""
        return f"a number for {what} is added to the scores:{of} {self._in_words(self.heads[0])}"

    def _in_words(self, numbers: tuple[float, ...]) -> str:
        start = 1 - self.width if self.rule == "distance" else 0
        pairs = {place + start: number for place, number in enumerate(numbers) if number}
        shown = sorted(pairs, key=lambda place: (abs(place), -place))[:SHOWN]
        listed = ", ".join(f"{self._kind(place)} -> {pairs[place]:.3g}" for place in shown)
        return listed + (", ..." if len(pairs) > SHOWN else "")

    def _kind(self, place: int) -> str:
        if self.rule == "key of each text":
            return f"key {place % self.width} of text {place // self.width}"
        return str(place)
