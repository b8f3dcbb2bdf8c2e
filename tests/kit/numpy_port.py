"""A port of XLM-R to NumPy, as somebody else would write it: functions on one sentence, heads as an axis of their own.

It stands for the foreign code that xlmr_core.parity is made for, and shares nothing with xlmr_core but the published
key names in the file it reads. It keeps its internals under its own names; `NAMES` says which tap each one is. It
is right as it stands, and makes any fault named in `faults`.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
erf = np.frompyfunc(math.erf, 1, 1)


def load(folder: Path) -> dict[str, Any]:
    """Settings and tensors of a checkpoint in the published layout, keys shortened as this port likes them."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    short = {key.removeprefix("roberta."): tensor for key, tensor in tensors.items()}
    # A tied file holds one copy of the word table; the head's bias over the vocabulary has two names.
    short.setdefault("lm_head.decoder.weight", short["embeddings.word_embeddings.weight"])
    if "lm_head.decoder.bias" in short:
        short.setdefault("lm_head.bias", short["lm_head.decoder.bias"])
    return {"settings": settings, "tensors": short}


# Tap -> this port's name of it, and the order of its axes where that is another.
NAMES: dict[str, Any] = {
    "embeddings.word": "E.token",
    "embeddings.token_type": "E.kind",
    "embeddings.position": "E.place",
    "embeddings.sum": "E.total",
    "embeddings.output": "E.ready",
    "layers.{i}.attention.q": {"name": "b{i}.Q", "axes": "B S N D"},
    "layers.{i}.attention.k": {"name": "b{i}.K", "axes": "B S N D"},
    "layers.{i}.attention.v": {"name": "b{i}.V", "axes": "B S N D"},
    "layers.{i}.attention.scores": "b{i}.affinity",
    "layers.{i}.attention.probs": "b{i}.focus",
    "layers.{i}.attention.context": {"name": "b{i}.mix", "axes": "B S N D"},
    "layers.{i}.attention.output": "b{i}.attended",
    "layers.{i}.attention.residual": "b{i}.sum1",
    "layers.{i}.mid": "b{i}.half",
    "layers.{i}.feed_forward.pre": "b{i}.wide",
    "layers.{i}.feed_forward.post": "b{i}.bent",
    "layers.{i}.feed_forward.output": "b{i}.narrow",
    "layers.{i}.feed_forward.residual": "b{i}.sum2",
    "layers.{i}.output": "b{i}.done",
    "final_norm": "last",
    "pooler.dense": "pool.dense",
    "pooler.output": "pool.ready",
    "lm_head.dense": "head.dense",
    "lm_head.norm": "head.ready",
    "lm_head.logits": "head.logits",
    "classifier.dense": "verdict.dense",
    "classifier.logits": "verdict",
    "tagger.logits": "tags",
    "answer.logits": "ends",
}
# Those of a masked language model with the norms after the sublayers: base and large.
OTHERS = ("final_norm", "pooler", "classifier", "tagger", "answer")
POST_NORM_NAMES = {tap: name for tap, name in NAMES.items() if not tap.startswith(OTHERS)}


def forward(port: dict[str, Any], rows: Array, valid: Array, faults: Collection[str] = ()) -> dict[str, Array]:
    """Everything the port computes for rows of ids (batch, length) and their 0/1 mask, stacked along the batch."""
    unknown = set(faults) - FAULTS
    if unknown:
        raise ValueError(f"this port cannot make the faults {sorted(unknown)}")
    dumps: list[dict[str, Array]] = []
    before = 0  # real tokens in earlier rows
    for ids, real in zip(rows, valid.astype(bool), strict=True):
        dumps.append(sentence(port, ids, real, before, bool(valid.all()), frozenset(faults)))
        before += int((ids != port["settings"]["pad_token_id"]).sum())
    return {name: np.stack([dump[name] for dump in dumps]) for name in dumps[0]}


def as_taps(port: dict[str, Any], batch: dict[str, torch.Tensor], faults: Collection[str] = ()) -> dict[str, Any]:
    """A dump under the names and in the shapes of the taps, whatever is in it."""
    dump = forward(port, batch["input_ids"].numpy(), batch["attention_mask"].numpy(), faults)
    tensors: dict[str, torch.Tensor] = {}
    for tap, entry in NAMES.items():
        name, apart = (entry["name"], True) if isinstance(entry, dict) else (entry, False)
        for i in range(port["settings"]["num_hidden_layers"]) if "{i}" in tap else (0,):
            if name.replace("{i}", str(i)) in dump:
                tensor = torch.from_numpy(np.ascontiguousarray(dump[name.replace("{i}", str(i))]))
                tensors[tap.replace("{i}", str(i))] = tensor.flatten(2) if apart else tensor
    return tensors


def sentence(
    port: dict[str, Any], ids: Array, real: Array, before: int, unpadded: bool, wrong: frozenset[str]
) -> dict[str, Array]:
    """One sentence of S tokens, from ids to logits."""
    settings, W = port["settings"], port["tensors"]
    pre_norm = "encoder.LayerNorm.weight" in W
    if "weights_float16" in wrong:
        W = {key: tensor.astype(np.float16).astype(np.float32) for key, tensor in W.items()}
    tools = {"eps": np.float32(settings["layer_norm_eps"]), "wrong": wrong, "W": W, "random": np.random.default_rng(7)}
    if "eps_of_bert" in wrong:
        tools["eps"] = np.float32(1e-12)
    dump: dict[str, Array] = {}

    token = W["embeddings.word_embeddings.weight"][ids - 1 * (ids > 3) if "ids_without_offset" in wrong else ids]
    if "embeddings_scaled" in wrong:
        token = token * np.float32(math.sqrt(settings["hidden_size"]))
    kind = np.repeat(W["embeddings.token_type_embeddings.weight"][:1], len(ids), axis=0)
    kind = kind * np.float32(0 if "token_type_missing" in wrong else 2 if "token_type_twice" in wrong else 1)
    table = W["embeddings.position_embeddings.weight"]
    if "position_rows_shifted" in wrong:
        table = np.concatenate([table[:2], table[:-2]])
    place = table[np.minimum(places(ids, settings["pad_token_id"], before, wrong), len(table) - 1)]
    total = token + kind + place
    x = total if pre_norm or "embedding_norm_missing" in wrong else norm(total, "embeddings.LayerNorm", tools)
    x = dropout(x, settings["hidden_dropout_prob"], tools)
    dump |= {"E.token": token, "E.kind": kind, "E.place": place, "E.total": total, "E.ready": x}

    depth = settings["num_hidden_layers"]
    for i in range(depth - ("last_layer_skipped" in wrong)):
        source = (i + 1) % depth if "layers_off_by_one" in wrong else i
        parts = block(x, real, f"encoder.layer.{source}.", pre_norm, unpadded, settings, tools)
        x = parts["done"]
        dump |= {f"b{i}.{name}": value for name, value in parts.items()}
    if pre_norm:
        x = x if "final_norm_missing" in wrong else norm(x, "encoder.LayerNorm", tools)
        dump["last"] = x
    if "pooler.dense.weight" in W:
        first = x[-1] if "pooler_last_token" in wrong else x[0]
        dump["pool.dense"] = affine(first, "pooler.dense", tools, "pooler_bias_missing")
        dump["pool.ready"] = dump["pool.dense"] if "pooler_tanh_missing" in wrong else np.tanh(dump["pool.dense"])
    if "lm_head.dense.weight" in W:
        dump |= head(x, tools)
    if "classifier.dense.weight" in W:
        first = x.mean(axis=0) if "classifier_mean_pooled" in wrong else x[0]
        dump["verdict.dense"] = affine(first, "classifier.dense", tools, "classifier_dense_bias_missing")
        bent = dump["verdict.dense"] if "classifier_tanh_missing" in wrong else np.tanh(dump["verdict.dense"])
        dump["verdict"] = affine(bent, "classifier.out_proj", tools, "classifier_out_bias_missing")
    if "classifier.weight" in W:
        dump["tags"] = affine(x, "classifier", tools, "tagger_bias_missing")
    if "qa_outputs.weight" in W:
        ends = affine(x, "qa_outputs", tools, "answer_bias_missing")
        dump["ends"] = ends[:, ::-1] if "answer_ends_exchanged" in wrong else ends
    return dump


def places(ids: Array, pad: int, before: int, wrong: frozenset[str]) -> Array:
    counted = np.cumsum(ids != pad) * (ids != pad)
    if "positions_from_zero" in wrong:
        return np.arange(len(ids))
    if "positions_from_one" in wrong:
        return counted
    if "positions_count_padding" in wrong:
        return np.arange(len(ids)) + pad + 1
    if "positions_without_restart" in wrong:
        return np.where(ids != pad, counted + before, 0) + pad
    return counted + pad


def block(
    x: Array, real: Array, at: str, pre_norm: bool, unpadded: bool, settings: dict[str, Any], tools: dict[str, Any]
) -> dict[str, Array]:
    """One layer: everything it computes, `done` last."""
    wrong = tools["wrong"]
    names = (
        ("attention.self_attn_layer_norm", "LayerNorm")
        if pre_norm
        else ("attention.output.LayerNorm", "output.LayerNorm")
    )
    first, second = (at + name for name in (names[::-1] if "norms_exchanged" in wrong else names))
    forgot1, forgot2 = "attention_norm_bias_missing", "feed_forward_norm_bias_missing"
    if "norms_exchanged" in wrong:
        forgot1, forgot2 = forgot2, forgot1
    inside = pre_norm != ("norm_placement_exchanged" in wrong)
    d = attention(norm(x, first, tools, forgot1) if inside else x, real, at, unpadded, settings, tools)
    after = "norm_before_residual" in wrong
    if after:
        d["sum1"] = d["attended"]  # what goes into the norm
        d["half"] = norm(d["sum1"], first, tools, forgot1)
        x = x + d["half"]
    elif inside:
        d["sum1"] = d["half"] = x + d["attended"]
    else:
        d["sum1"] = d["attended"] if "attention_residual_missing" in wrong else x + d["attended"]
        d["half"] = norm(d["sum1"], first, tools, forgot1)
    widened = norm(d["half"], second, tools, forgot2) if inside else x if after else d["half"]
    d["wide"] = affine(widened, at + "intermediate.dense", tools, "up_bias_missing")
    d["bent"] = bend(d["wide"], wrong)
    d["narrow"] = affine(d["bent"], at + "output.dense", tools, "down_bias_missing")
    dropped = dropout(d["narrow"], settings["hidden_dropout_prob"], tools)
    if after:
        d["sum2"] = dropped
        d["done"] = x + norm(dropped, second, tools, forgot2)
    elif inside:
        d["sum2"] = d["done"] = d["half"] + dropped
    else:
        d["sum2"] = dropped + (x if "residual_from_layer_input" in wrong else d["half"])
        d["done"] = norm(d["sum2"], second, tools, forgot2)
    return d


def attention(
    x: Array, real: Array, at: str, unpadded: bool, settings: dict[str, Any], tools: dict[str, Any]
) -> dict[str, Array]:
    """Q, K, V and mix are (S, N, D), affinity and focus (N, S, S): query, then key."""
    wrong, heads = tools["wrong"], settings["num_attention_heads"]
    size = settings["hidden_size"] // heads
    sources = {"Q": "query", "K": "key", "V": "value"}
    if "q_k_swapped" in wrong:
        sources |= {"Q": "key", "K": "query"}
    if "k_v_swapped" in wrong:
        sources |= {"K": "value", "V": "key"}
    transposed = "weights_transposed" in wrong
    flat: dict[str, Array] = {}
    for letter, source in sources.items():
        forgot = f"{source[0]}_bias_missing"
        flat[letter] = affine(x, f"{at}attention.self.{source}", tools, forgot, transposed)
    split = {letter: divide(vectors, heads, size, wrong) for letter, vectors in flat.items()}

    product = np.einsum("nqd,nkd->nqk", split["Q"], split["K"])
    if "scores_float16" in wrong:
        product = product.astype(np.float16).astype(np.float32)
    scale = 1 / math.sqrt(size)
    if "scores_unscaled" in wrong:
        scale = 1.0
    if "scores_scaled_by_head_dim" in wrong:
        scale = 1 / size
    if "scores_scaled_by_hidden_size" in wrong:
        scale = 1 / math.sqrt(heads * size)
    affinity = hide(product * np.float32(scale), real, unpadded, wrong)
    axis = -2 if "softmax_over_queries" in wrong else -1
    exponentials = np.exp(affinity - affinity.max(axis, keepdims=True))
    focus = exponentials / exponentials.sum(axis, keepdims=True)
    seen = dropout(focus, settings["attention_probs_dropout_prob"], tools)
    mixed = np.einsum("nqk,nkd->nqd", seen, split["V"])
    unturned = "heads_merged_without_transpose" in wrong
    mix = mixed.reshape(len(x), heads, size) if unturned else mixed.transpose(1, 0, 2)
    attended = affine(mix.reshape(len(x), -1), at + "attention.output.dense", tools, "out_bias_missing", transposed)
    attended = attended if "dropout_left_on" not in wrong else dropout(attended, settings["hidden_dropout_prob"], tools)
    by_head = {letter: vectors.reshape(len(x), heads, size) for letter, vectors in flat.items()}
    return by_head | {"affinity": affinity, "focus": focus, "mix": mix, "attended": attended}


def divide(flat: Array, heads: int, size: int, wrong: frozenset[str]) -> Array:
    """(S, H) -> (N, S, D)"""
    if "heads_interleaved" in wrong:
        return flat.reshape(len(flat), size, heads).transpose(2, 0, 1)
    if "heads_split_without_transpose" in wrong:
        return flat.reshape(heads, len(flat), size)
    return flat.reshape(len(flat), heads, size).transpose(1, 0, 2)


def hide(affinity: Array, real: Array, unpadded: bool, wrong: frozenset[str]) -> Array:
    """Scores with the padded keys out of the way. A batch without padding has no mask at all."""
    far = np.float32(-1e9)
    if "mask_causal" in wrong:
        earlier = np.tril(np.ones(affinity.shape[-2:], bool))
        return np.where(earlier & real, affinity, far)
    if "mask_missing" in wrong or unpadded:
        return affinity
    if "mask_inverted" in wrong:
        return np.where(real, far, affinity)
    if "mask_added_as_it_is" in wrong:
        return affinity + real.astype(np.float32)
    if "mask_too_weak" in wrong:
        return affinity - (~real).astype(np.float32)
    return np.where(real, affinity, far)


def head(x: Array, tools: dict[str, Any]) -> dict[str, Array]:
    wrong, W = tools["wrong"], tools["W"]
    dense = affine(x, "lm_head.dense", tools, "lm_head_dense_bias_missing")
    bent = gelu(dense)
    if "lm_head_activation_missing" in wrong:
        bent = dense
    if "lm_head_gelu_tanh" in wrong:
        bent = gelu_by_tanh(dense)
    ready = norm(bent, "lm_head.layer_norm", tools, "lm_head_norm_bias_missing")
    if "lm_head_norm_missing" in wrong:
        ready = bent
    table = W["lm_head.decoder.weight"]
    if "lm_head_untied" in wrong:
        table = (np.random.default_rng(5).standard_normal(table.shape) * 0.02).astype(np.float32)
    bias = 0 if "vocabulary_bias_missing" in wrong else W["lm_head.bias"]
    return {"head.dense": dense, "head.ready": ready, "head.logits": ready @ table.T + bias}


def affine(x: Array, key: str, tools: dict[str, Any], forgot: str, transposed: bool = False) -> Array:
    matrix, bias = tools["W"][key + ".weight"], tools["W"][key + ".bias"]
    return x @ (matrix if transposed else matrix.T) + (0 * bias if forgot in tools["wrong"] else bias)


def norm(x: Array, key: str, tools: dict[str, Any], forgot: str = "embedding_norm_bias_missing") -> Array:
    wrong = tools["wrong"]
    axis = 0 if "norm_over_tokens" in wrong else -1
    centred = x - x.mean(axis, keepdims=True)
    squares = (centred * centred).sum(axis, keepdims=True)
    spread = squares / np.float32(x.shape[axis] - ("norm_unbiased" in wrong))
    bias = tools["W"][key + ".bias"]
    forgotten = forgot in wrong and not (forgot == "embedding_norm_bias_missing" and "embeddings" not in key)
    return centred / np.sqrt(spread + tools["eps"]) * tools["W"][key + ".weight"] + (0 * bias if forgotten else bias)


def bend(x: Array, wrong: frozenset[str]) -> Array:
    if "relu_for_gelu" in wrong:
        return np.maximum(x, 0)
    if "gelu_quick" in wrong:
        return x / (1 + np.exp(np.float32(-1.702) * x))
    if "gelu_tanh" in wrong:
        return gelu_by_tanh(x)
    return gelu(x)


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / np.sqrt(np.float32(2))).astype(np.float32)) / 2


def gelu_by_tanh(x: Array) -> Array:
    return x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x))) / 2


def dropout(x: Array, rate: float, tools: dict[str, Any]) -> Array:
    """This port is for inference: it drops nothing out but by mistake."""
    if "dropout_left_on" not in tools["wrong"]:
        return x
    kept = tools["random"].random(x.shape) >= rate
    return x * kept / np.float32(1 - rate)


ALL_FAULTS = (
    "ids_without_offset embeddings_scaled weights_float16 token_type_missing token_type_twice positions_from_zero "
    "positions_from_one positions_count_padding positions_without_restart position_rows_shifted "
    "embedding_norm_missing embedding_norm_bias_missing eps_of_bert norm_unbiased norm_over_tokens dropout_left_on "
    "q_k_swapped k_v_swapped weights_transposed q_bias_missing k_bias_missing v_bias_missing heads_interleaved "
    "heads_split_without_transpose heads_merged_without_transpose scores_unscaled scores_scaled_by_head_dim "
    "scores_scaled_by_hidden_size scores_float16 mask_missing mask_inverted mask_added_as_it_is mask_too_weak "
    "mask_causal softmax_over_queries out_bias_missing norm_placement_exchanged norm_before_residual "
    "attention_residual_missing attention_norm_bias_missing norms_exchanged up_bias_missing gelu_tanh gelu_quick "
    "relu_for_gelu down_bias_missing residual_from_layer_input feed_forward_norm_bias_missing layers_off_by_one "
    "last_layer_skipped final_norm_missing lm_head_dense_bias_missing lm_head_activation_missing lm_head_gelu_tanh "
    "lm_head_norm_missing lm_head_norm_bias_missing lm_head_untied vocabulary_bias_missing pooler_last_token "
    "pooler_bias_missing pooler_tanh_missing classifier_mean_pooled classifier_dense_bias_missing "
    "classifier_tanh_missing classifier_out_bias_missing tagger_bias_missing answer_bias_missing answer_ends_exchanged"
)
FAULTS = frozenset(ALL_FAULTS.split())
