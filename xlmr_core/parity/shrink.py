"""The smallest input on which a port still goes wrong at the same tap, as a trace to attach to a bug report.

Rows are removed first, then tokens, by delta debugging (Zeller and Hildebrandt 2002, "Simplifying and Isolating
Failure-Inducing Input"): halves, then quarters, and so on, as long as the first divergent tap stays the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from xlmr_core.formatting import dtype_name
from xlmr_core.parity.check import check_trace
from xlmr_core.parity.compare import Floors, Row
from xlmr_core.parity.foreign import fitted, narrower_dtype, renamed
from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.name_map import as_names
from xlmr_core.parity.ports import in_our_terms
from xlmr_core.parity.recording import Checkpoint, check_same_weights, record_model
from xlmr_core.parity.tap_values import LOGSUMEXP, TOP, TOP_IDS
from xlmr_core.parity.trace import DTYPES, Trace
from xlmr_core.progress import Tick, no_tick

MOST_RUNS = 200  # of the port
SHOWN_IDS = 40  # in the report

Port = Callable[[Trace], Mapping[str, Tensor]]  # computes its tensors for the inputs of a trace
Item = TypeVar("Item")
Cell = tuple[int, int]  # row and column of the input


@dataclass(frozen=True)
class Shrunk:
    """A smaller trace on which the first divergence is at the same tap. Prints as a report."""

    trace: Trace
    divergence: Row  # on the smaller trace
    before: tuple[int, int]  # rows and real tokens
    runs: int  # of the port; 0 for a dump
    stopped: bool  # whether MOST_RUNS ended the search, so that a smaller one may exist

    def __str__(self) -> str:
        row, (rows, tokens) = self.divergence, self.before
        by = f"by {row.max_abs:.2e}" + ("" if row.allowed is None else f", where rounding explains {row.allowed:.2e}")
        lines = [
            f"{row.tap} is the first tap that differs, {by}",
            f"{len(self.trace.real)} of {rows} rows and {int(self.trace.real.sum())} of {tokens} tokens show it",
        ]
        if not self.runs:
            lines.append("the rows are cut from the dump, which cannot be run again: tokens are not removed")
        elif self.stopped:
            lines.append(f"the search was ended after {self.runs} runs of the port: a smaller input may show it, too")
        else:
            lines.append(f"without any one of these rows or tokens it does not show ({self.runs} runs of the port)")
        ids = self.trace.inputs["input_ids"]
        return "\n".join([*lines, *([f"input_ids {ids.tolist()}"] if ids.numel() <= SHOWN_IDS else [])])


def smallest(items: Sequence[Item], shows: Callable[[list[Item]], bool]) -> list[Item]:
    """The items that are left when no one of them can be removed.

    Args:
        items: All of them, which show what is looked for.
        shows: Whether a part of them shows it, too.

    Returns:
        A part that shows it, and that does not without any one of its items.
    """
    kept, parts = list(items), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        without = (kept[:start] + kept[start + size :] for start in range(0, len(kept), size))
        fewer = next((part for part in without if part and shows(part)), None)
        if fewer is not None:
            kept, parts = fewer, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(kept))
    return kept


# ---- a port that runs ------------------------------------------------------------------------------------------------


def shrink(
    trace: Trace,
    port: Port,
    checkpoint: Checkpoint,
    *,
    floors: Floors | None,
    names: Mapping[str, Any] | None = None,
    most: int = MOST_RUNS,
    tick: Tick = no_tick,
) -> Shrunk:
    """Looks for the smallest part of a trace's input on which a port first goes wrong at the same tap.

    Args:
        trace: On its input, the port goes wrong.
        port: Gives the port's tensors for a trace, of which it reads the inputs.
        checkpoint: What the trace was recorded from: it gives the right numbers for smaller inputs.
        floors: Of the trace. Smaller inputs are judged by them, too. None: only equal values pass.
        names: A map of names. Without one, and without names of ours, tensors are recognised once, on all of the input.
        most: How often the port is run at most.
        tick: Is called with 1 after each run of the port.

    Returns:
        The smaller trace, recorded from the checkpoint, and what it shows.

    Raises:
        TraceError: The port agrees with the trace, the checkpoint is another one, or the port fails on the whole input.
    """
    check_same_weights(trace, checkpoint)
    search = _Search(trace, port, checkpoint, floors, names, most, tick)
    rows = smallest(range(len(trace.real)), lambda rows: search.shows(_cells_of(trace, rows)))
    cells = smallest(_cells_of(trace, rows), search.shows)
    texts = rows if cells == _cells_of(trace, rows) else []
    small = search.traced(cells, texts)
    divergence = search.first(small, port(small))
    if divergence is None:
        raise TraceError("the port gives other numbers each time that it is run on one input: nothing can be shrunk")
    before = len(trace.real), int(trace.real.sum())
    return Shrunk(small, divergence, before, search.runs, search.runs >= most)


class _Search:
    """What the search needs to judge an input."""

    def __init__(
        self,
        trace: Trace,
        port: Port,
        checkpoint: Checkpoint,
        floors: Floors | None,
        names: Mapping[str, Any] | None,
        most: int,
        tick: Tick,
    ) -> None:
        self.trace, self.port, self.checkpoint = trace, port, checkpoint
        self.most, self.tick, self.runs = most, tick, 1
        ours, matching = in_our_terms(trace, port(trace), names)
        tick(1)
        self.names = as_names(matching) if matching else dict(names or {})
        self.floors = with_precision(floors, ours)
        self.divergence = _divergence(trace, ours, self.floors)

    def shows(self, cells: list[Cell]) -> bool:
        """Whether the first divergence on a part of the input is at the same tap."""
        rows = {row for row, _ in cells}
        if self.runs >= self.most or {row for row, column in cells if self.trace.real[row, column]} != rows:
            return False  # a row without a real token has no values to compare
        self.runs += 1
        self.tick(1)
        small = self.traced(cells)
        try:
            found = self.first(small, self.port(small))
        except ValueError:  # a port may refuse a size, and a tap may be missing there
            return False
        return found is not None and found.tap == self.divergence.tap

    def first(self, small: Trace, tensors: Mapping[str, Tensor]) -> Row | None:
        """The first tap at which the port differs on a smaller trace."""
        config, tokens = small.config, tuple(small.real.shape)
        ours = fitted(renamed(tensors, self.names, config, tokens=tokens), small.tensors, config, small.real)
        return check_trace(small, ours, floors=self.floors, partial=True).first_divergence

    def traced(self, cells: list[Cell], texts: Sequence[int] = ()) -> Trace:
        """The trace of a part of the input. texts: the rows that are whole, whose texts are known."""
        trace, source = self.trace, self.trace.provenance
        rows = [[column for row, column in cells if row == wanted] for wanted in sorted({row for row, _ in cells})]
        numbers = sorted({row for row, _ in cells})
        width = max(map(len, rows))
        inputs: dict[str, Tensor] = {}
        for name, filler in (("input_ids", trace.config.pad_token_id), ("attention_mask", 0)):
            inputs[name] = torch.full((len(rows), width), filler)
            for index, (row, columns) in enumerate(zip(numbers, rows, strict=True)):
                inputs[name][index, : len(columns)] = trace.inputs[name][row, columns]
        return record_model(
            self.checkpoint,
            inputs,
            texts=[source.texts[row] for row in texts] if source.texts else (),
            pairs=[source.pairs[row] for row in texts] if source.pairs else (),
            taps=trace.taps,
            top_k=0 if trace.top_ids is None else trace.top_ids.shape[-1],
            dtype=DTYPES[source.dtype],
            weights_sha256=source.weights_sha256,
        )


def _cells_of(trace: Trace, rows: Sequence[int]) -> list[Cell]:
    """All tokens of some rows, those of padding among them."""
    return [(row, column) for row in rows for column in range(trace.real.shape[1])]


# ---- a dump ----------------------------------------------------------------------------------------------------------


def cut(trace: Trace, dump: Mapping[str, Tensor], *, floors: Floors | None) -> Shrunk:
    """Looks for the fewest rows of a trace on which a dump first differs at the same tap.

    Args:
        trace: The trace.
        dump: The port's tensors under our names and in our shapes.
        floors: Of the trace. None: only equal values pass.

    Returns:
        The trace with these rows only, and what it shows.

    Raises:
        TraceError: The dump agrees with the trace.
    """
    floors = with_precision(floors, dump)
    divergence = _divergence(trace, dump, floors)
    whole = len(trace.real)

    def first(rows: list[int]) -> Row | None:
        there = {tap: tensor[rows] for tap, tensor in dump.items() if tensor.dim() and len(tensor) == whole}
        return check_trace(_with_rows(trace, rows), there, floors=floors, partial=True).first_divergence

    def shows(rows: list[int]) -> bool:
        if not trace.real[rows].any():
            return False
        found = first(rows)
        return found is not None and found.tap == divergence.tap

    rows = smallest(range(whole), shows)
    small, found = _with_rows(trace, rows), first(rows)
    return Shrunk(small, found or divergence, (whole, int(trace.real.sum())), 0, False)


def _with_rows(trace: Trace, rows: list[int]) -> Trace:
    """Some rows of a trace, without gradients and losses, which depend on all."""
    source = trace.provenance
    kept = [tap for tap in trace.tensors if tap in (*trace.taps, TOP_IDS, TOP, LOGSUMEXP)]
    provenance = replace(
        source,
        texts=tuple(source.texts[row] for row in rows if source.texts),
        pairs=tuple(source.pairs[row] for row in rows if source.pairs),
        steps=0,
        logits_sha256=None,
    )
    inputs = {name: tensor[rows] for name, tensor in trace.inputs.items()}
    return Trace(inputs, {tap: trace.tensors[tap][rows] for tap in kept}, provenance)


def _divergence(trace: Trace, ours: Mapping[str, Tensor], floors: Floors | None) -> Row:
    divergence = check_trace(trace, ours, floors=floors, partial=True).first_divergence
    if divergence is None:
        raise TraceError("no tap of the port differs from the trace by more than rounding: there is nothing to shrink")
    return divergence


def with_precision(floors: Floors | None, ours: Mapping[str, Tensor]) -> Floors | None:
    """The floors for a port that computed in a narrower type than it stored, if it is seen that it did."""
    narrower = narrower_dtype(ours)
    if floors is None or floors.computed_in or narrower is None:
        return floors
    return replace(floors, computed_in=dtype_name(narrower))
