"""XLM-R in JAX: one scan over the layers' stacked weights, and attention in tiles of keys with a running softmax."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

TILE = 16  # keys that are read at once
FAR = -1e9  # the score of a key that must not be seen
NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def load(folder: Path, dtype: str = "float32") -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    file = load_file(folder / "model.safetensors")
    source = {key.removeprefix("roberta."): jnp.asarray(array, dtype) for key, array in file.items()}
    count, heads = config["num_hidden_layers"], config["num_attention_heads"]

    def stack(name: str, part: str) -> jax.Array:
        return jnp.stack([source[f"encoder.layer.{i}.{name}.{part}"] for i in range(count)])

    layers = {f"{short}.{part}": stack(name, part) for short, name in NAMES.items() for part in ("weight", "bias")}
    for name in "qkv":  # (layers, heads, head_dim, hidden)
        weight = layers[f"{name}.weight"]
        layers[f"{name}.weight"] = weight.reshape(count, heads, -1, weight.shape[-1])
        layers[f"{name}.bias"] = layers[f"{name}.bias"].reshape(count, heads, -1)
    out = layers["out.weight"]
    layers["out.weight"] = out.reshape(count, out.shape[1], heads, -1)
    tables = {name: source[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type", "position")}
    first_norm = source["embeddings.LayerNorm.weight"], source["embeddings.LayerNorm.bias"]
    settings = {"eps": config["layer_norm_eps"], "pad": config["pad_token_id"], "count": count}
    return {"tables": tables, "norm": first_norm, "layers": layers, **settings}


def run(w: dict[str, Any], ids: Any, mask: Any) -> dict[str, Any]:
    """The tensors at all taps, padded, as float32 arrays."""
    ids, seen = jnp.asarray(ids), jnp.asarray(mask) > 0
    x, taps = embed(w, ids, seen)

    def step(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        done = block(x, layer, seen, w["eps"])
        return done["output"], done

    _, stacked = jax.lax.scan(step, x, {**w["layers"], "index": jnp.arange(w["count"])})
    for name, values in stacked.items():
        taps |= {f"layers.{i}.{name}": value for i, value in enumerate(values)}
    return {name: np.array(value, dtype=np.float32) for name, value in taps.items()}


def embed(w: dict[str, Any], ids: jax.Array, seen: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    place = jnp.cumsum(seen, axis=1) * seen + w["pad"]
    word = jnp.take(w["tables"]["word"], ids, axis=0)
    position = jnp.take(w["tables"]["position"], place, axis=0)
    kind = jnp.broadcast_to(w["tables"]["token_type"][0], word.shape)
    total = word + kind + position
    output = norm(total, *w["norm"], w["eps"])
    parts = {"word": word, "token_type": kind, "position": position, "sum": total, "output": output}
    return output, {f"embeddings.{name}": value for name, value in parts.items()}


def block(x: jax.Array, w: dict[str, jax.Array], seen: jax.Array, eps: float) -> dict[str, jax.Array]:
    q, k, v = (jnp.einsum("bsh,ndh->bnsd", x, w[f"{n}.weight"]) + w[f"{n}.bias"][:, None] for n in "qkv")
    mixed = attend(q, k, v, seen).astype(x.dtype)
    attended = jnp.einsum("bnsd,hnd->bsh", mixed, w["out.weight"]) + w["out.bias"]
    first = x + attended
    mid = norm(first, w["norm1.weight"], w["norm1.bias"], eps)
    pre = mid @ w["up.weight"].T + w["up.bias"]
    post = jax.nn.gelu(pre, approximate=False)
    down = post @ w["down.weight"].T + w["down.bias"]
    second = mid + down
    # A tiled kernel keeps neither scores nor probs: these are computed for the dump only.
    scores = score(q, k, seen)
    return {
        "attention.q": side_by_side(q),
        "attention.k": side_by_side(k),
        "attention.v": side_by_side(v),
        "attention.scores": scores,
        "attention.probs": jax.nn.softmax(scores, axis=-1).astype(x.dtype),
        "attention.context": side_by_side(mixed),
        "attention.output": attended,
        "attention.residual": first,
        "mid": mid,
        "feed_forward.pre": pre,
        "feed_forward.post": post,
        "feed_forward.output": down,
        "feed_forward.residual": second,
        "output": norm(second, w["norm2.weight"], w["norm2.bias"], eps),
    }


def attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Each tile of keys corrects the sums of the tiles before it, as in FlashAttention."""
    spare = -k.shape[2] % TILE
    k, v = (jnp.pad(each, ((0, 0), (0, 0), (0, spare), (0, 0))) for each in (k, v))
    seen = jnp.pad(seen, ((0, 0), (0, spare)))
    top = jnp.full((*q.shape[:3], 1), FAR, jnp.float32)
    total = jnp.zeros_like(top)
    mixed = jnp.zeros(q.shape, jnp.float32)
    for start in range(0, k.shape[2], TILE):
        tile = slice(start, start + TILE)
        scores = score(q, k[:, :, tile], seen[:, tile]).astype(jnp.float32)
        higher = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - higher)
        shrink = jnp.exp(top - higher)
        total = total * shrink + weights.sum(-1, keepdims=True)
        mixed = mixed * shrink + jnp.einsum("bnqk,bnkd->bnqd", weights, v[:, :, tile])
        top = higher
    return mixed / total


def score(q: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
    scores = jnp.einsum("bnqd,bnkd->bnqk", q, k) * q.shape[-1] ** -0.5
    return jnp.where(seen[:, None, None], scores, FAR)


def side_by_side(x: jax.Array) -> jax.Array:
    """(B, N, S, D) to (B, S, H)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def norm(x: jax.Array, gain: jax.Array, shift: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    unit = (wide - mean) * jax.lax.rsqrt(variance + eps)
    return (unit * gain + shift).astype(x.dtype)
