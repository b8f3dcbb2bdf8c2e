"""XLM-R in torch, as functions on a padded batch, with one fused projection for queries, keys and values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # weight and bias


def load(folder: Path, dtype: str = "float32") -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    file = load_file(folder / "model.safetensors")
    source = {key.removeprefix("roberta."): tensor.to(getattr(torch, dtype)) for key, tensor in file.items()}

    def pair(name: str) -> Pair:
        return source[f"{name}.weight"], source[f"{name}.bias"]

    layers = []
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        q, k, v = (pair(f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        qkv_weight = torch.cat([q[0], k[0], v[0]])
        qkv_bias = torch.cat([q[1], k[1], v[1]])
        layers.append(
            {
                "qkv": (qkv_weight, qkv_bias),
                "out": pair(f"{at}.attention.output.dense"),
                "norm1": pair(f"{at}.attention.output.LayerNorm"),
                "up": pair(f"{at}.intermediate.dense"),
                "down": pair(f"{at}.output.dense"),
                "norm2": pair(f"{at}.output.LayerNorm"),
            }
        )
    return {
        "word": source["embeddings.word_embeddings.weight"],
        "kind": source["embeddings.token_type_embeddings.weight"],
        "position": source["embeddings.position_embeddings.weight"],
        "norm0": pair("embeddings.LayerNorm"),
        "layers": layers,
        "heads": config["num_attention_heads"],
        "eps": config["layer_norm_eps"],
        "pad": config["pad_token_id"],
    }


@torch.no_grad()
def run(w: dict[str, Any], ids: Any, mask: Any) -> dict[str, Any]:
    """The tensors at all taps, padded, as float32 arrays."""
    ids, real = torch.as_tensor(ids), torch.as_tensor(mask).bool()
    taps: dict[str, Any] = {}

    def keep(name: str, x: Tensor) -> Tensor:
        taps[name] = x.float().numpy().copy()
        return x

    x = embed(w, ids, real, keep)
    far = torch.zeros(real.shape, dtype=x.dtype).masked_fill(~real, -torch.inf)[:, None, None, :]
    for i, layer in enumerate(w["layers"]):
        x = block(x, layer, far, i, w["heads"], w["eps"], lambda name, x, i=i: keep(f"layers.{i}.{name}", x))
    return taps


def embed(w: dict[str, Any], ids: Tensor, real: Tensor, keep: Callable[[str, Tensor], Tensor]) -> Tensor:
    places = real.cumsum(1) * real + w["pad"]
    word = keep("embeddings.word", F.embedding(ids, w["word"]))
    kind = keep("embeddings.token_type", F.embedding(torch.zeros_like(ids), w["kind"]))
    position = keep("embeddings.position", F.embedding(places, w["position"]))
    total = keep("embeddings.sum", word + kind + position)
    return keep("embeddings.output", norm(total, w["norm0"], w["eps"]))


def block(
    x: Tensor, w: dict[str, Pair], far: Tensor, i: int, heads: int, eps: float, keep: Callable[[str, Tensor], Tensor]
) -> Tensor:
    b, s, h = x.shape
    q, k, v = F.linear(x, *w["qkv"]).split(h, dim=-1)
    for name, each in zip("qkv", (q, k, v), strict=True):
        keep(f"attention.{name}", each)
    q, k, v = (each.view(b, s, heads, -1).transpose(1, 2) for each in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (h // heads) ** -0.5
    scores = keep("attention.scores", scores + far)
    probs = keep("attention.probs", scores.softmax(-1))
    context = keep("attention.context", (probs @ v).transpose(1, 2).reshape(b, s, h))
    attended = keep("attention.output", F.linear(context, *w["out"]))
    mid = keep("mid", norm(keep("attention.residual", x + attended), w["norm1"], eps))
    pre = keep("feed_forward.pre", F.linear(mid, *w["up"]))
    post = keep("feed_forward.post", F.gelu(pre))
    down = keep("feed_forward.output", F.linear(post, *w["down"]))
    return keep("output", norm(keep("feed_forward.residual", mid + down), w["norm2"], eps))


def norm(x: Tensor, w: Pair, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *w, eps)
