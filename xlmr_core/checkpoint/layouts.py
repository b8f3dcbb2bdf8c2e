"""The key tables: what each published layout calls our tensors, and which of them each model class has.

A template is for people: `{i}` stands for a layer number, a last `*` for `weight` and `bias`. `expand` writes every
template out with the config, and from there on a key is a literal string. The tables serve both ways: reading looks
up `theirs`, writing looks up `ours`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xlmr_core.config import XLMRobertaConfig

Rows = tuple[tuple[str, str], ...]  # (ours, theirs)

EMBEDDINGS: Rows = (
    ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.token_type_embeddings.weight", "embeddings.token_type_embeddings.weight"),
)
SUBLAYERS: Rows = (
    ("layers.{i}.attention.q_proj.*", "encoder.layer.{i}.attention.self.query.*"),
    ("layers.{i}.attention.k_proj.*", "encoder.layer.{i}.attention.self.key.*"),
    ("layers.{i}.attention.v_proj.*", "encoder.layer.{i}.attention.self.value.*"),
    ("layers.{i}.attention.out_proj.*", "encoder.layer.{i}.attention.output.dense.*"),
    ("layers.{i}.feed_forward.up_proj.*", "encoder.layer.{i}.intermediate.dense.*"),
    ("layers.{i}.feed_forward.down_proj.*", "encoder.layer.{i}.output.dense.*"),
)
POST_NORMS: Rows = (  # base and large: a norm is named after the output it follows
    ("embeddings.norm.*", "embeddings.LayerNorm.*"),
    ("layers.{i}.attention_norm.*", "encoder.layer.{i}.attention.output.LayerNorm.*"),
    ("layers.{i}.feed_forward_norm.*", "encoder.layer.{i}.output.LayerNorm.*"),
)
PRE_NORMS: Rows = (  # XL and XXL: a norm precedes each sublayer, and one more closes the stack
    ("layers.{i}.attention_norm.*", "encoder.layer.{i}.attention.self_attn_layer_norm.*"),
    ("layers.{i}.feed_forward_norm.*", "encoder.layer.{i}.LayerNorm.*"),
    ("final_norm.*", "encoder.LayerNorm.*"),
)
POOLER: Rows = (("pooler.dense.*", "pooler.dense.*"),)
LM_HEAD: Rows = (
    ("lm_head.dense.*", "lm_head.dense.*"),
    ("lm_head.norm.*", "lm_head.layer_norm.*"),
)
# The decoder's bias has two names. Tied, they are one tensor, and so are the decoder's weight and the word table.
# Untied, the reference answers with lm_head.decoder.bias, and lm_head.bias is a leftover.
TIED_DECODER: Rows = (("lm_head.decoder.bias", "lm_head.bias"),)
TIED_SECOND_NAMES: Rows = (
    ("lm_head.decoder.bias", "lm_head.decoder.bias"),
    ("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
)
UNTIED_DECODER: Rows = (("lm_head.decoder.*", "lm_head.decoder.*"),)
UNTIED_SECOND_NAMES: Rows = (("lm_head.decoder.bias", "lm_head.bias"),)


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors in a file."""

    name: str
    norm_first: bool
    groups: Mapping[str, Rows]  # a group is in a file as a whole or not at all
    decoder: Mapping[bool, Rows]  # more rows of the group lm_head: by config.tie_word_embeddings
    second_names: Mapping[bool, Rows]  # more keys, all in lm_head, that a tensor may have: by tie_word_embeddings
    counters: tuple[str, ...]  # their keys of buffers that hold 0, 1, 2, ...: no weights


def _hf_layout(prefix: str, norm_first: bool) -> Layout:
    """transformers' names. It puts `roberta.` before the encoder's keys in every class with a head."""
    encoder = EMBEDDINGS + SUBLAYERS + (PRE_NORMS if norm_first else POST_NORMS)
    return Layout(
        name=f"HF {'pre-norm (XL)' if norm_first else 'post-norm'} {'with' if prefix else 'without'} 'roberta.'",
        norm_first=norm_first,
        groups={
            "encoder": tuple((ours, prefix + theirs) for ours, theirs in encoder),
            "pooler": tuple((ours, prefix + theirs) for ours, theirs in POOLER),
            "lm_head": LM_HEAD,
        },
        decoder={True: TIED_DECODER, False: UNTIED_DECODER},
        second_names={True: TIED_SECOND_NAMES, False: UNTIED_SECOND_NAMES},
        counters=(f"{prefix}embeddings.position_ids",),
    )


LAYOUTS = tuple(_hf_layout(prefix, norm_first) for norm_first in (False, True) for prefix in ("roberta.", ""))


@dataclass(frozen=True)
class Needs:
    """The groups of one model class, how it nests them, and how it writes them."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    nested: tuple[str, ...]  # groups whose tensors lie in the class's `encoder.`
    layouts: Mapping[bool, Layout]  # to write: by norm_first
    architectures: Mapping[bool, str]  # the reference's class: by norm_first


NEEDS: Mapping[str, Needs] = {
    "XLMRobertaModel": Needs(
        required=("encoder",),
        optional=("pooler",),
        nested=(),
        layouts={norm_first: _hf_layout("", norm_first) for norm_first in (False, True)},
        architectures={False: "XLMRobertaModel", True: "XLMRobertaXLModel"},
    ),
    "XLMRobertaForMaskedLM": Needs(
        required=("encoder", "lm_head"),
        optional=(),
        nested=("encoder", "pooler"),
        layouts={norm_first: _hf_layout("roberta.", norm_first) for norm_first in (False, True)},
        architectures={False: "XLMRobertaForMaskedLM", True: "XLMRobertaXLForMaskedLM"},
    ),
}


def needs_of(cls: type) -> Needs:
    """What `cls` needs. A subclass needs what its parent does. Raises TypeError for a class with no entry in NEEDS."""
    for parent in cls.__mro__:
        if parent.__name__ in NEEDS:
            return NEEDS[parent.__name__]
    raise TypeError(f"{cls.__name__} has no entry in xlmr_core.checkpoint.layouts.NEEDS: what it needs is not known")


@dataclass(frozen=True)
class Slot:
    """One tensor of ours and the keys it may have in a file, the published one first, each with the group it is in.

    The word table belongs to the encoder, but its second key, the tied decoder, lies with the LM head.
    """

    ours: str
    group: str
    keys: Mapping[str, str]


def expand(layout: Layout, config: XLMRobertaConfig, nested: tuple[str, ...]) -> list[Slot]:
    """Every tensor of every group of `layout`, its names written out."""
    tied = config.tie_word_embeddings
    groups = {**layout.groups, "lm_head": layout.groups["lm_head"] + layout.decoder[tied]}
    second_names = dict(layout.second_names[tied])
    slots: list[Slot] = []
    for group, rows in groups.items():
        for ours, theirs in literal(rows, config.num_hidden_layers):
            keys = {theirs: group}
            if ours in second_names:
                keys[second_names[ours]] = "lm_head"
            slots.append(Slot(f"encoder.{ours}" if group in nested else ours, group, keys))
    return slots


def literal(rows: Rows, num_layers: int) -> Iterator[tuple[str, str]]:
    """The rows with `{i}` and `*` written out."""
    for row in rows:
        layers = range(num_layers) if "{i}" in row[0] else range(1)
        leaves = ("weight", "bias") if row[0].endswith("*") else ("",)
        for i in layers:
            for leaf in leaves:
                ours, theirs = (name.replace("{i}", str(i)).removesuffix("*") + leaf for name in row)
                yield ours, theirs
