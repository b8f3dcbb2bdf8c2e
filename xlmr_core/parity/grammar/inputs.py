"""Which other input would tell two faults apart that give the same numbers on this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.faults import PoolingFault
from xlmr_core.parity.grammar.terms import SENTENCE
from xlmr_core.parity.simulate import SimulatedFault, Simulator
from xlmr_core.parity.tap_values import elements
from xlmr_core.parts import run_on_texts

SAME = 1e-9  # relative: far above rounding in float64


def other_inputs(ids: Tensor, mask: Tensor, config: XLMRobertaConfig) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Inputs that show what this one may hide, made of its ids: in words, ids, mask."""
    pad = config.pad_token_id
    rows = [row[real.bool()] for row, real in zip(ids, mask, strict=True) if real.any()]
    if not rows:
        return
    longest = max(rows, key=len)
    limit = config.max_position_embeddings - pad - 1
    inner = longest[1:-1] if len(longest) > 2 else longest
    longer = torch.cat([longest[:1], inner.repeat(3), inner.flip(0), longest[-1:]])[: min(limit, 48)]
    short = torch.cat([longest[: max(1, len(longest) // 2)], longest[-1:]])
    lengths = [short, longer, longest]
    yield ("texts of several lengths, padded on the right", *_padded(lengths, pad, left=False))
    yield ("texts of several lengths, padded on the left", *_padded(lengths, pad, left=True))
    some = [torch.cat([longest[: length - 1], longest[-1:]]) for length in (5, 6, 7, 12, 21) if length <= len(longest)]
    if some:
        yield ("texts of more lengths", *_padded(some, pad, left=False))
    yield ("one longer text", longer[None], torch.ones_like(longer[None]))
    yield ("more texts in the batch", *_padded([*lengths, short.flip(0), longer], pad, left=False))
    if len(longest) > 2:
        one = torch.ones_like(longest)
        one[len(longest) // 2] = 0
        yield ("a text with padding inside", torch.where(one.bool(), longest, pad)[None], one[None])


def _padded(rows: Sequence[Tensor], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad, dtype=rows[0].dtype)
    mask = torch.zeros_like(ids)
    for row, own, real in zip(rows, ids, mask, strict=True):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        own[place], real[place] = row, 1
    return ids, mask


def told_apart_by(
    simulator: Simulator,
    config: XLMRobertaConfig,
    made: tuple[SimulatedFault, ...],
    faults: Sequence[SimulatedFault],
    *,
    same: float = SAME,
) -> tuple[str | None, ...]:
    """For each fault, the first input that shows a difference from the first fault; None if none of them does.

    Args:
        simulator: Makes faults in the model.
        config: Of the model.
        made: The faults that were found before.
        faults: Those to be compared with the first of them.
        same: The largest difference that does not count, relative to the largest value of a tap.

    Returns:
        The inputs in words.
    """
    found: list[str | None] = [None] * len(faults)
    for words, ids, mask in other_inputs(simulator.input_ids, simulator.attention_mask, config):
        if None not in found[1:]:
            break
        first = _outcome(simulator, (*made, faults[0]), ids, mask)
        for index, fault in enumerate(faults):
            if index and found[index] is None:
                other = _outcome(simulator, (*made, fault), ids, mask)
                if first is not None and other is not None and not _same(first, other, mask.bool(), same):
                    found[index] = words
    return tuple(found)


@torch.no_grad()
def _outcome(
    simulator: Simulator, faults: tuple[SimulatedFault, ...], ids: Tensor, mask: Tensor
) -> dict[str, Tensor] | None:
    model = simulator.exact
    pool = next((fault.pool for fault in faults if isinstance(fault, PoolingFault)), simulator.pool)
    try:
        with simulator.made(faults), model.capture("embeddings.output", "layers.*.output") as seen:
            out, hidden = run_on_texts(model, ids, mask)
    except (ValueError, RuntimeError, IndexError):
        return None
    found: dict[str, Tensor] = dict(seen)
    found |= {name: its for name, its in vars(out).items() if isinstance(its, Tensor) and its.is_floating_point()}
    return found | {SENTENCE: pool(hidden, mask)}


def _same(first: dict[str, Tensor], other: dict[str, Tensor], real: Tensor, same: float) -> bool:
    for tap, tensor in first.items():
        if tap not in other or other[tap].shape != tensor.shape:
            return False
        if tensor.shape[: real.dim()] == real.shape:
            a, b = tensor[real], other[tap][real]
        else:
            a, b = (elements(tap, each, real) for each in (tensor, other[tap]))
        if not torch.allclose(a, b, rtol=same, atol=same * float(a.abs().max()), equal_nan=True):
            return False
    return True
