"""What each tap of a model is: a small expression over earlier taps and tensors of the checkpoint.

    terms = terms_of(model)
    print(terms["layers.3.mid"])
    # add(mul(standard(layers.3.attention.residual, 1e-05), attention_norm.weight), attention_norm.bias)

The search for an unlisted fault changes such an expression a little and evaluates it again (changes.py, evaluate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parity.tap_values import LOGITS, LOGSUMEXP, TOP
from xlmr_core.pretrained import PretrainedModel

SENTENCE = "sentence.mean"


@dataclass(frozen=True)
class Term:
    """One operation, or a leaf.

    Attributes:
        op: The name of the operation, a key of `evaluate.OPERATIONS`; or "tap", "weight" or "number" for a leaf.
        args: What the operation reads.
        value: The name of a tap or weight, the number, or which variant of the operation it is.
    """

    op: str
    args: tuple[Term, ...] = ()
    value: Any = None

    def __str__(self) -> str:
        if not self.args:
            return f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value)
        kind = "" if self.value is None else f", {self.value}"
        return f"{self.op}({', '.join(map(str, self.args))}{kind})"

    def walk(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Term]]:
        """Every term in this one with the path to it, the whole first."""
        yield path, self
        for index, arg in enumerate(self.args):
            yield from arg.walk((*path, index))

    def walk_parts(self) -> Iterator[Term]:
        """Every term in this one, the whole first."""
        return (part for _, part in self.walk())

    def at(self, path: tuple[int, ...]) -> Term:
        """The part at `path`."""
        part = self
        for index in path:
            part = part.args[index]
        return part

    def with_part(self, path: tuple[int, ...], part: Term) -> Term:
        """The term with another one at `path`."""
        if not path:
            return part
        args = list(self.args)
        args[path[0]] = args[path[0]].with_part(path[1:], part)
        return Term(self.op, tuple(args), self.value)  # called very often: `replace` takes three times as long

    def map(self, rule: Callable[[Term], Term]) -> Term:
        """The term with every term in it passed through `rule`, the innermost first."""
        return rule(Term(self.op, tuple(arg.map(rule) for arg in self.args), self.value) if self.args else self)

    def leaves(self, op: str) -> list[str]:
        """The names of the leaves of one kind."""
        return [part.value for _, part in self.walk() if part.op == op]


Terms = dict[str, Term]


def tap(name: str) -> Term:
    return Term("tap", value=name)


def weight(name: str) -> Term:
    return Term("weight", value=name)


def number(value: float) -> Term:
    return Term("number", value=value)


def add(*terms: Term) -> Term:
    total, *others = terms
    for other in others:
        total = Term("add", (total, other))
    return total


def scaled(term: Term, factor: float) -> Term:
    return Term("mul", (term, number(factor)))


def affine(x: Term, module: str) -> Term:
    """A linear map with its bias."""
    return add(Term("linear", (x, weight(f"{module}.weight"))), weight(f"{module}.bias"))


def norm(x: Term, module: str, eps: float) -> Term:
    """Layer norm."""
    standard = Term("standard", (x, number(eps)))
    return add(Term("mul", (standard, weight(f"{module}.weight"))), weight(f"{module}.bias"))


# ---- the parts of a model --------------------------------------------------------------------------------------------


def _embeddings(config: XLMRobertaConfig) -> Terms:
    def rows(table: str, index: Term) -> Term:
        return Term("rows", (weight(f"embeddings.{table}_embeddings.weight"), index))

    total = add(tap("embeddings.word"), tap("embeddings.token_type"), tap("embeddings.position"))
    summed = tap("embeddings.sum")
    return {
        "embeddings.word": rows("word", Term("ids")),
        "embeddings.token_type": rows("token_type", Term("types")),
        "embeddings.position": rows("position", Term("positions", (Term("ids"),))),
        "embeddings.sum": total,
        "embeddings.output": summed if config.norm_first else norm(summed, "embeddings.norm", config.layer_norm_eps),
    }


def _layer(config: XLMRobertaConfig, i: int) -> Terms:
    at, eps, pre = f"layers.{i}.", config.layer_norm_eps, config.norm_first
    given = tap(f"{at}input")
    read = norm(given, f"{at}attention_norm", eps) if pre else given
    q, k, v = (Term("split", (tap(f"{at}attention.{name}"),)) for name in "qkv")
    scores = scaled(Term("dot", (q, k)), config.head_dim**-0.5)
    mixed = Term("mix", (tap(f"{at}attention.probs"), v))
    mid, between = tap(f"{at}mid"), tap(f"{at}attention.residual")
    last = tap(f"{at}feed_forward.residual")
    second = f"{at}feed_forward_norm"
    return {
        f"{at}attention.q": affine(read, f"{at}attention.q_proj"),
        f"{at}attention.k": affine(read, f"{at}attention.k_proj"),
        f"{at}attention.v": affine(read, f"{at}attention.v_proj"),
        f"{at}attention.scores": Term("hide", (scores,), "keys"),
        f"{at}attention.probs": Term("softmax", (tap(f"{at}attention.scores"),), "keys"),
        f"{at}attention.context": Term("merge", (mixed,)),
        f"{at}attention.output": affine(tap(f"{at}attention.context"), f"{at}attention.out_proj"),
        f"{at}attention.residual": add(given, tap(f"{at}attention.output")),
        f"{at}mid": between if pre else norm(between, f"{at}attention_norm", eps),
        f"{at}feed_forward.pre": affine(norm(mid, second, eps) if pre else mid, f"{at}feed_forward.up_proj"),
        f"{at}feed_forward.post": Term("activation", (tap(f"{at}feed_forward.pre"),), config.hidden_act),
        f"{at}feed_forward.output": affine(tap(f"{at}feed_forward.post"), f"{at}feed_forward.down_proj"),
        f"{at}feed_forward.residual": add(mid, tap(f"{at}feed_forward.output")),
        f"{at}output": last if pre else norm(last, second, eps),
    }


def _heads(config: XLMRobertaConfig, hidden: Term) -> Terms:
    """The taps above the encoder of every class; a model has some of them."""
    first = Term("select", (hidden,), "first")
    dense, activated = affine(hidden, "lm_head.dense"), Term("activation", (tap("lm_head.dense"),), "gelu")
    bent = Term("activation", (tap("classifier.dense"),), "tanh")
    logits = add(
        Term("linear", (tap("lm_head.norm"), weight("lm_head.decoder.weight"))), weight("lm_head.decoder.bias")
    )
    return {
        "pooler.dense": affine(first, "pooler.dense"),
        "pooler.output": Term("activation", (tap("pooler.dense"),), "tanh"),
        "lm_head.dense": dense,
        "lm_head.norm": norm(activated, "lm_head.norm", config.layer_norm_eps),
        LOGITS: logits,
        "classifier.dense": affine(first, "classifier.dense"),
        "classifier.logits": affine(bent, "classifier.out_proj"),
        "tagger.logits": affine(hidden, "classifier"),
        "answer.logits": affine(hidden, "qa_outputs"),
        "choice.logits": Term("choices", (affine(tap("pooler.output"), "classifier"),)),
        "sparse.weight": affine(hidden, "sparse_linear"),
        "colbert.dense": affine(hidden, "colbert_linear"),
    }


def last_hidden(config: XLMRobertaConfig) -> str:
    """The tap that the heads read."""
    return "final_norm" if config.norm_first else f"layers.{config.num_hidden_layers - 1}.output"


def terms_of(model: PretrainedModel) -> Terms:
    """The term of every tap of the model, in reading order; of a head that somebody else wrote, none.

    Beside the taps there are the sentence vector, and what a trace keeps of vocabulary logits.
    """
    config = model.config
    terms = _embeddings(config)
    for i in range(config.num_hidden_layers):
        terms |= _layer(config, i)
    if config.norm_first:
        last = tap(f"layers.{config.num_hidden_layers - 1}.output")
        terms["final_norm"] = norm(last, "final_norm", config.layer_norm_eps)
    hidden = tap(last_hidden(config))
    above = _heads(config, hidden)
    terms |= {known.name: above[known.name] for known in model.taps() if known.name in above}
    terms[SENTENCE] = Term("select", (hidden,), "mean")
    if LOGITS in terms:
        terms |= {TOP: Term("top", (tap(LOGITS),)), LOGSUMEXP: Term("logsumexp", (tap(LOGITS),))}
    return terms


def resolved(name: str) -> str:
    """The tap that a name stands for: the input of a layer is the output of what is before it."""
    if not name.endswith(".input"):
        return name
    layer = int(name.split(".")[1])
    return f"layers.{layer - 1}.output" if layer else "embeddings.output"


def weights_of(model: PretrainedModel) -> Mapping[str, Tensor]:
    """The tensors of the checkpoint by name, without the prefix of the encoder."""
    named = model.named_parameters(remove_duplicate=False)
    return {name.removeprefix("encoder."): parameter.detach() for name, parameter in named}


def in_layer(term: Term, here: int, there: int, layers: int, *, relative: bool) -> Term | None:
    """The same term for another layer. None if that would need a layer before the first.

    Args:
        term: Of layer `here`.
        here: Its number.
        there: The number of the other layer.
        layers: How many there are: the one after the last is the first.
        relative: Whether a third layer that is named moves along.
    """
    outside = False

    def renamed(part: Term) -> Term:
        nonlocal outside
        if part.op not in ("tap", "weight") or not part.value.startswith("layers."):
            return part
        _, layer, rest = part.value.split(".", 2)
        if int(layer) != here and not relative:
            return part
        moved = int(layer) - here + there
        outside |= moved < 0
        return replace(part, value=f"layers.{moved % layers}.{rest}")

    found = term.map(renamed)
    return None if outside else found
