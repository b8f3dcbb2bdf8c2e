"""A port of the encoder in torch, each step a function of its own, so that a bug is another function for one step.

It computes in float32 on the padded batch and shares nothing with xlmr_core but the names of the weights and the taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def positions(ids: Tensor, pad: int) -> Tensor:
    real = (ids != pad).long()
    return real.cumsum(1) * real + pad


def linear(x: Tensor, weight: Tensor, bias: Tensor, name: str) -> Tensor:
    return x @ weight.T + bias


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def scaled(q: Tensor, k: Tensor) -> Tensor:
    """Of (B, N, S, D)."""
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def hidden(scores: Tensor, real: Tensor, ids: Tensor) -> Tensor:
    return scores.masked_fill(~real[:, None, None, :], -1e9)


def same(x: Tensor, real: Tensor) -> Tensor:
    return x


STEPS: dict[str, Callable[..., Any]] = {
    "ids": same,  # of the word table
    "positions": positions,
    "word_rows": lambda table, ids: table[ids],
    "place_rows": lambda table, places: table[places],
    "word": same,
    "place": same,
    "kind": same,
    "summed": lambda word, kind, place: word + kind + place,
    "embedded": lambda normed, place: normed,
    "norm": norm,
    "linear": linear,
    "given": lambda outputs, sums: outputs[-1],  # what a layer reads, of all outputs and second sums so far
    "turned": lambda q, k: (q, k),  # queries and keys, (B, S, N, D), before they are dumped
    "scaled": scaled,
    "hidden": hidden,
    "probs": lambda scores, real: scores.softmax(-1),
    "mixed": lambda scores, probs, v: probs @ v,
    "residual": lambda x, y: x + y,
    "bent": F.gelu,
    "late": lambda x, bias: x,  # after the activation, with the bias of the map before it
}


def dump(
    weights: Mapping[str, Tensor], config: Any, batch: Mapping[str, Tensor], **changed: Callable[..., Any]
) -> dict[str, Tensor]:
    """Every tap of the encoder.

    Args:
        weights: By their names in an encoder of xlmr_core.
        config: Of the model, with norms after the sublayers.
        batch: input_ids and attention_mask, (B, S).
        changed: Other functions for some of the `STEPS`.
    """
    step = {**STEPS, **changed}
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    heads, eps, taps = config.num_attention_heads, config.layer_norm_eps, dict[str, Tensor]()

    def normed(x: Tensor, name: str) -> Tensor:
        return step["norm"](x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def affine(x: Tensor, name: str) -> Tensor:
        return step["linear"](x, weights[f"{name}.weight"], weights[f"{name}.bias"], name)

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1))

    table, words = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("position", "word"))
    taps["embeddings.word"] = step["word"](step["word_rows"](words, step["ids"](ids, real)), real)
    kinds = weights["embeddings.token_type_embeddings.weight"][torch.zeros_like(ids)]
    taps["embeddings.token_type"] = step["kind"](kinds, real)
    places = step["positions"](ids, config.pad_token_id)
    taps["embeddings.position"] = place = step["place"](step["place_rows"](table, places), real)
    taps["embeddings.sum"] = step["summed"](taps["embeddings.word"], taps["embeddings.token_type"], place)
    taps["embeddings.output"] = step["embedded"](normed(taps["embeddings.sum"], "embeddings.norm"), place)
    outputs, sums = [taps["embeddings.output"]], [taps["embeddings.sum"]]
    for i in range(config.num_hidden_layers):
        at = f"layers.{i}."
        x = step["given"](outputs, sums)
        q, k, v = (apart(affine(x, f"{at}attention.{name}_proj")) for name in "qkv")
        q, k = step["turned"](q, k)
        scores = step["hidden"](step["scaled"](q.transpose(1, 2), k.transpose(1, 2)), real, ids)
        probs = step["probs"](scores, real)
        context = step["mixed"](scores, probs, v.transpose(1, 2)).transpose(1, 2).flatten(2)
        attended = affine(context, f"{at}attention.out_proj")
        first = step["residual"](x, attended)
        mid = normed(first, f"{at}attention_norm")
        up = f"{at}feed_forward.up_proj"
        wide = affine(mid, up)
        bent = step["late"](step["bent"](wide), weights[f"{up}.bias"])
        narrow = affine(bent, f"{at}feed_forward.down_proj")
        second = step["residual"](mid, narrow)
        outputs, sums = [*outputs, normed(second, f"{at}feed_forward_norm")], [*sums, second]
        inside = {"q": q.flatten(2), "k": k.flatten(2), "v": v.flatten(2), "scores": scores, "probs": probs}
        inside |= {"context": context, "output": attended, "residual": first}
        taps |= {f"{at}attention.{name}": x for name, x in inside.items()} | {f"{at}mid": mid}
        wider = {"pre": wide, "post": bent, "output": narrow, "residual": second}
        taps |= {f"{at}feed_forward.{name}": x for name, x in wider.items()} | {f"{at}output": outputs[-1]}
    return taps
