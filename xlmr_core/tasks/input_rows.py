"""Rows of input with their places in errors. A row that cannot be used does not lose the others."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple


class InputRow(NamedTuple):
    """One input of a task."""

    number: int  # counted from 1
    place: str  # what an error calls it
    given: Mapping[str, Any]  # its fields by our names
    fault: str | None = None  # what is wrong with it

    @property
    def value(self) -> Any:
        """What the task takes: a text, or a tuple of the fields."""
        values = tuple(self.given.values())
        return values[0] if len(values) == 1 else values


def answers(stream: Callable[..., Iterator[Any]], rows: Iterable[InputRow]) -> Iterator[tuple[InputRow, Any]]:
    """Each row with its result, or with the ValueError that says what is wrong with it, in order.

    Args:
        stream: A task's `stream`, with its options.
        rows: The inputs.
    """
    waiting: deque[InputRow] = deque()  # read, and neither answered nor refused
    errors: deque[ValueError] = deque()
    end = object()

    def sound() -> Iterator[Any]:
        for row in rows:
            waiting.append(row)
            if row.fault is None:
                yield row.value

    def refuse(_: Any, error: ValueError) -> None:
        errors.append(error)

    for result in chain(stream(sound(), on_error=refuse), [end]):
        while waiting and (waiting[0].fault is not None or errors):
            row = waiting.popleft()
            yield row, errors.popleft() if row.fault is None else ValueError(row.fault)
        if result is not end:
            yield waiting.popleft(), result
