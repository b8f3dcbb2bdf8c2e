"""What the adapters share: texts from anywhere through a task, and what is wrong with the others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor

from xlmr_core.tasks import Classify, Embed, Entity, LabelScore, Tag
from xlmr_core.tasks.input_rows import InputRow, answers

TaskClass: TypeAlias = type[Embed] | type[Classify] | type[Tag]
Errors = Literal["fail", "skip"]


def results(
    task: Embed | Classify | Tag, texts: Iterable[tuple[str, Any]], options: Mapping[str, Any], errors: Errors
) -> Iterator[tuple[Any, str | None]]:
    """The result of each text, in order, lazily.

    Args:
        task: The task.
        texts: What an error calls a text, and the text.
        options: Of `stream`.
        errors: "fail" raises at a text that cannot be used, "skip" goes on.

    Yields:
        The result and None; or None and what is wrong with the text.

    Raises:
        ValueError: `errors` is "fail", and a text cannot be used.
    """
    if errors not in ("fail", "skip"):
        raise ValueError(f"errors must be 'fail' or 'skip', not {errors!r}")
    for row, result in answers(partial(task.stream, **options), map(_row, texts)):
        if not isinstance(result, ValueError):
            yield result, None
        elif errors == "fail":
            raise ValueError(f"{row.place}: {result}. errors='skip' keeps such a row with its error, and goes on")
        else:
            yield None, str(result)


def plain(result: Tensor | list[LabelScore] | list[Entity]) -> list[Any]:
    """A vector as a list of numbers, labels and entities as a list of dicts."""
    return result.tolist() if isinstance(result, Tensor) else [asdict(item) for item in result]


def _row(named: tuple[str, Any]) -> InputRow:
    place, text = named
    fault = None if isinstance(text, str) else f"expected a text, got {type(text).__name__}"
    return InputRow(0, place, {"text": text}, fault)
