"""XLM-R in NumPy, packed: the tokens of all texts in one array without padding, and a loop over texts and heads."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
erf = np.frompyfunc(math.erf, 1, 1)


class Port:
    """The encoder of a checkpoint folder."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.w = {
            k.removeprefix("roberta."): t.astype(dtype) for k, t in load_file(folder / "model.safetensors").items()
        }
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.eps: float = config["layer_norm_eps"]
        self.pad: int = config["pad_token_id"]

    def run(self, ids: Array, mask: Array) -> dict[str, Array]:
        """The tensors at all taps: (T, H), and of scores and probs (B, N, S, S)."""
        self.taps: dict[str, Array] = {}
        lengths = mask.sum(1)
        self.bounds = np.concatenate([[0], np.cumsum(lengths)])
        tokens = ids[mask.astype(bool)]
        x = self.embed(tokens, lengths)
        for i in range(self.layers):
            x = self.layer(x, i)
        return self.taps

    def keep(self, name: str, x: Array) -> Array:
        self.taps[name] = x.copy()
        return x

    def embed(self, tokens: Array, lengths: Array) -> Array:
        start = np.repeat(self.bounds[:-1], lengths)
        place = np.arange(len(tokens)) - start + self.pad + 1
        word = self.keep("embeddings.word", self.w["embeddings.word_embeddings.weight"][tokens])
        position = self.keep("embeddings.position", self.w["embeddings.position_embeddings.weight"][place])
        kind = self.w["embeddings.token_type_embeddings.weight"][np.zeros_like(tokens)]
        self.keep("embeddings.token_type", kind)
        total = self.keep("embeddings.sum", word + position + kind)
        return self.keep("embeddings.output", self.norm(total, "embeddings.LayerNorm"))

    def layer(self, x: Array, i: int) -> Array:
        at, tap = f"encoder.layer.{i}.", f"layers.{i}."
        q = self.keep(tap + "attention.q", self.affine(x, at + "attention.self.query"))
        k = self.keep(tap + "attention.k", self.affine(x, at + "attention.self.key"))
        v = self.keep(tap + "attention.v", self.affine(x, at + "attention.self.value"))
        context = self.keep(tap + "attention.context", self.attend(q, k, v, i))
        attended = self.keep(tap + "attention.output", self.affine(context, at + "attention.output.dense"))
        summed = self.keep(tap + "attention.residual", x + attended)
        mid = self.keep(tap + "mid", self.norm(summed, at + "attention.output.LayerNorm"))
        pre = self.keep(tap + "feed_forward.pre", self.affine(mid, at + "intermediate.dense"))
        post = self.keep(tap + "feed_forward.post", gelu(pre))
        down = self.keep(tap + "feed_forward.output", self.affine(post, at + "output.dense"))
        summed = self.keep(tap + "feed_forward.residual", mid + down)
        return self.keep(tap + "output", self.norm(summed, at + "output.LayerNorm"))

    def attend(self, q: Array, k: Array, v: Array, i: int) -> Array:
        texts, longest, size = len(self.bounds) - 1, np.diff(self.bounds).max(), q.shape[1] // self.heads
        all_scores = np.full((texts, self.heads, longest, longest), -np.inf, q.dtype)
        all_probs = np.zeros_like(all_scores)
        context = np.zeros_like(q)
        for t in range(texts):
            start, end = self.bounds[t], self.bounds[t + 1]
            n = end - start
            for head in range(self.heads):
                columns = slice(head * size, (head + 1) * size)
                scores = q[start:end, columns] @ k[start:end, columns].T * size**-0.5
                probs = softmax(scores)
                context[start:end, columns] = probs @ v[start:end, columns]
                all_scores[t, head, :n, :n] = scores
                all_probs[t, head, :n, :n] = probs
        self.keep(f"layers.{i}.attention.scores", all_scores)
        self.keep(f"layers.{i}.attention.probs", all_probs)
        return context

    def affine(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        unit = centred / np.sqrt(variance + self.eps)
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def gelu(x: Array) -> Array:
    return x * (1 + erf(x * 2**-0.5).astype(x.dtype)) / 2


def load(folder: Path, dtype: str = "float32") -> Port:
    return Port(folder, dtype)


def run(port: Port, ids: Array, mask: Array) -> dict[str, Array]:
    return port.run(ids, mask)
