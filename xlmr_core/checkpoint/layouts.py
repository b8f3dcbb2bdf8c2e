"""The key tables: what each published layout calls our tensors.

A template is for people: `{i}` stands for a layer number, `{head}` for the name of a fairseq head, a last `*` for
`weight` and `bias`. `expand` writes every template out with the config, and from there on a key is a literal string.
The tables serve both ways: reading looks up `theirs`, writing looks up `ours`. Where `ours` is a tuple, their tensor
is ours one below the other: fused. What a format does not have, and what it has beside the weights, is data too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.parameter_groups import LM_HEAD, POOLER
from xlmr_core.spec import ModelSpec, known_groups

Rows = tuple[tuple[str | tuple[str, ...], str], ...]  # (ours, theirs)
ByTie = Mapping[bool, Rows]  # by config.tie_word_embeddings

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
QKV_WEIGHTS = tuple(f"layers.{{i}}.attention.{name}_proj.weight" for name in "qkv")
QKV_BIASES = tuple(f"layers.{{i}}.attention.{name}_proj.bias" for name in "qkv")

# ---- Hugging Face: transformers, models/xlm_roberta/modeling_xlm_roberta.py and xlm_roberta_xl/ ----------------------

HF_EMBEDDINGS: Rows = ((WORDS, WORDS), (POSITIONS, POSITIONS), (TOKEN_TYPES, TOKEN_TYPES))
HF_SUBLAYERS: Rows = (
    ("layers.{i}.attention.q_proj.*", "encoder.layer.{i}.attention.self.query.*"),
    ("layers.{i}.attention.k_proj.*", "encoder.layer.{i}.attention.self.key.*"),
    ("layers.{i}.attention.v_proj.*", "encoder.layer.{i}.attention.self.value.*"),
    ("layers.{i}.attention.out_proj.*", "encoder.layer.{i}.attention.output.dense.*"),
    ("layers.{i}.feed_forward.up_proj.*", "encoder.layer.{i}.intermediate.dense.*"),
    ("layers.{i}.feed_forward.down_proj.*", "encoder.layer.{i}.output.dense.*"),
)
HF_POST_NORMS: Rows = (  # base and large: a norm is named after the output it follows
    ("embeddings.norm.*", "embeddings.LayerNorm.*"),
    ("layers.{i}.attention_norm.*", "encoder.layer.{i}.attention.output.LayerNorm.*"),
    ("layers.{i}.feed_forward_norm.*", "encoder.layer.{i}.output.LayerNorm.*"),
)
HF_PRE_NORMS: Rows = (  # XL and XXL: a norm precedes each sublayer, and one more closes the stack
    ("layers.{i}.attention_norm.*", "encoder.layer.{i}.attention.self_attn_layer_norm.*"),
    ("layers.{i}.feed_forward_norm.*", "encoder.layer.{i}.LayerNorm.*"),
    ("final_norm.*", "encoder.LayerNorm.*"),
)
HF_LM_HEAD: Rows = (
    ("lm_head.dense.*", "lm_head.dense.*"),
    ("lm_head.norm.*", "lm_head.layer_norm.*"),
)
# The decoder's bias has two names. Tied, they are one tensor, and so are the decoder's weight and the word table.
# Untied, transformers uses lm_head.decoder.bias, and lm_head.bias is a leftover.
HF_DECODER: ByTie = {
    True: (("lm_head.decoder.bias", "lm_head.bias"),),
    False: (("lm_head.decoder.*", "lm_head.decoder.*"),),
}
HF_SECOND_NAMES: ByTie = {
    True: (("lm_head.decoder.bias", "lm_head.decoder.bias"), (WORDS, "lm_head.decoder.weight")),
    False: (("lm_head.decoder.bias", "lm_head.bias"),),
}

# ---- fairseq: models/roberta/model.py (upgrade_state_dict_named lists the older names), modules/multihead_attention.py

FAIRSEQ_LAYERS: Rows = (
    ("layers.{i}.attention.out_proj.*", "layers.{i}.self_attn.out_proj.*"),
    ("layers.{i}.attention_norm.*", "layers.{i}.self_attn_layer_norm.*"),
    ("layers.{i}.feed_forward.up_proj.*", "layers.{i}.fc1.*"),
    ("layers.{i}.feed_forward.down_proj.*", "layers.{i}.fc2.*"),
    ("layers.{i}.feed_forward_norm.*", "layers.{i}.final_layer_norm.*"),
)
FAIRSEQ_SEPARATE: Rows = (
    ("layers.{i}.attention.q_proj.*", "layers.{i}.self_attn.q_proj.*"),
    ("layers.{i}.attention.k_proj.*", "layers.{i}.self_attn.k_proj.*"),
    ("layers.{i}.attention.v_proj.*", "layers.{i}.self_attn.v_proj.*"),
)
FAIRSEQ_FUSED: Rows = (
    (QKV_WEIGHTS, "layers.{i}.self_attn.in_proj_weight"),
    (QKV_BIASES, "layers.{i}.self_attn.in_proj_bias"),
)
FAIRSEQ_HEADS = "classification_heads."
FAIRSEQ_HEAD = "sentence_classification_head"  # the name that fairseq's criterion sentence_prediction gives by default
# Of TransformerEncoder. With less than 2, or none, fairseq drops the final norm of XL. A post-norm file that fairseq
# wrote holds 1 where its training began from a file without a version, as the published ones are: it has no effect.
FAIRSEQ_VERSION = 3.0
OLD_FAIRSEQ_VERSIONS = (1.0, 2.0)
# What fairseq 0.12.2 has in each layer beside the live tensors, for a fast path of PyTorch's. Not to be confused with
# self_attn.in_proj_weight of 2019, which is live.
FAIRSEQ_COPIES = tuple(
    f"{name}_{leaf}" for name in ("in_proj", "out_proj", "fc1", "fc2") for leaf in ("weight", "bias")
)
FAIRSEQ_COPY = "a copy for a fast path of fairseq 0.12.2, which fills it anew when it loads: training never updates it"

# ---- torchtext: models/roberta/modules.py, whose _load_from_state_dict has both the older and the newer names --------

TORCHTEXT_EMBEDDINGS: Rows = (
    (WORDS, "token_embedding.weight"),
    (POSITIONS, "positional_embedding.embedding.weight"),
    ("embeddings.norm.*", "embedding_layer_norm.*"),
)
TORCHTEXT_PUBLISHED: Rows = (  # the files of its bundles
    (QKV_WEIGHTS, "layers.{i}.attention.input_projection.weight"),
    (QKV_BIASES, "layers.{i}.attention.input_projection.bias"),
    ("layers.{i}.attention.out_proj.*", "layers.{i}.attention.output_projection.*"),
    ("layers.{i}.attention_norm.*", "layers.{i}.attention_layer_norm.*"),
    ("layers.{i}.feed_forward.up_proj.*", "layers.{i}.residual_mlp.mlp.0.*"),
    ("layers.{i}.feed_forward.down_proj.*", "layers.{i}.residual_mlp.mlp.3.*"),
    ("layers.{i}.feed_forward_norm.*", "layers.{i}.final_layer_norm.*"),
)
TORCHTEXT_NEWER: Rows = (  # what its model writes since it is built of torch.nn.TransformerEncoder
    (QKV_WEIGHTS, "layers.layers.{i}.self_attn.in_proj_weight"),
    (QKV_BIASES, "layers.layers.{i}.self_attn.in_proj_bias"),
    ("layers.{i}.attention.out_proj.*", "layers.layers.{i}.self_attn.out_proj.*"),
    ("layers.{i}.attention_norm.*", "layers.layers.{i}.norm1.*"),
    ("layers.{i}.feed_forward.up_proj.*", "layers.layers.{i}.linear1.*"),
    ("layers.{i}.feed_forward.down_proj.*", "layers.layers.{i}.linear2.*"),
    ("layers.{i}.feed_forward_norm.*", "layers.layers.{i}.norm2.*"),
)


@dataclass(frozen=True)
class KeyLayout:
    """One way to name the tensors in a file."""

    name: str
    family: str  # its name in `xlmr convert --to`; two key layouts of one family differ in norm_first or with_prefix
    norm_first: bool
    groups: Mapping[str, Rows]  # a group is in a file as a whole or not at all
    our_heads: bool = False  # whether every head that is not among the groups has our own names in it
    with_prefix: bool | None = None  # written for the classes with a head (True), without (False), for all (None)
    decoder: ByTie = field(default_factory=dict[bool, Rows])  # more rows of the group lm_head
    second_names: ByTie = field(default_factory=dict[bool, Rows])  # more keys, all in lm_head, that a tensor may have
    writes_second_names: bool = False  # also where the tensors are tied
    counters: tuple[str, ...] = ()  # their keys of buffers that hold 0, 1, 2, ...: no weights
    # Their keys of buffers with one known number: the one that is written, and others that may be read.
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    leftovers: Mapping[str, str] = field(default_factory=dict[str, str])  # their keys that nothing reads -> the reason
    fills: Mapping[str, str] = field(default_factory=dict[str, str])  # ours that are zeros here, with the reason


def _prefixed(prefix: str, rows: Rows) -> Rows:
    return tuple((ours, prefix + theirs) for ours, theirs in rows)


def _hf_layout(prefix: str, norm_first: bool) -> KeyLayout:
    """transformers' names. It puts `roberta.` before the encoder's keys in every class with a head."""
    encoder = HF_EMBEDDINGS + HF_SUBLAYERS + (HF_PRE_NORMS if norm_first else HF_POST_NORMS)
    return KeyLayout(
        name=f"HF {'pre-norm (XL)' if norm_first else 'post-norm'} {'with' if prefix else 'without'} 'roberta.'",
        family="hf",
        norm_first=norm_first,
        with_prefix=bool(prefix),
        groups={
            "encoder": _prefixed(prefix, encoder),
            "pooler": _prefixed(prefix, _same(POOLER.keys)),
            "lm_head": HF_LM_HEAD,
        },
        our_heads=True,
        decoder=HF_DECODER,
        second_names=HF_SECOND_NAMES,
        counters=(f"{prefix}embeddings.position_ids",),
    )


def _native_layout(prefix: str, norm_first: bool) -> KeyLayout:
    """Our own names, as in `state_dict()`: each table with its left side on both sides."""
    encoder = HF_EMBEDDINGS + HF_SUBLAYERS + (HF_PRE_NORMS if norm_first else HF_POST_NORMS)
    decoder: ByTie = {
        True: (("lm_head.decoder.bias", "lm_head.decoder.bias"),),
        False: (("lm_head.decoder.*", "lm_head.decoder.*"),),
    }
    return KeyLayout(
        name=f"native {'pre-norm' if norm_first else 'post-norm'} {'with' if prefix else 'without'} 'encoder.'",
        family="native",
        norm_first=norm_first,
        with_prefix=bool(prefix),
        groups={
            "encoder": _prefixed(prefix, _same(ours for ours, _ in encoder if isinstance(ours, str))),
            "pooler": _prefixed(prefix, _same(POOLER.keys)),
        },
        our_heads=True,
        decoder=decoder,
        second_names={True: ((WORDS, "lm_head.decoder.weight"),), False: ()},
    )


def _same(names: Iterable[str]) -> Rows:
    return tuple((name, name) for name in names)


def _fairseq_layout(
    name: str, family: str, root: str, projections: Rows, embedding_norm: str | None, *, version: bool
) -> KeyLayout:
    """fairseq's names: `root` is `decoder.` or `encoder.`; no `embedding_norm` means pre-norm, with a final norm."""
    norm: Rows = (
        (("embeddings.norm.*", f"{embedding_norm}.*"),) if embedding_norm else (("final_norm.*", "layer_norm.*"),)
    )
    embeddings: Rows = ((WORDS, "embed_tokens.weight"), (POSITIONS, "embed_positions.weight"))
    lm_head: Rows = (("lm_head.dense.*", "lm_head.dense.*"), ("lm_head.norm.*", "lm_head.layer_norm.*"))
    versions = (FAIRSEQ_VERSION, *OLD_FAIRSEQ_VERSIONS) if embedding_norm else (FAIRSEQ_VERSION,)
    copies = [f"{root}sentence_encoder.layers.{{i}}.{name}" for name in FAIRSEQ_COPIES]
    return KeyLayout(
        name=name,
        family=family,
        norm_first=embedding_norm is None,
        groups={
            "encoder": _prefixed(f"{root}sentence_encoder.", embeddings + projections + FAIRSEQ_LAYERS + norm),
            "lm_head": _prefixed(root, lm_head),
            "sequence_classifier": (
                ("classifier.dense.*", FAIRSEQ_HEADS + "{head}.dense.*"),
                ("classifier.out_proj.*", FAIRSEQ_HEADS + "{head}.out_proj.*"),
            ),
        },
        decoder={
            True: (("lm_head.decoder.bias", f"{root}lm_head.bias"),),
            False: (("lm_head.decoder.*", f"{root}lm_head.*"),),
        },
        second_names={True: ((WORDS, f"{root}lm_head.weight"),), False: ()},
        writes_second_names=True,  # fairseq loads strictly, and its state dict has both names of the word table
        constants={f"{root}sentence_encoder.version": versions} if version else {},
        leftovers=dict.fromkeys(copies, FAIRSEQ_COPY) if version else {},
        fills={TOKEN_TYPES: "zeros: fairseq has no token types"},
    )


def _torchtext_layout(name: str, family: str, layers: Rows) -> KeyLayout:
    """torchtext's encoder. Its pre-norm variant has the same keys, so it cannot be told apart and is not supported."""
    return KeyLayout(
        name=name,
        family=family,
        norm_first=False,
        groups={"encoder": _prefixed("encoder.transformer.", TORCHTEXT_EMBEDDINGS + layers)},
        fills={TOKEN_TYPES: "zeros: torchtext has no token types"},
    )


LAYOUTS = (
    *(_hf_layout(prefix, norm_first) for norm_first in (False, True) for prefix in ("roberta.", "")),
    *(_native_layout(prefix, norm_first) for norm_first in (False, True) for prefix in ("encoder.", "")),
    # xlmr.base and .large, as published in 2019; every fairseq since then reads this.
    _fairseq_layout("fairseq 2019", "fairseq", "decoder.", FAIRSEQ_FUSED, "emb_layer_norm", version=False),
    # fairseq 0.9 split in_proj, 0.10 said encoder, 1.0 renamed the norm: what a fine-tuned file may look like.
    _fairseq_layout("fairseq 0.9", "fairseq-0.9", "decoder.", FAIRSEQ_SEPARATE, "emb_layer_norm", version=False),
    _fairseq_layout("fairseq 0.10", "fairseq-0.10", "encoder.", FAIRSEQ_SEPARATE, "emb_layer_norm", version=False),
    _fairseq_layout("fairseq 1.0", "fairseq-1.0", "encoder.", FAIRSEQ_SEPARATE, "layernorm_embedding", version=True),
    _fairseq_layout("fairseq pre-norm (XL)", "fairseq", "encoder.", FAIRSEQ_SEPARATE, None, version=True),
    _torchtext_layout("torchtext", "torchtext", TORCHTEXT_PUBLISHED),
    _torchtext_layout("torchtext 0.14", "torchtext-0.14", TORCHTEXT_NEWER),
)
FAMILIES = tuple(dict.fromkeys(layout.family for layout in LAYOUTS))


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: ours that it holds, and the keys it may have, the published one first, each with its group.

    The word table belongs to the encoder, but its second key, the tied decoder, lies with the LM head.
    """

    ours: tuple[str, ...]  # more than one where it is fused: equal parts along the first axis
    group: str
    keys: Mapping[str, str]


def expand(
    layout: KeyLayout, config: XLMRobertaConfig, spec: ModelSpec, heads: Sequence[str] = (FAIRSEQ_HEAD,)
) -> list[Slot]:
    """Every tensor of every group of `layout`, its names written out. heads: the names of fairseq's heads."""
    tied = config.tie_word_embeddings
    groups = dict(layout.groups)
    if layout.our_heads:
        groups |= {name: _same(group.keys) for name, group in known_groups().items() if name not in groups}
    if "lm_head" in groups:
        groups["lm_head"] += layout.decoder[tied]
    second_names = dict(layout.second_names.get(tied, ()))
    slots: list[Slot] = []
    for group, rows in groups.items():
        for ours, theirs in literal(rows, config.num_hidden_layers, heads):
            keys = {theirs: group}
            if len(ours) == 1 and ours[0] in second_names:
                keys[second_names[ours[0]]] = "lm_head"
            slots.append(Slot(tuple(nest(name, group, spec) for name in ours), group, keys))
    return slots


def hf_names(spec: ModelSpec) -> dict[str, str]:
    """transformers' names of the modules above the encoder that have parameters: {ours: theirs}."""
    layout = LAYOUTS[0]
    rows = [row for group in spec.groups for row in layout.groups.get(group.name, _same(group.keys))]
    rows += layout.decoder[False] if LM_HEAD in spec.groups else ()
    return {ours.removesuffix(".*"): theirs.removesuffix(".*") for ours, theirs in rows if isinstance(ours, str)}


def nest(ours: str, group: str, spec: ModelSpec) -> str:
    """The name of a tensor in a class with that spec: a class with a head has encoder and pooler in `encoder.`."""
    return f"encoder.{ours}" if group in ("encoder", "pooler") and not spec.is_encoder else ours


def literal(rows: Rows, num_layers: int, heads: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The rows with `{i}`, `{head}` and `*` written out."""
    for ours, theirs in rows:
        names = (ours,) if isinstance(ours, str) else ours
        for i in range(num_layers if "{i}" in theirs else 1):
            for head in heads if "{head}" in theirs else ("",):
                for leaf in ("weight", "bias") if theirs.endswith("*") else ("",):
                    written = [
                        name.replace("{i}", str(i)).replace("{head}", head).removesuffix("*") + leaf
                        for name in (*names, theirs)
                    ]
                    yield tuple(written[:-1]), written[-1]


def layout_for(family: str, spec: ModelSpec, norm_first: bool) -> KeyLayout | None:
    """The layout to write for a class, or None where the format has no such model."""
    for layout in LAYOUTS:
        fits = layout.with_prefix in (None, spec.with_prefix)
        if fits and layout.family == family and layout.norm_first == norm_first:
            return layout
    return None
