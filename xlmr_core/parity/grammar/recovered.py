"""What the parts of a term must have been to give a tensor: its operations undone, from the outermost to the innermost.

A sum is undone by taking the other summands away, a product by a weight by dividing by it, a linear map and an
attention by solving for what they read, where there are more equations than unknowns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_core.parity.grammar.evaluate import Scene
from xlmr_core.parity.grammar.terms import Term

SHARPEST = 0.02  # rounding errors of what an attention has read, as a share of its values, at most
WORST = 1e5  # condition of a matrix, beyond which rounding errors are all that is left
SPARE = 4  # equations more than unknowns


@dataclass(frozen=True)
class Recovered:
    """A part of a term, and the values that it must have had.

    Attributes:
        path: To the part.
        part: The right one.
        values: In the shape of the part.
        counts: Which of them are known.
        grown: How many times as large as in the whole term rounding errors are.
    """

    path: tuple[int, ...]
    part: Term
    values: Tensor
    counts: Tensor
    grown: float = 1.0


def recovered(scene: Scene, term: Term, values: Tensor, counts: Tensor, allowed: float) -> Iterator[Recovered]:
    """Every part that can be recovered, the whole term first.

    Args:
        scene: What the right parts are computed on.
        term: The right one.
        values: Those that the term must have had.
        counts: Which of them are known.
        allowed: How far rounding may move them.
    """
    yield from _inside(scene, allowed, Recovered((), term, values, counts))


def _inside(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    yield whole
    undo = {"add": _summands, "mul": _factor, "linear": _read_by_linear, "hide": _shown, "merge": _merged,
            "split": _split, "mix": _mixed, "dot": _of_scores}.get(whole.part.op)  # fmt: skip
    if undo is not None:
        for part in undo(scene, allowed, whole):
            yield from _inside(scene, allowed, part)


def _arg(whole: Recovered, index: int, values: Tensor, counts: Tensor, grown: float = 1.0) -> Recovered:
    return Recovered((*whole.path, index), whole.part.args[index], values, counts, whole.grown * grown)


def _summands(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    for index in (0, 1):
        own, other = (scene.evaluate(whole.part.args[i]) for i in (index, 1 - index))
        values = whole.values - other
        if own.shape == values.shape:
            yield _arg(whole, index, values, whole.counts)
        elif own.dim() == 1 and own.shape == values.shape[-1:]:
            rows = values[whole.counts.all(dim=-1)]
            if len(rows) >= SPARE:
                mean = rows.mean(dim=0)
                yield _arg(whole, index, mean, torch.ones_like(mean, dtype=torch.bool))


def _factor(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    own, other = (scene.evaluate(arg) for arg in whole.part.args)
    other = other.double()
    if own.shape == whole.values.shape and float(other.abs().min()) > 0:
        grown = 1 / float(other.abs().median())
        if float(other.abs().max() / other.abs().min()) < WORST:
            yield _arg(whole, 0, whole.values / other, whole.counts, grown)
    if other.dim() == 1 and other.shape == own.shape[-1:]:
        known = whole.counts.all(dim=-1)
        x, y = own[known], whole.values[known]
        if len(x) >= SPARE:
            fit = (x * y).sum(dim=0) / x.square().sum(dim=0)
            yield _arg(whole, 1, fit, torch.ones_like(fit, dtype=torch.bool), 1 / float(x.square().mean().sqrt()))


def _read_by_linear(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    x, matrix = (scene.evaluate(arg).double() for arg in whole.part.args)
    known = whole.counts.all(dim=-1)
    wanted = whole.values[known]
    if not len(wanted):
        return
    smallest = _smallest(matrix)
    if smallest and matrix.shape[0] >= matrix.shape[1]:
        values = x.clone()
        values[known] = wanted @ torch.linalg.pinv(matrix).T
        yield _arg(whole, 0, values, known[..., None].expand_as(x), 1 / smallest)
    given = x[known]
    smallest = _smallest(given)
    if smallest and len(given) >= given.shape[1] + SPARE:
        fit = torch.linalg.lstsq(given, wanted).solution.T
        if float((given @ fit.T - wanted).abs().max()) < 1e-3 * float(wanted.abs().max()):
            yield _arg(whole, 1, fit, torch.ones_like(fit, dtype=torch.bool), 1 / smallest)


def _smallest(matrix: Tensor) -> float:
    """The smallest singular value; 0 if the columns of the matrix are too close to dependent."""
    if matrix.dim() != 2 or matrix.shape[0] < matrix.shape[1]:
        return 0.0
    sizes = torch.linalg.svdvals(matrix)
    return float(sizes[-1]) if float(sizes[0]) < WORST * float(sizes[-1]) else 0.0


def _shown(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    yield _arg(whole, 0, whole.values, whole.counts)


def _merged(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    """(B, S, H) -> (B, N, S, D)."""
    if whole.part.value is None:
        values, counts = (x.unflatten(-1, (scene.heads, -1)).transpose(1, 2) for x in (whole.values, whole.counts))
        yield _arg(whole, 0, values, counts)


def _split(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    """(B, N, S, D) -> (B, S, H)."""
    if whole.part.value is None:
        values, counts = (x.transpose(1, 2).flatten(2) for x in (whole.values, whole.counts))
        yield _arg(whole, 0, values, counts)


def _mixed(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    """The values that attention with the right probs has mixed."""
    probs, v = (scene.evaluate(arg) for arg in whole.part.args)
    yield from _solved(scene, allowed, whole, 1, probs, v, whole.values)


def _of_scores(scene: Scene, allowed: float, whole: Recovered) -> Iterator[Recovered]:
    """The queries whose products with the keys are the scores, and the keys."""
    q, k = (scene.evaluate(arg) for arg in whole.part.args)
    yield from _solved(scene, allowed, whole, 0, k, q, whole.values.transpose(-1, -2))
    yield from _solved(scene, allowed, whole, 1, q, k, whole.values)


def _solved(
    scene: Scene, allowed: float, whole: Recovered, index: int, factor: Tensor, own: Tensor, product: Tensor
) -> Iterator[Recovered]:
    """The other factor of products with a right one, over the real tokens of each text that has enough of them."""
    values, counts, worst = own.clone(), torch.zeros_like(own, dtype=torch.bool), 0.0
    mixed = whole.part.op == "mix"
    for row, real in enumerate(scene.real):
        matrices = factor[row][:, real]
        matrices = matrices[:, :, real] if mixed else matrices
        if matrices.shape[1] < matrices.shape[2]:
            continue
        sizes = torch.linalg.svdvals(matrices)[:, -1]
        for head in (sizes * SHARPEST * float(own.std()) > whole.grown * allowed).nonzero()[:, 0].tolist():
            solution = torch.linalg.lstsq(matrices[head], product[row, head][real], driver="gelsd").solution
            values[row, head, real] = solution if mixed else solution[:, real].T
            counts[row, head, real] = True
            worst = max(worst, 1 / float(sizes[head]))
    if worst:
        yield _arg(whole, index, values, counts, worst)
