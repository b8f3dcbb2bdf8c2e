"""The taps that may have an edit: only one, its like in every layer, or every operation of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from xlmr_core.parity.grammar.changes import Edit, Grammar
from xlmr_core.parity.grammar.terms import Term, in_layer, resolved


def scopes(
    grammar: Grammar, name: str, edits: tuple[Edit, ...], term: Term, layers: int, *, in_part: bool = False
) -> Iterator[tuple[dict[str, Term], str]]:
    """The new terms of the taps that may have an edit, with the words for them.

    Args:
        grammar: What edits there are.
        name: The tap whose term is edited.
        edits: One, or two.
        term: What they make of the term.
        layers: Of the model.
        in_part: Whether what is made of every operation of a kind may also be made from this layer on, or in it only.
    """
    parts = name.split(".")
    whole = any(edit.whole for edit in edits)
    if whole and len(edits) > 1:
        return
    if parts[0] != "layers":
        yield {name: term}, ""
    elif whole:
        pass
    else:
        here = int(parts[1])
        rest = ".".join(parts[2:])
        if len(edits) == 1 and edits[0].path:
            yield from _wherever(grammar, name, edits[0], term, layers)
        for relative in (True, False):
            moved = {f"layers.{j}.{rest}": in_layer(term, here, j, layers, relative=relative) for j in range(layers)}
            terms = {
                tap: each
                for tap, each in moved.items()
                if each and each != grammar.terms[tap] and _possible(grammar, tap, each)
            }
            if len(terms) > 1:
                yield terms, where(terms, rest, layers)
            if not any(leaf.split(".")[:2] != parts[:2] for leaf in (*term.leaves("tap"), *term.leaves("weight"))):
                break
        yield {name: term}, f" (in layer {here} only)"
    for of, kind in edits[0].kinds if len(edits) == 1 else ():
        everywhere: dict[str, Term] = {}
        for tap, own in grammar.terms.items():
            new = own.map(lambda part, kind=kind: kind(part) or part)
            if new != own:
                everywhere[tap] = new
        if everywhere.keys() - {name}:
            yield everywhere, f" ({of})"
            inside = {tap: each for tap, each in everywhere.items() if tap.startswith("layers.")}
            if inside and len(inside) != len(everywhere):
                yield inside, f" ({of} in the layers)"
            if in_part and parts[0] == "layers" and not whole:
                yield from _in_part(inside, int(parts[1]), of)


def _in_part(inside: Mapping[str, Term], here: int, of: str) -> Iterator[tuple[dict[str, Term], str]]:
    """What several taps of a layer have, in some layers only."""
    if len({tap.split(".", 2)[2] for tap in inside}) == 1:
        return
    layer = {tap: int(tap.split(".")[1]) for tap in inside}
    yield {tap: term for tap, term in inside.items() if layer[tap] >= here}, f" ({of}, from layer {here} on)"
    yield {tap: term for tap, term in inside.items() if layer[tap] == here}, f" ({of}, in layer {here} only)"


def _wherever(
    grammar: Grammar, name: str, edit: Edit, term: Term, layers: int
) -> Iterator[tuple[dict[str, Term], str]]:
    """The edit wherever the same value is computed: a pre-norm layer normalises once what q, k and v read."""
    here = int(name.split(".")[1])
    old, new = grammar.terms[name].at(edit.path), term.at(edit.path)
    if not old.args and old.op != "tap":
        return

    def among(there: Sequence[int]) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for layer in there:
            before, after = (in_layer(part, here, layer, layers, relative=True) for part in (old, new))
            for tap, own in grammar.terms.items():
                if tap.startswith(f"layers.{layer}.") and after is not None:
                    changed = own.map(lambda part, a=before, b=after: b if part == a else part)
                    if changed != own and _possible(grammar, tap, changed):
                        terms[tap] = changed
        return terms

    only = among([here])
    if len(only) > 1:
        yield among(range(layers)), " (in every layer)"
        yield only, f" (in layer {here} only)"


def _possible(grammar: Grammar, name: str, term: Term) -> bool:
    """Whether all that the term of a tap reads is there before it."""
    places = grammar.places
    return all(places.get(resolved(leaf), 0) < places[name] for leaf in term.leaves("tap"))


def where(terms: Mapping[str, Term], rest: str, layers: int, *, others_known: bool = True) -> str:
    """The layers of a change in words.

    Args:
        terms: Those that it changes.
        rest: The names of their taps without the layer.
        layers: The number of layers of the model.
        others_known: Whether the other layers are known not to have it.
    """
    inside = {int(tap.split(".")[1]) for tap in terms if tap.endswith(rest)}
    outside = sorted(set(range(layers)) - inside)
    if len(inside) == 1:
        return f" (in layer {min(inside)} only)"
    if not outside or (others_known and len(outside) <= 2):
        return f" (in every layer but {' and '.join(map(str, outside))})" if outside else " (in every layer)"
    return f" (in layers {', '.join(map(str, sorted(inside)))})"
