"""A second opinion: XLM-RoBERTa in plain loops over Python floats. Written to be read, never to be fast.

It shares no code with xlmr_core and uses no tensor arithmetic: a sentence is a list of vectors, a vector a list of
floats (IEEE doubles), and every sum is `math.fsum`, rounded once. What it computes on the way is kept under the names
of the taps (embeddings.sum, layers.0.attention.scores, ...), in reading order, so that a difference can be placed.

Sources: Vaswani et al. 2017 (attention), Devlin et al. 2019 (encoder), Liu et al. 2019 and Conneau et al. 2020
(positions, no segments), Goyal et al. 2021 (norms first), Hendrycks and Gimpel 2016 (GELU), Ba et al. 2016 (norm).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Vector = list[float]
Matrix = list[Vector]
Sentence = list[Vector]  # one vector for each token


def run(weights: dict[str, Tensor], config: Any, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Every tap of the masked language model for a padded batch, float64, batch first.

    weights: a state dict with the names of `XLMRobertaForMaskedLM`. In `scores` a key that is masked out holds -inf.
    """
    lists = {name: tensor.double().tolist() for name, tensor in weights.items()}
    rows = [
        _Sentence(lists, config).run(ids, real)
        for ids, real in zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True)
    ]
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


class _Sentence:
    """One row of the batch on its way from ids to logits; `taps` fills as it goes."""

    def __init__(self, weights: dict[str, Any], config: Any) -> None:
        self.weights = weights
        self.config = config
        self.taps: dict[str, Any] = {}

    def run(self, ids: list[int], real: list[bool]) -> dict[str, Any]:
        hidden = self.embed(ids)
        for index in range(self.config.num_hidden_layers):
            hidden = self.layer(f"layers.{index}", hidden, real)
        if self.config.norm_first:
            hidden = self.keep("final_norm", self.norm("encoder.final_norm", hidden))
        self.lm_head(hidden)
        return self.taps

    def embed(self, ids: list[int]) -> Sentence:
        tables = "encoder.embeddings."
        word = [self.weights[tables + "word_embeddings.weight"][token] for token in ids]
        token_type = [self.weights[tables + "token_type_embeddings.weight"][0] for _ in ids]
        rows = positions(ids, self.config.pad_token_id)
        position = [self.weights[tables + "position_embeddings.weight"][row] for row in rows]
        self.keep("embeddings.word", word)
        self.keep("embeddings.token_type", token_type)
        self.keep("embeddings.position", position)
        hidden = self.keep("embeddings.sum", add(add(word, token_type), position))
        if not self.config.norm_first:
            hidden = self.norm(tables + "norm", hidden)
        return self.keep("embeddings.output", hidden)

    def layer(self, name: str, hidden: Sentence, real: list[bool]) -> Sentence:
        prefix = f"encoder.{name}."
        if self.config.norm_first:
            attended = self.attention(name, self.norm(prefix + "attention_norm", hidden), real)
            middle = self.keep(name + ".attention.residual", add(hidden, attended))
            self.keep(name + ".mid", middle)
            transformed = self.feed_forward(name, self.norm(prefix + "feed_forward_norm", middle))
            hidden = self.keep(name + ".feed_forward.residual", add(middle, transformed))
        else:
            attended = self.attention(name, hidden, real)
            residual = self.keep(name + ".attention.residual", add(hidden, attended))
            middle = self.keep(name + ".mid", self.norm(prefix + "attention_norm", residual))
            transformed = self.feed_forward(name, middle)
            residual = self.keep(name + ".feed_forward.residual", add(middle, transformed))
            hidden = self.norm(prefix + "feed_forward_norm", residual)
        return self.keep(name + ".output", hidden)

    def attention(self, name: str, hidden: Sentence, real: list[bool]) -> Sentence:
        prefix = f"encoder.{name}.attention."
        queries = self.keep(name + ".attention.q", self.linear(prefix + "q_proj", hidden))
        keys = self.keep(name + ".attention.k", self.linear(prefix + "k_proj", hidden))
        values = self.keep(name + ".attention.v", self.linear(prefix + "v_proj", hidden))
        seen = real if any(real) else [True] * len(real)  # a row of only padding attends to all of it
        width = self.config.hidden_size // self.config.num_attention_heads
        root = math.sqrt(width)
        all_scores: list[Matrix] = []
        all_probs: list[Matrix] = []
        context: Sentence = [[] for _ in hidden]
        for head in range(self.config.num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            scores = [
                [dot(q[part], k[part]) / root if ok else -math.inf for k, ok in zip(keys, seen, strict=True)]
                for q in queries
            ]
            probs = [softmax(row) for row in scores]
            for token, row in enumerate(probs):
                context[token] += [dot(row, column) for column in transposed([v[part] for v in values])]
            all_scores.append(scores)
            all_probs.append(probs)
        self.keep(name + ".attention.scores", all_scores)
        self.keep(name + ".attention.probs", all_probs)
        self.keep(name + ".attention.context", context)
        return self.keep(name + ".attention.output", self.linear(prefix + "out_proj", context))

    def feed_forward(self, name: str, hidden: Sentence) -> Sentence:
        prefix = f"encoder.{name}.feed_forward."
        pre = self.keep(name + ".feed_forward.pre", self.linear(prefix + "up_proj", hidden))
        activation = ACTIVATIONS[self.config.hidden_act]
        post = self.keep(name + ".feed_forward.post", [[activation(x) for x in token] for token in pre])
        return self.keep(name + ".feed_forward.output", self.linear(prefix + "down_proj", post))

    def lm_head(self, hidden: Sentence) -> None:
        dense = self.keep("lm_head.dense", self.linear("lm_head.dense", hidden))
        activated = [[gelu(x) for x in token] for token in dense]
        normed = self.keep("lm_head.norm", self.norm("lm_head.norm", activated))
        self.keep("lm_head.logits", self.linear("lm_head.decoder", normed))

    def linear(self, key: str, hidden: Sentence) -> Sentence:
        weight, bias = self.weights[key + ".weight"], self.weights[key + ".bias"]
        return [[dot([*row, b], [*token, 1.0]) for row, b in zip(weight, bias, strict=True)] for token in hidden]

    def norm(self, key: str, hidden: Sentence) -> Sentence:
        gain, bias = self.weights[key + ".weight"], self.weights[key + ".bias"]
        return [layer_norm(token, gain, bias, self.config.layer_norm_eps) for token in hidden]

    def keep(self, name: str, value: Any) -> Any:
        self.taps[name] = value
        return value


def positions(ids: list[int], pad: int) -> list[int]:
    """Row of the position table for each token: the first real token has pad + 1, padding has pad."""
    rows: list[int] = []
    last = pad
    for token in ids:
        if token != pad:
            last += 1
        rows.append(pad if token == pad else last)
    return rows


def layer_norm(x: Vector, gain: Vector, bias: Vector, eps: float) -> Vector:
    mean = math.fsum(x) / len(x)
    variance = math.fsum((value - mean) ** 2 for value in x) / len(x)
    return [(value - mean) / math.sqrt(variance + eps) * g + b for value, g, b in zip(x, gain, bias, strict=True)]


def softmax(x: Vector) -> Vector:
    highest = max(x)
    exponentials = [math.exp(value - highest) for value in x]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def relu(x: float) -> float:
    return max(x, 0.0)


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}


def dot(left: Iterable[float], right: Iterable[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def add(left: Sentence, right: Sentence) -> Sentence:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(left, right, strict=True)]


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]
