"""What an edit does to a term: other orders of its operations, rules for its like elsewhere, numbers left open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from xlmr_core.parity.grammar.terms import Term, add, number, weight
from xlmr_core.parity.grammar.words import UNARY, module_of, words_of

Rule = Callable[[Term], Term | None]
Sum = Callable[[Term, Term], Term]


def opened(start: float) -> Term:
    """A number that is to be estimated."""
    return Term("open", value=start)


def open_of(term: Term) -> float | None:
    return next((part.value for _, part in term.walk() if part.op == "open"), None)


def open_in(terms: Mapping[str, Term]) -> float | None:
    """The number that is left open in one of the terms."""
    return next((start for term in terms.values() if (start := open_of(term)) is not None), None)


def filled(term: Term, value: float | None) -> Term:
    return term if value is None else term.map(lambda part: number(value) if part.op == "open" else part)


def rearranged(part: Term) -> Iterator[tuple[Term, float, str]]:
    """Other orders of the operations in a term."""
    inner = norm_input(part)
    if inner is not None:
        yield inner, 1.0, "the norm is missing"
        if inner.op == "add":
            a, b = inner.args
            yield add(a, _with_norm_input(part, b)), 1.1, f"order: the norm is applied to {words_of(b)} only, before " \
                f"{words_of(a)} is added"  # fmt: skip
            yield add(b, _with_norm_input(part, a)), 1.3, f"order: the norm is applied to {words_of(a)} only, before " \
                f"{words_of(b)} is added"  # fmt: skip
            yield add(inner, part), 2.4, "order: the input of the norm is added to its output"
            yield add(a, part), 2.2, f"order: {words_of(a)} is added again after the norm"
            yield add(b, part), 2.3, f"order: {words_of(b)} is added again after the norm"
            for only, other in ((a, b), (b, a)):
                yield _with_norm_input(part, only), 1.4, f"order: {words_of(other)} is not added before the norm"
        else:
            yield add(inner, part), 2.3, "the input of the norm is added to its output"
        yield _with_norm_input(part, part), 1.6, "the norm is applied twice"
        scale_first = Term("mul", (Term("add", (part.args[0].args[0], part.args[1])), part.args[0].args[1]))
        yield scale_first, 2.4, "the bias of the norm is added before its weight multiplies"
    elif part.op in UNARY:
        yield part.args[0], 1.2, f"{UNARY[part.op]} is missing"
        if part.op != "hide":
            yield replace(part, args=(part, *part.args[1:])), 1.8, f"{UNARY[part.op]} is applied twice"
        if part.args[0].op == "add":
            a, b = part.args[0].args
            yield add(replace(part, args=(a, *part.args[1:])), b), 1.9, f"order: {words_of(b)} is added after " \
                f"{UNARY[part.op]}"  # fmt: skip
            yield add(replace(part, args=(b, *part.args[1:])), a), 2.2, f"order: {words_of(a)} is added after " \
                f"{UNARY[part.op]}"  # fmt: skip
    elif part.op == "mul" and part.args[1].op == "number":
        yield part.args[0], 1.0, "the scale is missing"
        twice = Term("mul", (part, part.args[1]))
        yield twice, 1.2, "the scale is applied twice"
    elif part.op == "mul":
        yield part.args[0], 1.2, f"{words_of(part.args[1])} does not multiply"
        centred = Term("mul", (part.args[0], Term("add", (part.args[1], number(-1.0)))))
        yield centred, 2.4, f"1 is subtracted from {words_of(part.args[1])}"
    if part.op == "hide" and part.args[0].op == "mul":
        yield replace(part, args=(part.args[0].args[0],)), 1.0, "the scale is missing"
    if part.op == "softmax" and part.args[0].op == "hide":
        shown = replace(part, args=(part.args[0].args[0],))
        yield Term("values", (shown,), "0 for padded keys"), 1.8, "order: the mask is applied after the softmax"
    if part.op == "softmax":
        yield Term("values", (part,), "0 for padded keys"), 1.9, "the probs of padding are set to 0 after the softmax"
    if part.op == "dot":
        yield replace(part, args=part.args[::-1]), 1.4, "queries and keys are exchanged in their product"


def norm_input(part: Term) -> Term | None:
    """What a norm with weight and bias reads, if the part is one."""
    if part.op == "add" and part.args[0].op == "mul" and part.args[0].args[0].op == "standard":
        return part.args[0].args[0].args[0]
    return None


def _with_norm_input(part: Term, new: Term) -> Term:
    return part.with_part((0, 0, 0), new)


def bare_norm(part: Term) -> Term | None:
    return part.args[0] if part.op == "standard" else None


def exchanged_norm(part: Term) -> Term | None:
    """The weight and the bias of a norm exchanged."""
    if norm_input(part) is None:
        return None
    product, bias = part.args
    return add(Term("mul", (product.args[0], bias)), product.args[1])


def raised_norm(part: Term) -> Term | None:
    """1 is added to the weight of a norm, as Gemma's are kept."""
    if part.op != "mul" or part.args[1].op != "weight" or not part.args[1].value.endswith("norm.weight"):
        return None
    return replace(part, args=(part.args[0], add(part.args[1], number(1.0))))


def bare_of(leaf: Term) -> tuple[tuple[str, Rule], ...]:
    """No module of this kind has its bias: of linear maps, or of norms."""
    if leaf.op != "weight" or not leaf.value.endswith(".bias"):
        return ()
    of_norm = leaf.value.endswith("norm.bias")

    def rule(part: Term) -> Term | None:
        if part.op != "add" or part.args[1].op != "weight" or not part.args[1].value.endswith(".bias"):
            return None
        return part.args[0] if part.args[1].value.endswith("norm.bias") == of_norm else None

    return (("of every norm" if of_norm else "of every linear map", rule),)


def of_every_residual(like: Term, sum_of: Sum) -> tuple[tuple[str, Rule], ...]:
    """The same of the two sums of every layer."""

    def rule(part: Term) -> Term | None:
        return sum_of(*part.args) if _is_residual(part) else None

    return (("of both sums of every layer", rule),) if rule(like) is not None else ()


def of_every_like(like: Term, kind: str) -> tuple[tuple[str, Rule], ...]:
    """The same rounding of both sums of every layer, of what every norm gives, or of what every linear map gives."""

    def among(is_like: Callable[[Term], bool]) -> Rule:
        return lambda part: Term("values", (part,), kind) if is_like(part) else None

    for words, is_like in (
        ("of both sums of every layer", _is_residual),
        ("of what every norm gives", _is_norm),
        ("of what every linear map gives", _is_affine),
    ):
        if is_like(like):
            return ((words, among(is_like)),)
    return ()


def _is_residual(part: Term) -> bool:
    return part.op == "add" and all(arg.op == "tap" and arg.value.startswith("layers.") for arg in part.args)


def _is_norm(part: Term) -> bool:
    return norm_input(part) is not None


def _is_affine(part: Term) -> bool:
    return part.op == "add" and part.args[0].op == "linear"


OUTPUTS = ("attention.out_proj.bias", "feed_forward.down_proj.bias")


def of_both_outputs(like: Term, sum_of: Sum) -> tuple[tuple[str, Rule], ...]:
    """The same of both biases of a layer that tensor parallelism adds after the sum over devices."""

    def rule(part: Term) -> Term | None:
        is_output = part.op == "add" and part.args[1].op == "weight" and part.args[1].value.endswith(OUTPUTS)
        return sum_of(*part.args) if is_output else None

    return (("of attention.out_proj and feed_forward.down_proj", rule),) if rule(like) is not None else ()


def new_norm(part: Term) -> Term | None:
    """A norm as it is made: of weight 1 and bias 0."""
    return part.args[0].args[0] if norm_input(part) is not None else None


def same_number(leaf: Term) -> Rule:
    """Every number of that value: an eps is the same everywhere."""
    return lambda part: opened(leaf.value) if part == leaf else None


def variant_of(like: Term, kind: object) -> Rule:
    def rule(part: Term) -> Term | None:
        return replace(part, value=kind) if part.op == like.op and part.value == like.value else None

    return rule


def exchanged(module: str, other: str) -> tuple[tuple[str, Rule], ...]:
    """Two modules of a layer stand for each other: in every layer, or in this one."""

    def among(layers: str) -> Rule:
        def rule(part: Term) -> Term | None:
            if part.op != "weight" or not part.value.startswith(layers):
                return None
            at, (a, b) = ".".join(part.value.split(".")[:2]), (module.split(".", 2)[2], other.split(".", 2)[2])
            own, leaf = module_of(part.value).split(".", 2)[2], part.value.rpartition(".")[2]
            return weight(f"{at}.{b if own == a else a}.{leaf}") if own in (a, b) else None

        return rule

    here = ".".join(module.split(".")[:2])
    return (("in every layer", among("layers.")), (f"in layer {here.split('.')[1]} only", among(f"{here}.")))


def renamed(part: Term, pairs: Mapping[str, str]) -> Term:
    return weight(pairs[part.value]) if part.op == "weight" and part.value in pairs else part
