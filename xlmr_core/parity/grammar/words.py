"""Edits in words: what the variants of operations are called, which of them are usual, what a part of a term is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xlmr_core.parity.grammar import activations, functions, indices, masks, softmaxes
from xlmr_core.parity.grammar.precision import PRECISIONS
from xlmr_core.parity.grammar.terms import Term
from xlmr_core.parity.grammar.tokens import Kind

ROWWISE = tuple(kind for kind in PRECISIONS if "tensor" not in kind and "column" not in kind)
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
CLAMPED = -1.0  # the size is read off the largest value
FLOWS = ("add", "mul", "linear", "standard", "activation", "rows", "dot", "hide", "softmax", "merge", "mix", "split",
         "select")  # fmt: skip
UNARY = {"activation": "the activation", "hide": "the mask", "softmax": "the softmax"}
VARIANTS: Mapping[str, Sequence[object]] = {
    "activation": tuple(activations.ACTIVATIONS),
    "standard": tuple(functions.NORMS),
    "hide": (*masks.HIDDEN_KEYS, masks.BY_HEAD),
    "softmax": tuple(softmaxes.SOFTMAX),
    "select": tuple(functions.SELECT),
    "ids": tuple(indices.IDS),
    "types": (1, 2, 3),
    "positions": tuple(indices.POSITIONS),
    "split": tuple(functions.SPLITS),
    "merge": tuple(functions.MERGES),
}
SAYS = {
    "activation": "the activation is {0}",
    "standard": "the norm is computed otherwise: {0}",
    "hide": "the mask hides {0}; it should hide padded keys only",
    "softmax": "the softmax is taken over {0}",
    "select": "the {0} of the token vectors is taken",
    "ids": "the ids are {0}",
    "types": "the token type is {0}",
    "positions": "positions are {0}",
    "split": "heads are split otherwise: {0}",
    "merge": "heads are merged otherwise: {0}",
}
LOWERED = {
    "padding": "padding, in place of hiding it",
    "real keys": "real tokens, in place of hiding padding",
    "distance": "each key, times its distance from the query",
    "distance by head": "each key, times its distance and the slope of the head (ALiBi)",
    "diagonal": "each token with itself",
    "first key": "the first token",
    "later": "later tokens",
    "signed distance": "each key, times how far it is behind the query",
    "signed distance by head": "each key, times how far it is behind the query and the slope of the head",
    "key": "each key, times its place in the text",
}
USUAL = {"gelu_pytorch_tanh", "relu", "quick gelu", "silu", "unbiased", "nothing", "real tokens", "queries",
         "eps outside", "mean", "first", "no transpose", "features in turn", "over tokens", "from 0, padding counted",
         "from 1", "from pad + 1, padding counted", "one too low above 3", "rms"}  # fmt: skip


def cost_of(op: str, kind: Kind) -> float:
    """Of a variant: those with numbers in them are less usual, and tables the least."""
    if isinstance(kind, tuple) and kind[0] == softmaxes.CUTTING:
        return 1.6
    if isinstance(kind, tuple):
        return 1.7 if op == "activation" else 1.65
    return 1.0 if kind in USUAL else 1.3


def words_of(part: Term) -> str:
    """A part in words."""
    if part.op in ("tap", "weight"):
        return str(part.value)
    if part.op == "add" and part.args[0].op == "mul" and part.args[0].args[0].op == "standard":
        return "the output of the norm"
    if part.op == "mul" and part.args[1].op == "number":
        return words_of(part.args[0])
    return {
        "linear": f"the product with {_leaf(part)}",
        "standard": "the normalised value",
        "activation": "the value after the activation",
        "dot": "the product of queries and keys",
        "hide": "the masked scores",
        "softmax": "the probs",
        "rows": f"the rows of {_leaf(part)}",
        "split": f"{_tap_of(part)}, split into heads,",
        "mix": "the product of probs and values",
        "merge": "the merged heads",
        "select": "the chosen vector",
    }.get(part.op, "the sum" if part.op == "add" else "the value")


def _leaf(part: Term) -> str:
    return next(iter(part.leaves("weight")), "")


def _tap_of(part: Term) -> str:
    return next(iter(part.leaves("tap")), "")


def module_of(leaf: str) -> str:
    return leaf.rpartition(".")[0]


def is_of_heads(part: Term) -> bool:
    return part.op == "tap" and part.value.endswith(("attention.q", "attention.k", "attention.v", "attention.context"))


def plain(value: float) -> str:
    return f"{value:.6g}"
