"""Whether the ids of a server's tokenizer are right, and which fault gives them if not.

Ids are whole numbers, so nothing is up to rounding: a fault is named only if it gives every id of every text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from xlmr_core.served.faults import ID_FAULTS, TEXT_FAULTS, PipelineFault, faults_for
from xlmr_core.served.pipeline import Input, Pipeline, Steps
from xlmr_core.tokenizer import SPECIALS

SHOWN = 4  # ids of an example
UNCUT = 2**30  # tokens: no text is so long


@dataclass(frozen=True)
class IdVerdict:
    """What `judge_ids` found. Prints as a report."""

    texts: int
    wrong: tuple[int, ...]  # the numbers of the texts whose ids are not right
    example: str  # of the first of them
    candidates: tuple[tuple[PipelineFault, ...], ...] = ()  # each gives all ids; the simplest first
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all ids are right."""
        return not self.wrong

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the candidates, the simplest first."""
        return tuple(" + ".join(fault.name for fault in faults) for faults in self.candidates)

    def as_dict(self) -> dict[str, Any]:
        """The same for programs, of what JSON can hold."""
        found = {"ok": self.ok, "texts": self.texts, "wrong": list(self.wrong), "example": self.example}
        return found | {"names": list(self.names), "notes": list(self.notes)}

    def __str__(self) -> str:
        if self.ok:
            lines = [f"ids: right for all {self.texts} texts"]
        else:
            lines = [f"ids: wrong for {len(self.wrong)} of {self.texts} texts: {self.example}"]
            lines += [
                f"{'or ' if index else ''}{name}: {', and '.join(fault.cause for fault in faults)}"
                for index, (name, faults) in enumerate(zip(self.names, self.candidates, strict=True))
            ]
            lines += [] if self.candidates else ["unexplained: no fault gives these ids"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def judge_ids(pipeline: Pipeline, inputs: Sequence[str | Input], ids: Sequence[Sequence[int]]) -> IdVerdict:
    """Whether ids are those of the checkpoint's tokenizer, and if not, which faults give them.

    Args:
        pipeline: Of the checkpoint.
        inputs: Texts, or pairs of texts.
        ids: Of each, special tokens included, without padding.

    Raises:
        ValueError: There are more or fewer rows of ids than texts, or no texts.
    """
    given = [(one,) if isinstance(one, str) else tuple(one) for one in inputs]
    if not given or len(ids) != len(given):
        raise ValueError(f"expected a row of ids for each text: got {len(ids)} rows for {len(given)} texts")
    rows = [list(row) for row in ids]
    bases = _bases(pipeline, given)
    wrong = {base: _wrong(pipeline, given, rows, base) for base in bases}
    base = min(bases, key=lambda steps: len(wrong[steps]))  # the first of equals
    notes: tuple[str, ...] = ()
    if base.specials_in_text != pipeline.right.specials_in_text:
        read = "tokens" if base.specials_in_text else "plain text"
        notes = (f"special tokens in a text (<mask>, </s>) are read as {read}",)
    if not wrong[base]:
        return IdVerdict(len(given), (), "", notes=notes)
    # Texts that are wrong reject most candidates at once.
    order = [*wrong[base], *(number for number in range(len(given)) if number not in set(wrong[base]))]
    explained = [given[number] for number in order], [rows[number] for number in order]
    singles = [(fault,) for fault in _faults(pipeline)]
    found = tuple(_giving(pipeline, *explained, bases, singles))
    if not found:
        found = tuple(_giving(pipeline, *explained, bases, list(combinations((fault for [fault] in singles), 2))))
    first = wrong[base][0]
    example = _example(given[first], pipeline.row(given[first], base), rows[first])
    return IdVerdict(len(given), tuple(wrong[base]), example, found, notes)


def _bases(pipeline: Pipeline, inputs: Sequence[Input]) -> list[Steps]:
    """The right steps: texts cut or whole, and special tokens in a text as the pipeline has it or the other way."""
    right = pipeline.right
    bases = [right, replace(right, max_tokens=UNCUT)]
    if any(name in text for one in inputs for text in one for name in SPECIALS):
        bases += [replace(base, specials_in_text=not right.specials_in_text) for base in bases]
    return bases


def _faults(pipeline: Pipeline) -> list[PipelineFault]:
    """The faults that change ids, the checkpoint's other prompts among them."""
    names = {fault.name for fault in (*TEXT_FAULTS, *ID_FAULTS)}
    return [fault for fault in faults_for(pipeline) if fault.name in names or fault.name.startswith("prompt_")]


def _wrong(pipeline: Pipeline, inputs: Sequence[Input], rows: Sequence[list[int]], steps: Steps) -> list[int]:
    return [
        number for number, (one, row) in enumerate(zip(inputs, rows, strict=True)) if pipeline.row(one, steps) != row
    ]


def _giving(
    pipeline: Pipeline,
    inputs: Sequence[Input],
    rows: Sequence[list[int]],
    bases: Sequence[Steps],
    sets: Sequence[tuple[PipelineFault, ...]],
) -> Iterator[tuple[PipelineFault, ...]]:
    """The sets of faults that give all rows."""
    for faults in sets:
        for base in bases:
            steps = base
            for fault in faults:
                steps = fault.made(steps)
            if all(pipeline.row(one, steps) == row for one, row in zip(inputs, rows, strict=True)):
                yield faults
                break


def _example(one: Input, right: list[int], found: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(right, found, strict=False)) if a != b), min(len(right), len(found)))
    text = " | ".join(one)
    shown = text if len(text) <= 60 else text[:57] + "..."
    expected, got = right[place:][:SHOWN], found[place:][:SHOWN]
    return f"{shown!r} differs from id {place} on: expected {expected}, got {got}"
