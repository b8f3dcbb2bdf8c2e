"""Checkpoints as fairseq and torchtext write them, from random weights. fairseq itself is not needed.

The key names are written out once more here, from fairseq's and torchtext's own modules (fairseq/models/roberta/
model.py, fairseq/modules/multihead_attention.py and transformer_sentence_encoder.py of each release;
torchtext/models/roberta/modules.py): these tests must not lean on the tables that are under test.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import reference
import torch
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig

# What each release calls things: prefix, projections in one tensor, the norm of the embeddings.
RELEASES = {
    "fairseq": ("decoder", True, "emb_layer_norm"),
    "fairseq-0.9": ("decoder", False, "emb_layer_norm"),
    "fairseq-0.10": ("encoder", False, "emb_layer_norm"),
    "fairseq-1.0": ("encoder", False, "layernorm_embedding"),
}
XL = ("encoder", False, "layer_norm")  # of XL and XXL, which have a norm at the end instead


def hf_state(config: XLMRobertaConfig, kind: str = "ForMaskedLM", seed: int = 1) -> dict[str, Tensor]:
    """The state dict of transformers' model with random weights. The token types are zeros, as fairseq has none."""
    model = reference.build_reference(config, "eager", kind)
    reference.randomize(model, seed)
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    state["roberta.embeddings.token_type_embeddings.weight"].zero_()
    return state


def fairseq_state(hf: Mapping[str, Tensor], config: XLMRobertaConfig, release: str = "fairseq") -> dict[str, Tensor]:
    """The same weights as a fairseq of that release keeps them."""
    prefix, fused, norm = XL if config.norm_first else RELEASES[release]
    root, theirs = f"{prefix}.sentence_encoder", "roberta.embeddings"
    state: dict[str, Tensor] = {}
    if norm != "emb_layer_norm":  # since 1.0
        state[f"{root}.version"] = torch.tensor([3.0])
    state[f"{root}.embed_tokens.weight"] = hf[f"{theirs}.word_embeddings.weight"]
    state[f"{root}.embed_positions.weight"] = hf[f"{theirs}.position_embeddings.weight"]
    for i in range(config.num_hidden_layers):
        state |= fairseq_layer(hf, f"roberta.encoder.layer.{i}", f"{root}.layers.{i}", fused, config.norm_first)
    last = "roberta.encoder.LayerNorm" if config.norm_first else f"{theirs}.LayerNorm"
    state |= renamed(hf, {last: f"{root}.{norm}"})
    if "lm_head.bias" in hf:
        state[f"{prefix}.lm_head.weight"] = hf["lm_head.decoder.weight"]
        state[f"{prefix}.lm_head.bias"] = hf["lm_head.bias" if config.tie_word_embeddings else "lm_head.decoder.bias"]
        state |= renamed(hf, {f"lm_head.{name}": f"{prefix}.lm_head.{name}" for name in ("dense", "layer_norm")})
    return state


def fairseq_layer(hf: Mapping[str, Tensor], theirs: str, key: str, fused: bool, norm_first: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    projections = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    for leaf in ("weight", "bias"):
        parts = {name: hf[f"{theirs}.attention.self.{part}.{leaf}"] for name, part in projections.items()}
        if fused:
            state[f"{key}.self_attn.in_proj_{leaf}"] = torch.cat(list(parts.values()))
        else:
            state |= {f"{key}.self_attn.{name}.{leaf}": tensor for name, tensor in parts.items()}
    norms = (
        ("attention.self_attn_layer_norm", "LayerNorm")
        if norm_first
        else ("attention.output.LayerNorm", "output.LayerNorm")
    )
    names = {
        "attention.output.dense": "self_attn.out_proj",
        norms[0]: "self_attn_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        norms[1]: "final_layer_norm",
    }
    return state | renamed(hf, {f"{theirs}.{name}": f"{key}.{theirs_}" for name, theirs_ in names.items()})


def torchtext_state(hf: Mapping[str, Tensor], config: XLMRobertaConfig, *, newer: bool = False) -> dict[str, Tensor]:
    """The same weights as torchtext's encoder: as in its published files, or as its `state_dict` since 0.14."""
    root = "encoder.transformer"
    state = {
        f"{root}.token_embedding.weight": hf["roberta.embeddings.word_embeddings.weight"],
        f"{root}.positional_embedding.embedding.weight": hf["roberta.embeddings.position_embeddings.weight"],
    }
    state |= renamed(hf, {"roberta.embeddings.LayerNorm": f"{root}.embedding_layer_norm"})
    names = {
        "attention.output.dense": ("attention.output_projection", "self_attn.out_proj"),
        "attention.output.LayerNorm": ("attention_layer_norm", "norm1"),
        "intermediate.dense": ("residual_mlp.mlp.0", "linear1"),
        "output.dense": ("residual_mlp.mlp.3", "linear2"),
        "output.LayerNorm": ("final_layer_norm", "norm2"),
    }
    for i in range(config.num_hidden_layers):
        theirs, key = f"roberta.encoder.layer.{i}", f"{root}.{'layers.' * newer}layers.{i}"
        for leaf in ("weight", "bias"):
            parts = [hf[f"{theirs}.attention.self.{part}.{leaf}"] for part in ("query", "key", "value")]
            fused = f"self_attn.in_proj_{leaf}" if newer else f"attention.input_projection.{leaf}"
            state[f"{key}.{fused}"] = torch.cat(parts)
        state |= renamed(hf, {f"{theirs}.{name}": f"{key}.{both[newer]}" for name, both in names.items()})
    return state


def renamed(hf: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Weight and bias of each module, under another name."""
    return {f"{new}.{leaf}": hf[f"{old}.{leaf}"] for old, new in modules.items() for leaf in ("weight", "bias")}


def fairseq_checkpoint(state: Mapping[str, Tensor], config: XLMRobertaConfig) -> dict[str, Any]:
    """What is in a model.pt: the weights, and the arguments it was trained with, as a Namespace."""
    args = argparse.Namespace(
        arch="roberta_xl" if config.norm_first else "roberta_base",
        task="multilingual_masked_lm",
        criterion="masked_lm",
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        activation_fn=config.hidden_act,
        pooler_activation_fn="tanh",
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation_dropout=0.0,
        pooler_dropout=0.0,
        encoder_normalize_before=config.norm_first,
        max_positions=config.max_tokens,
        untie_weights_roberta=not config.tie_word_embeddings,
    )
    history = [{"criterion_name": "MaskedLmLoss", "best_loss": None, "optimizer_name": "FairseqAdam", "num_updates": 0}]
    return {"args": args, "model": dict(state), "optimizer_history": history, "extra_state": {"epoch": 1}}


def write_fairseq(folder: Path, config: XLMRobertaConfig, release: str = "fairseq", seed: int = 1) -> dict[str, Tensor]:
    """A model.pt in `folder`; gives back the same weights under transformers' names."""
    hf = hf_state(config, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(fairseq_checkpoint(fairseq_state(hf, config, release), config), folder / "model.pt")
    return hf
