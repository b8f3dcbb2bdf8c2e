"""Faults that are in no catalogue, planted in the NumPy port: each replaces one function of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kit import numpy_port as port

Array = Any


@dataclass(frozen=True)
class Planted:
    """One fault: which function of the port is replaced, the tap where it shows first, and words of its name."""

    function: str
    replacement: Callable[..., Any]
    tap: str
    words: tuple[str, ...]


def _norm(x: Array, key: str, tools: dict[str, Any], rule: Callable[[Array, Any], Array]) -> Array:
    return rule(x, tools["eps"]) * tools["W"][key + ".weight"] + tools["W"][key + ".bias"]


def _normed(rule: Callable[[Array, Any], Array]) -> Callable[..., Array]:
    return lambda x, key, tools, forgot="": _norm(x, key, tools, rule)


def _spread(x: Array) -> Array:
    return x.std(-1, keepdims=True)


def _centred(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)


_affine, _block, _attention, _hide, _norm0 = port.affine, port.block, port.attention, port.hide, port.norm


def _hidden(change: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda affinity, real, unpadded, wrong: change(np.where(real, affinity, np.float32(-1e9)), real)


def _linear(which: str, rule: Callable[[Array, Array, Array, str], Array], layer: str = "") -> Callable[..., Array]:
    """Another linear map in the modules whose key ends so."""

    def affine(x: Array, key: str, tools: dict[str, Any], forgot: str, transposed: bool = False) -> Array:
        if not key.endswith(which) or layer not in key:
            return _affine(x, key, tools, forgot, transposed)
        W = tools["W"]
        return rule(x, W[key + ".weight"], W[key + ".bias"], key)

    return affine


def _from_layer_before(which: str) -> Callable[..., Array]:
    def affine(x: Array, key: str, tools: dict[str, Any], forgot: str, transposed: bool = False) -> Array:
        if key.endswith(which) and "layer.2" in key:
            key = key.replace("layer.2", "layer.1")
        return _affine(x, key, tools, forgot, transposed)

    return affine


def _int8(w: Array) -> Array:
    step = np.abs(w).max(1, keepdims=True) / np.float32(127)
    return np.round(w / step) * step


def _block_with(rule: Callable[[Array, dict[str, Array], str, dict[str, Any]], Array], part: str) -> Callable[..., Any]:
    """Another sum before the second norm."""

    def block(
        x: Array, real: Array, at: str, pre: bool, unpadded: bool, settings: dict[str, Any], tools: dict[str, Any]
    ) -> dict[str, Array]:
        d = _attention(x, real, at, unpadded, settings, tools)
        first, second = at + "attention.output.LayerNorm", at + "output.LayerNorm"
        d["sum1"] = rule(x, d, at, tools) if part == "sum1" else x + d["attended"]
        d["half"] = port.norm(d["sum1"], first, tools)
        d["wide"] = port.affine(d["half"], at + "intermediate.dense", tools, "")
        d["bent"] = port.gelu(d["wide"])
        d["narrow"] = port.affine(d["bent"], at + "output.dense", tools, "")
        d["sum2"] = rule(x, d, at, tools) if part == "sum2" else d["half"] + d["narrow"]
        d["done"] = port.norm(d["sum2"], second, tools)
        return d

    return block


def _fused(x: Array, w: Array, b: Array, key: str) -> Array:
    return x @ w.T + b


def _softened(factor: float) -> Callable[..., Array]:
    return _hidden(lambda scores, real: np.where(real, scores * np.float32(factor), scores))


def _distance(scores: Array) -> Array:
    places = np.arange(scores.shape[-1])
    return np.abs(places[:, None] - places[None, :]).astype(np.float32)


def _places(rule: Callable[[Array, int], Array]) -> Callable[..., Array]:
    return lambda ids, pad, before, wrong: rule(ids, pad)


UNLISTED: dict[str, Planted] = {
    "silu": Planted("bend", lambda x, wrong: x / (1 + np.exp(-x)), "layers.0.feed_forward.post", ("silu",)),
    "gelu without sqrt(2)": Planted(
        "bend",
        lambda x, wrong: x * (1 + port.erf(x).astype(np.float32)) / 2,
        "layers.0.feed_forward.post",
        ("division by sqrt(2)",),
    ),
    "activation twice": Planted(
        "bend", lambda x, wrong: port.gelu(port.gelu(x)), "layers.0.feed_forward.post", ("twice",)
    ),
    "leaky relu": Planted(
        "bend", lambda x, wrong: np.where(x > 0, x, np.float32(0.1) * x), "layers.0.feed_forward.post", ("leaky relu",)
    ),
    "eps 1e-6": Planted(
        "norm",
        _normed(lambda x, eps: _centred(x) / np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-6))),
        "embeddings.output",
        ("1e-06", "everywhere"),
    ),
    "eps outside the root": Planted(
        "norm", _normed(lambda x, eps: _centred(x) / (_spread(x) + eps)), "embeddings.output", ("eps outside",)
    ),
    "rms norm": Planted(
        "norm",
        _normed(lambda x, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)),
        "embeddings.output",
        ("rms", "everywhere"),
    ),
    "temperature": Planted("hide", _softened(0.8), "layers.0.attention.scores", ("0.8",)),
    "distance bias": Planted(
        "hide", _hidden(lambda s, real: s - np.float32(0.1) * _distance(s)), "layers.0.attention.scores", ("distance",)
    ),
    "no attention to itself": Planted(
        "hide",
        _hidden(lambda s, real: np.where(np.eye(s.shape[-1], dtype=bool), np.float32(-1e9), s)),
        "layers.0.attention.scores",
        ("itself",),
    ),
    "window of three": Planted(
        "hide",
        _hidden(lambda s, real: np.where(_distance(s) > 3, np.float32(-1e9), s)),
        "layers.0.attention.scores",
        ("more than 3 places",),
    ),
    "scores cut off": Planted(
        "hide", _hidden(lambda s, real: np.where(real, np.clip(s, -1, 1), s)), "layers.0.attention.scores", ("cut",)
    ),
    "values of the layer before": Planted(
        "affine", _from_layer_before("self.value"), "layers.2.attention.v", ("layers.1.attention.v_proj", "layer 2")
    ),
    "keys scaled": Planted(
        "affine",
        _linear("self.key", lambda x, w, b, key: (x @ w.T + b) * np.float32(0.5)),
        "layers.0.attention.k",
        ("0.5",),
    ),
    "bias twice": Planted(
        "affine", _linear("self.query", lambda x, w, b, key: x @ w.T + 2 * b), "layers.0.attention.q", ("twice",)
    ),
    "one weight in int8": Planted(
        "affine",
        _linear("self.value", lambda x, w, b, key: x @ _int8(w).T + b, "layer.1"),
        "layers.1.attention.v",
        ("int8 by row", "layer 1 only"),
    ),
    "halves of the queries exchanged": Planted(
        "affine",
        _linear("self.query", lambda x, w, b, key: np.roll(x @ w.T + b, w.shape[0] // 2, -1)),
        "layers.0.attention.q",
        ("halves",),
    ),
    "residual halved": Planted(
        "block",
        _block_with(lambda x, d, at, tools: (x + d["attended"]) * np.float32(0.5), "sum1"),
        "layers.0.attention.residual",
        ("0.5",),
    ),
    "residual of both": Planted(
        "block",
        _block_with(lambda x, d, at, tools: x + d["half"] + d["narrow"], "sum2"),
        "layers.0.feed_forward.residual",
        ("layers.0",),
    ),
    "residual missing in layer 1": Planted(
        "block",
        _block_with(lambda x, d, at, tools: d["narrow"] + d["half"] * (".1." not in at), "sum2"),
        "layers.1.feed_forward.residual",
        ("layer 1 only",),
    ),
    "residual missing but in layer 1": Planted(
        "block",
        _block_with(lambda x, d, at, tools: d["narrow"] + d["half"] * (".1." in at), "sum2"),
        "layers.0.feed_forward.residual",
        ("every layer but 1",),
    ),
    "subtracted residual": Planted(
        "block",
        _block_with(lambda x, d, at, tools: x - d["attended"], "sum1"),
        "layers.0.attention.residual",
        ("-1",),
    ),
    "positions backwards": Planted(
        "places",
        _places(lambda ids, pad: np.cumsum((ids != pad)[::-1])[::-1] * (ids != pad) + pad),
        "embeddings.position",
        ("backwards",),
    ),
    "positions from pad + 2": Planted(
        "places",
        _places(lambda ids, pad: (np.cumsum(ids != pad) + 1) * (ids != pad) + pad),
        "embeddings.position",
        ("pad + 2",),
    ),
}


def dump_with(planted: Planted, ported: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    """What the port computes with the fault in it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(port, planted.function, planted.replacement)
        return port.as_taps(ported, batch)
