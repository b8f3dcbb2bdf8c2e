"""The changes of the grammar that explain a dump from its first wrong tap on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.changes import Grammar
from xlmr_core.parity.grammar.rules import filled
from xlmr_core.parity.grammar.scenes import Scenes
from xlmr_core.parity.grammar.scopes import scopes, where
from xlmr_core.parity.grammar.search import Hit, LocalSearch
from xlmr_core.parity.grammar.target import Allowances
from xlmr_core.parity.grammar.terms import in_layer
from xlmr_core.parity.grammar.ties import named, says_of, seen_first
from xlmr_core.parity.grammar.traits import rounds
from xlmr_core.parity.judge import Judge, Reached, best_of
from xlmr_core.pretrained import PretrainedModel

CLOSER = 0.7  # how much less of the differences a rounding in other layers leaves
MOST_HITS = 8  # that are made in the model; of more, the least simple are left out


def unlisted(judge: Judge, model: PretrainedModel, seconds: float, *, beyond: int = 0) -> list[Reached]:
    """The simplest changes that give the first wrong tap and move the first difference furthest down.

    Args:
        judge: The dump, and the model with the faults that were found.
        model: The right model.
        seconds: As for `diagnose`.
        beyond: The number, in reading order, of a tap: only single changes that explain it are looked for.

    Returns:
        The changes that explain as much as each other, the simplest first. None if no change gives the first wrong tap.
    """
    wrong, config = judge.wrong, model.config
    scenes = Scenes(judge, model)
    if wrong.tap not in scenes.terms:
        return []
    grammar = Grammar(
        scenes.terms,
        scenes.weights,
        {name: tuple(tensor.shape) for name, tensor in scenes.values.items()},
        config.num_attention_heads,
        config.layer_norm_eps,
        config.pad_token_id,
    )
    seen = judge.order[: judge.start]
    section = wrong.tap.split(".")[:2]
    # A difference may be below the noise where it begins: then it begins above the first wrong tap, in the same layer.
    near = [tap for tap in seen if tap.split(".")[:2] != section]
    quiet = {row.tap: row.allowed or 0.0 for row in judge.run.compared(judge.dump).rows if row.tap in {*seen} - {*near}}
    deadline = time.monotonic() + seconds

    def search(known: list[str], quiet: Allowances) -> LocalSearch:
        return LocalSearch(
            grammar,
            config,
            scenes.of(known),
            judge.dump,
            wrong,
            frozenset(known),
            quiet=quiet,
            deadline=deadline,
            tick=judge.simulator.tick,
        )

    def stages() -> Iterator[list[Hit]]:
        here = search(seen, {})
        yield from here.singles()
        if quiet:
            yield from search(near, quiet).singles()
        if not beyond:
            yield from here.pairs()

    with torch.no_grad():
        for hits in stages():
            best = _judged(judge, grammar, hits[:MOST_HITS], config, scenes)
            if best and best[0].end > beyond:
                return best
    return []


def _judged(judge: Judge, grammar: Grammar, hits: list[Hit], config: XLMRobertaConfig, scenes: Scenes) -> list[Reached]:
    """The hits in the scopes that explain most, the simplest first."""
    layers, pad = config.num_hidden_layers, config.pad_token_id
    found: list[tuple[Hit, Reached]] = []
    for hit in hits:
        changes = [change for change in _changes_of(judge, grammar, hit, layers) if not scenes.contradicted(change)]
        reached = [
            (change, its) for change in changes if (its := judge.reached(fault_of(change, pad), shown=hit.shown))
        ]
        if not reached:
            continue
        change, its = _furthest(reached)
        its = _refined(judge, hit, change, its, layers, pad)
        if its.end == len(judge.order) or judge.order[its.end] not in judge.right:
            found.append((hit, its))  # otherwise it makes a right tap wrong: what follows does not depend on it
    furthest = best_of([reached for _, reached in found])
    best = [(hit, reached) for hit, reached in found if reached in furthest]
    return named(judge, grammar, config, best)


def _furthest(reached: list[tuple[Change, Reached]]) -> tuple[Change, Reached]:
    """Of those that explain as much the first: scopes begin with the widest. Of roundings, the closest."""
    best = max(reached, key=lambda each: each[1].end)
    for change, its in reached:
        if its.end == best[1].end and rounds(change.terms) and _distance(its) < CLOSER * _distance(best[1]):
            best = change, its
    return best


def _distance(reached: Reached) -> float:
    """What is left of the differences, at all taps that were compared."""
    return sum(row.max_abs for row in reached.rows)


def _changes_of(judge: Judge, grammar: Grammar, hit: Hit, layers: int) -> list[Change]:
    """The hit as changes of the whole model, in every scope that gives the terms in which it was seen."""
    found: list[Change] = []
    for terms, words in scopes(grammar, hit.tap, hit.edits, hit.term, layers, in_part=True):
        terms = {tap: filled(each, hit.value) for tap, each in terms.items()}
        if all(terms.get(tap) == each for tap, each in hit.terms.items()):
            tap, says = seen_first(terms, hit.tap, says_of(judge, grammar, hit))
            found.append(Change(terms, says, words, hit.cost, tap))
    return found


def _refined(judge: Judge, hit: Hit, change: Change, reached: Reached, layers: int, pad: int) -> Reached:
    """The change in one layer more, or less, as long as that explains more.

    Which layers do not have it is known where it explains all.
    """
    if not hit.tap.startswith("layers."):
        return reached
    found, here, rest = change, int(hit.tap.split(".")[1]), hit.tap.split(".", 2)[2]
    if not all(tap.startswith("layers.") and tap.split(".", 2)[2] == rest for tap in change.terms):
        return reached
    while reached.end < len(judge.order):
        following = judge.order[reached.end].split(".")
        if following[0] != "layers" or int(following[1]) == here:
            break
        tried = _toggled(change, hit.tap, int(following[1]), layers)
        further = None if tried is None else judge.reached(fault_of(tried, pad), shown=hit.shown)
        if tried is None or further is None or further.end <= reached.end:
            break
        change, reached = tried, further
    if reached.end == len(judge.order):
        if rounds(change.terms):
            change, reached = _closest(judge, hit, change, reached, layers, pad)
        if change is not found:
            known = replace(change, where=where(change.terms, rest, layers))
            return replace(reached, fault=fault_of(known, pad))
    return reached


def _closest(judge: Judge, hit: Hit, change: Change, reached: Reached, layers: int, pad: int) -> tuple[Change, Reached]:
    """The change in later layers, too, where that is closer: one that rounds allows for what another layer rounds."""
    for layer in range(int(hit.tap.split(".")[1]) + 1, layers):
        tried = _toggled(change, hit.tap, layer, layers)
        further = None if tried is None else judge.reached(fault_of(tried, pad), shown=hit.shown)
        if tried is None or further is None or further.end < reached.end:
            continue
        if _distance(further) < CLOSER * _distance(reached):
            change, reached = tried, further
    return change, reached


def _toggled(change: Change, name: str, layer: int, layers: int) -> Change | None:
    """The change of a tap with one layer more, or less. None if it has no term in that layer."""
    here, rest = int(name.split(".")[1]), name.split(".", 2)[2]
    toggled, terms = f"layers.{layer}.{rest}", dict(change.terms)
    if toggled in terms:
        del terms[toggled]
    else:
        new = in_layer(change.terms[name], here, layer, layers, relative=True)
        if new is None:
            return None
        terms[toggled] = new
    return replace(change, terms=terms, where=where(terms, rest, layers, others_known=False))
