"""Many inputs through one model: rows are packed to a number of tokens, and results come in the order of the inputs.

A task turns each input into rows of ids: one for a text, several for a long context or a list of candidates. Rows of a
window of inputs are sorted by length and packed into batches without padding, so the rate does not depend on how the
lengths are mixed, and the memory does not grow with the number of inputs. While the model runs on one window, a second
thread tokenizes the next.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

BATCH_TOKENS = 2048  # of a packed batch: enough to keep two cores busy, little enough for their caches
WINDOW_BATCHES = 32  # packed batches in a window: enough rows of every length
WINDOW_INPUTS = 4096  # inputs in a window, however short they are

Input = TypeVar("Input")
Output = TypeVar("Output")
Item = TypeVar("Item")
RowType = TypeVar("RowType", bound="Row")


@dataclass(frozen=True)
class Row:
    """One sequence for the model: `<s> ... </s>`."""

    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Encoded(Generic[Input, RowType]):
    """An input with its rows, or the error that it gave."""

    input: Input
    rows: Sequence[RowType]
    error: ValueError | None = None


OnError = Callable[[Any, ValueError], None]  # called with an input that the model cannot take, and with the error


def packed(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
    """The rows one after the other, as every model takes them: input_ids (T,) and lengths (B,)."""
    ids = torch.tensor([number for row in rows for number in row.ids])
    return {"input_ids": ids.to(device), "lengths": torch.tensor([len(row) for row in rows], device=device)}


def run_in_order(
    inputs: Iterable[Input],
    encode: Callable[[Input], Sequence[RowType]],
    run: Callable[[Sequence[RowType]], Sequence[Output]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_error: OnError | None = None,
) -> Iterator[tuple[Encoded[Input, RowType], Sequence[Output]]]:
    """Runs the model over any number of inputs, lazily.

    Args:
        inputs: Any iterable. At most two windows of it are read ahead.
        encode: The rows of one input. Raises ValueError for one that the model cannot take.
        run: The outputs of the model for some rows, one for each row.
        batch_tokens: The largest number of tokens that are run together. A longer row runs on its own.
        on_error: Called for an input that `encode` refuses, in the order of the inputs; the input then has no result.
            None raises the error.

    Yields:
        Each input with its rows, and the outputs of these rows, in the order of the inputs.

    Raises:
        ValueError: `encode` refused an input; the message begins with the number of the input, counted from 0.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    windows = _windows(inputs, encode, batch_tokens * WINDOW_BATCHES, on_error is not None)
    is_one = isinstance(inputs, Sequence) and len(inputs) == 1  # a second thread would have nothing to do
    for window in windows if is_one else _ahead(windows):
        rows = [row for encoded in window for row in encoded.rows]
        outputs = iter(_run_sorted(rows, run, batch_tokens))
        for encoded in window:
            if encoded.error is None:
                yield encoded, list(islice(outputs, len(encoded.rows)))
            elif on_error is not None:
                on_error(encoded.input, encoded.error)


def _windows(
    inputs: Iterable[Input], encode: Callable[[Input], Sequence[RowType]], window_tokens: int, keep_errors: bool
) -> Iterator[list[Encoded[Input, RowType]]]:
    window: list[Encoded[Input, RowType]] = []
    tokens = 0
    for index, one in enumerate(inputs):
        try:
            encoded: Encoded[Input, RowType] = Encoded(one, encode(one))
        except ValueError as error:
            if not keep_errors:
                raise ValueError(f"input {index}: {error}") from error
            encoded = Encoded(one, (), error)
        window.append(encoded)
        tokens += sum(map(len, encoded.rows))
        if tokens >= window_tokens or len(window) >= WINDOW_INPUTS:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next one is made in a second thread while the caller works on one."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]


def _run_sorted(
    rows: Sequence[RowType], run: Callable[[Sequence[RowType]], Sequence[Output]], batch_tokens: int
) -> list[Output]:
    """The output of each row. Rows of like lengths run together."""
    outputs: dict[int, Output] = {}
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and tokens + len(rows[index]) > batch_tokens:
            outputs.update(zip(batch, run([rows[i] for i in batch]), strict=True))
            batch, tokens = [], 0
        batch.append(index)
        tokens += len(rows[index])
    if batch:
        outputs.update(zip(batch, run([rows[i] for i in batch]), strict=True))
    return [outputs[index] for index in range(len(rows))]
