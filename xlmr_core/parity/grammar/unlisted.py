"""The changes of the grammar that explain a dump from its first wrong tap on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.changes import Grammar
from xlmr_core.parity.grammar.inputs import told_apart_by
from xlmr_core.parity.grammar.orders import orders
from xlmr_core.parity.grammar.rules import filled
from xlmr_core.parity.grammar.scenes import Scenes
from xlmr_core.parity.grammar.scopes import scopes, where
from xlmr_core.parity.grammar.search import Hit, LocalSearch
from xlmr_core.parity.grammar.target import Allowances
from xlmr_core.parity.grammar.terms import in_layer, resolved
from xlmr_core.parity.judge import Judge, Reached, best_of
from xlmr_core.parity.simulate import SimulatedFault
from xlmr_core.pretrained import PretrainedModel

MOST_HITS = 8  # that are made in the model; of more, the least simple are left out


def unlisted(judge: Judge, model: PretrainedModel, seconds: float) -> list[Reached]:
    """The simplest changes that give the first wrong tap and move the first difference furthest down.

    Args:
        judge: The dump, and the model with the faults that were found.
        model: The right model.
        seconds: As for `diagnose`.

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
        yield from here.pairs()

    with torch.no_grad():
        for hits in stages():
            best = _judged(judge, grammar, hits[:MOST_HITS], config, scenes)
            if best:
                return best
    return []


def _judged(judge: Judge, grammar: Grammar, hits: list[Hit], config: XLMRobertaConfig, scenes: Scenes) -> list[Reached]:
    """The hits in the scopes that explain most, the simplest first."""
    layers, pad = config.num_hidden_layers, config.pad_token_id
    found: list[tuple[Hit, Reached]] = []
    for hit in hits:
        changes = [change for change in _changes_of(grammar, hit, layers) if not scenes.contradicted(change)]
        reached = [
            (change, its) for change in changes if (its := judge.reached(fault_of(change, pad), shown=hit.shown))
        ]
        if not reached:
            continue
        change, its = max(reached, key=lambda each: each[1].end)  # of equals the first: scopes begin with the widest
        its = _refined(judge, hit, change, its, layers, pad)
        if its.end == len(judge.order) or judge.order[its.end] not in judge.right:
            found.append((hit, its))  # otherwise it makes a right tap wrong: what follows does not depend on it
    furthest = best_of([reached for _, reached in found])
    best = [(hit, reached) for hit, reached in found if reached in furthest]
    whole = [(hit, reached) for hit, reached in best if hit.edits[-1].part.op != "only"]
    best = whole or best  # a change of a part of the batch is less simple
    taps = {hit.tap for hit, _ in best}
    best = [(hit, reached) for hit, reached in best if _input_of(grammar, hit) not in taps]
    return _different(judge, config, sorted(best, key=lambda each: each[0].cost))


def _changes_of(grammar: Grammar, hit: Hit, layers: int) -> list[Change]:
    """The hit as changes of the whole model, in every scope that gives the terms in which it was seen."""
    found: list[Change] = []
    for terms, words in scopes(grammar, hit.tap, hit.edits, hit.term, layers):
        terms = {tap: filled(each, hit.value) for tap, each in terms.items()}
        if all(terms.get(tap) == each for tap, each in hit.terms.items()):
            found.append(Change(terms, _says(grammar, hit), words, hit.cost))
    return found


def _says(grammar: Grammar, hit: Hit) -> str:
    """In words. Features of what a linear map reads in another order are its weight's columns in another order."""
    edit = hit.edits[-1]
    parent = grammar.terms[hit.tap].at(edit.path[:-1])
    if len(hit.edits) > 1 or parent.op != "linear" or edit.path[-1] != 0 or edit.part.op != "values":
        return hit.says
    in_order = edit.part.value in orders(-1, "features")
    return f"{hit.says}, or the columns of {parent.args[1].value} in that order" if in_order else hit.says


def _input_of(grammar: Grammar, hit: Hit) -> str | None:
    """The tap whose value a hit changes on its way into the next operation, if it does no more."""
    part = grammar.terms[hit.tap].at(hit.edits[-1].path if len(hit.edits) == 1 else ())
    return resolved(part.value) if part.op == "tap" else None


def _different(judge: Judge, config: XLMRobertaConfig, best: list[tuple[Hit, Reached]]) -> list[Reached]:
    """Without those that are the first in other words: no input shows a difference between them.

    The same change of another value is kept, probs for values, and a change of another tap: it is another line of the
    port.
    """
    kept = best[:1]
    for hit, reached in best[1:]:
        if hit.says in [its.says for its, _ in kept]:
            continue  # two places of one step, in the same words
        if hit.tap not in [its.tap for its, _ in kept]:
            kept.append((hit, reached))
            continue
        pairs = ((its.fault, reached.fault) for _, its in kept)
        if _is_the_same_elsewhere(hit, best[0][0]) or all(_apart(judge, config, pair) for pair in pairs):
            kept.append((hit, reached))
    return [reached for _, reached in kept]


def _is_the_same_elsewhere(a: Hit, b: Hit) -> bool:
    """Whether two hits are one edit of two values."""
    one, other = a.edits[-1].part, b.edits[-1].part
    if a.edits[:-1] != b.edits[:-1] or one.op == "only":
        return False
    alike = (one.op, one.value, one.args[1:]) == (other.op, other.value, other.args[1:])
    return alike and one.args[:1] != other.args[:1]


def _apart(judge: Judge, config: XLMRobertaConfig, faults: tuple[SimulatedFault, SimulatedFault]) -> bool:
    return told_apart_by(judge.simulator, config, judge.made, faults)[1] is not None


def _refined(judge: Judge, hit: Hit, change: Change, reached: Reached, layers: int, pad: int) -> Reached:
    """The change in one layer more, or less, as long as that explains more.

    Which layers do not have it is known where it explains all.
    """
    if not hit.tap.startswith("layers.") or not all(tap.startswith("layers.") for tap in change.terms):
        return reached
    here, rest = int(hit.tap.split(".")[1]), hit.tap.split(".", 2)[2]
    while reached.end < len(judge.order):
        following = judge.order[reached.end].split(".")
        if following[0] != "layers" or int(following[1]) == here:
            break
        toggled = f"layers.{following[1]}.{rest}"
        terms = dict(change.terms)
        if toggled in terms:
            del terms[toggled]
        else:
            new = in_layer(change.terms[hit.tap], here, int(following[1]), layers, relative=True)
            if new is None:
                break
            terms[toggled] = new
        tried = replace(change, terms=terms, where=where(terms, rest, layers, others_known=False))
        further = judge.reached(fault_of(tried, pad), shown=hit.shown)
        if further is None or further.end <= reached.end:
            break
        change, reached = tried, further
        if reached.end == len(judge.order):
            return replace(reached, fault=fault_of(replace(change, where=where(terms, rest, layers)), pad))
    return reached
