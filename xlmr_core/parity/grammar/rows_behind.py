"""Which row of a table each token read, where the dump has only what is behind it: the embeddings' sum or output."""

from __future__ import annotations

import torch
from torch import Tensor

from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.rules import norm_input
from xlmr_core.parity.grammar.target import Target
from xlmr_core.parity.grammar.terms import tap
from xlmr_core.parity.local import WITHIN

SUM, OUTPUT = "embeddings.sum", "embeddings.output"
AT_ONCE = 32  # tokens


def rows_behind(target: Target, scene: Recorded, name: str) -> Tensor | None:
    """The rows that give the dump, (T,), if each token has one.

    A row and the rest of the sum lie in the direction that the norm shows: the row of the largest cosine is tried.

    Args:
        target: The wrong tap, the embeddings' sum or output.
        scene: The run.
        name: The tap of the table.
    """
    if target.tap not in (SUM, OUTPUT) or SUM not in scene.values:
        return None
    table = scene.weights[f"{name}_embeddings.weight"].double()
    rest = (scene.values[SUM] - scene.values[name])[scene.real]
    shown = _before_norm(target, scene)
    if shown is None:
        return None
    parts = zip(rest.split(AT_ONCE), shown.split(AT_ONCE), strict=True)
    found = torch.cat([_best(table, *part, centred=target.tap != SUM) for part in parts])
    sums = torch.zeros_like(scene.values[SUM])
    sums[scene.real] = table[found] + rest
    given = target.compared(_behind(scene, target.tap, sums))
    if given is None or float((given - target.values).abs().max()) > WITHIN * target.allowed:
        return None
    return found


def _before_norm(target: Target, scene: Recorded) -> Tensor | None:
    """What the dump shows of the sums, (T, H): of a norm, the direction only."""
    term = scene.terms[target.tap]
    if target.tap == SUM or term == tap(SUM):
        return target.values
    if norm_input(term) != tap(SUM):
        return None
    weight, bias = (scene.evaluate(part).double() for part in (term.args[0].args[1], term.args[1]))
    smallest = float(weight.abs().max()) * 1e-6
    return (target.values - bias) / torch.where(weight.abs() > smallest, weight, torch.inf)


def _best(table: Tensor, rest: Tensor, shown: Tensor, *, centred: bool) -> Tensor:
    """(T,): the row whose sum with the rest is nearest to what is shown, in direction."""
    if centred:
        table, rest, shown = (x - x.mean(dim=-1, keepdim=True) for x in (table, rest, shown))
    towards = shown @ table.T + (shown * rest).sum(dim=-1, keepdim=True)  # (T, V)
    squares = table.square().sum(dim=-1) + 2 * rest @ table.T + rest.square().sum(dim=-1, keepdim=True)
    return (towards / squares.clamp(min=1e-30).sqrt()).argmax(dim=-1)


def _behind(scene: Recorded, name: str, sums: Tensor) -> Tensor:
    """The tap with other sums."""
    if name == SUM:
        return sums
    values = {**scene.values, SUM: sums}
    changed = Recorded(
        scene.terms, values, weights=scene.weights, heads=scene.heads, pad=scene.pad, rows=scene.rows
    )  # fmt: skip
    changed.ids, changed.real = scene.ids, scene.real
    return changed.evaluate(scene.terms[name])
