"""What fairseq keeps beside the tensors: settings in place of a config.json, and dict.txt."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xlmr_core.config import LABELS, XLMRobertaConfig
from xlmr_core.errors import CheckpointError
from xlmr_core.json_files import TOKENIZER_LIMIT, check_size, read_text

EPS = 1e-5  # fairseq's LayerNorm has no setting for it (torch.nn.LayerNorm's default)
PAD = 1
SETTINGS = {  # ours -> fairseq's (models/roberta/model.py)
    "num_hidden_layers": "encoder_layers",
    "hidden_size": "encoder_embed_dim",
    "intermediate_size": "encoder_ffn_embed_dim",
    "num_attention_heads": "encoder_attention_heads",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
# fairseq's "gelu" is exact, "gelu_accurate" and the older "gelu_fast" are the tanh formula (utils.get_activation_fn).
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
}
# What fairseq's code reads and this model has no choice of: written as it must be, refused where it is something else.
FIXED = {
    "no_scale_embedding": True,  # otherwise the word vectors are multiplied by sqrt(hidden size)
    "no_token_positional_embeddings": False,
    "encoder_learned_pos": True,
    "adaptive_input": False,
    "encoder_layers_to_keep": None,  # otherwise fairseq leaves out layers of the file when it loads
    "decoder_layers_to_keep": None,  # what 0.9 makes of it
    "quant_noise_scalar": 0,  # otherwise fairseq rounds weights and activations to 8 bits, in eval mode too
    "spectral_norm_classification_head": False,
}
# What fairseq's code reads besides: `seed` in the task, `quant_noise_pq` in 0.10's encoder, both without a default.
UNTRAINED = {
    "seed": 1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "quant_noise_pq": 0,
    "quant_noise_pq_block_size": 8,
}
TRAINING_ONLY = ("activation_dropout", "encoder_layerdrop")  # of the settings that this model has no place for
LM_HEAD_ACTIVATION = "gelu"  # of this model's LM head, whatever hidden_act says: as in transformers
HEAD_ACTIVATION = "tanh"  # of its classification head
# Without settings all but the number of heads follows from the shapes. By hidden size: base, large, XL, XXL.
PUBLISHED_HEADS = {768: 12, 1024: 16, 2560: 32, 4096: 32}
WORD_TABLES = ("embed_tokens.weight", "token_embedding.weight")
POSITION_TABLES = ("embed_positions.weight", "positional_embedding.embedding.weight")
UP_PROJECTIONS = ("layers.0.fc1.weight", "layers.0.residual_mlp.mlp.0.weight", "layers.0.linear1.weight")
LAST_OF_LAYER = (".final_layer_norm.weight", ".norm2.weight")
CLASSIFIER = (".out_proj.weight",)
FINAL_NORM = ("sentence_encoder.layer_norm.weight",)
EMBEDDING_NORM = ("sentence_encoder.layernorm_embedding.weight",)  # since 1.0
LM_HEAD = ("lm_head.dense.weight",)
SPECIALS = 4  # <s>, <pad>, </s>, <unk> come before the lines of dict.txt; <mask> follows them


def config_from(settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], path: Path) -> XLMRobertaConfig:
    """The config of a file without a config.json: from fairseq's settings, or else from the shapes.

    From shapes alone dropout is the published 0.1, the activation GELU, and the heads those of the published model of
    that width. Raises CheckpointError, naming the file, for what is missing or cannot be.
    """
    way_out = "Put a config.json beside it"
    check_settings(settings, tensors, path)
    try:
        values = _from_settings(settings) if settings else _from_shapes(tensors)
        values["vocab_size"] = _table(tensors, WORD_TABLES).shape[0]
        values["labels"] = _labels(tensors)
        return XLMRobertaConfig(
            **values,
            norm_first=_has(tensors, FINAL_NORM),
            layer_norm_eps=EPS,
            pad_token_id=PAD,
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} does not describe its architecture: {error}. {way_out}") from error


def check_settings(settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError, naming the file, for a setting under which fairseq computes what this model does not.

    A config.json beside the file does not help: it has no field for these.
    """
    settings = settings or {}
    problems = [
        f"{name} {settings[name]!r} where this model has {value!r}"
        for name, value in FIXED.items()
        if settings.get(name) is not None and (settings[name] or value) and settings[name] != value
    ]
    activation, head_activation = settings.get("activation_fn"), settings.get("pooler_activation_fn")
    if _has(tensors, LM_HEAD) and activation not in (None, LM_HEAD_ACTIVATION):
        problems.append(
            f"activation_fn {activation!r}, which in fairseq is the LM head's too; the LM head here has exact GELU. "
            "Without the keys of its LM head the file can be read as an encoder"
        )
    if any(key.startswith("classification_heads.") for key in tensors) and head_activation not in (
        None,
        HEAD_ACTIVATION,
    ):
        problems.append(
            f"pooler_activation_fn {head_activation!r}, which is its classification head's; the head here has tanh. "
            "Without the keys of the head the file can be read"
        )
    if settings.get("encoder_normalize_before") and _has(tensors, EMBEDDING_NORM):
        problems.append(
            "encoder_normalize_before True, and yet a norm of the embeddings: a pre-norm model has none here"
        )
    if problems:
        raise CheckpointError(f"{path} cannot be loaded: fairseq's settings in it say {'; and '.join(problems)}")


def note_on(settings: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Where the config came from, for a report."""
    if not settings:
        return (
            "note: the file has no config and no settings: sizes are those of its shapes; heads are those of the "
            f"published model of that width; exact GELU, dropout 0.1 and layer-norm eps {EPS} are assumed",
        )
    trained_with = ", ".join(f"{name} {settings[name]}" for name in TRAINING_ONLY if settings.get(name))
    return (
        f"note: the config was read from fairseq's settings in the file, with layer-norm eps {EPS}",
        *((f"note: it was trained with {trained_with}, which this model does not have",) if trained_with else ()),
    )


def settings_for(config: XLMRobertaConfig, groups: Collection[str], family: str) -> dict[str, Any]:
    """fairseq's settings for a file with these groups, to be written in the layout `family`.

    They are all that the code of 0.9.0, 0.10.2, 0.12.2 and the last state of its repository reads to build the model,
    with and without a default. Raises CheckpointError for what fairseq cannot express.
    """
    defaults = (config.bos_token_id, config.pad_token_id, config.eos_token_id)
    if config.layer_norm_eps != EPS or defaults != (0, 1, 2):
        raise CheckpointError(
            f"fairseq's layer-norm eps is always {EPS}, its <s>, <pad>, </s> 0, 1, 2; this model has "
            f"{config.layer_norm_eps} and {', '.join(map(str, defaults))}: it would give other numbers there"
        )
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    activation = activations.get(config.hidden_act)
    if activation is None:
        raise CheckpointError(f"fairseq has no activation_fn that is hidden_act {config.hidden_act!r}")
    if "lm_head" in groups and activation != LM_HEAD_ACTIVATION:
        raise CheckpointError(
            f"fairseq uses activation_fn in the LM head too: with hidden_act {config.hidden_act!r} it would give other "
            "logits. Leave lm_head out on purpose (drop), or choose another layout"
        )
    if family == "fairseq-0.9" and not config.tie_word_embeddings:
        raise CheckpointError("fairseq 0.9 always ties the decoder to the word table: choose another layout")
    own = config.classifier_dropout
    return {
        "arch": "roberta_base" if config.num_hidden_layers <= 12 else "roberta_large",
        "task": "multilingual_masked_lm",
        **{theirs: getattr(config, ours) for ours, theirs in SETTINGS.items()},
        "activation_fn": activation,
        "pooler_activation_fn": HEAD_ACTIVATION,
        "pooler_dropout": config.hidden_dropout_prob if own is None else own,
        "max_positions": config.max_tokens,
        "max_source_positions": config.max_tokens,
        "tokens_per_sample": config.max_tokens,
        "encoder_normalize_before": config.norm_first,
        "layernorm_embedding": not config.norm_first,
        "untie_weights_roberta": not config.tie_word_embeddings,
        **FIXED,
        **UNTRAINED,
    }


def notes_for(config: XLMRobertaConfig, groups: Collection[str], family: str) -> tuple[str, ...]:
    """What a report should say of a file written in the layout `family`."""
    notes: list[str] = []
    if "lm_head" not in groups:
        notes.append(
            "note: without an LM head the file is not opened by fairseq's own from_pretrained, which loads strictly"
        )
    if family == "fairseq" and not config.norm_first and not config.tie_word_embeddings:
        notes.append("note: fairseq 0.9 ties the decoder to the word table all the same; later versions do not")
    return tuple(notes)


def _from_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    lengths = [settings[name] for name in ("max_positions", "tokens_per_sample") if settings.get(name) is not None]
    missing = [name for name in (*SETTINGS.values(), "activation_fn") if name not in settings]
    if missing or not lengths:
        raise KeyError(f"its settings have no {', '.join(missing) or 'max_positions'}")
    if settings["activation_fn"] not in ACTIVATIONS:
        raise ValueError(f"activation_fn {settings['activation_fn']!r} is not one of {', '.join(ACTIVATIONS)}")
    return {
        **{ours: settings[theirs] for ours, theirs in SETTINGS.items()},
        "hidden_act": ACTIVATIONS[settings["activation_fn"]],
        "classifier_dropout": settings.get("pooler_dropout"),
        "max_position_embeddings": lengths[0] + PAD + 1,
        "tie_word_embeddings": not settings.get("untie_weights_roberta", False),
    }


def _from_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width = _table(tensors, WORD_TABLES).shape[1]
    if width not in PUBLISHED_HEADS:
        raise ValueError(f"no published model is {width} wide, so the number of heads is not known")
    return {
        "hidden_size": width,
        "num_attention_heads": PUBLISHED_HEADS[width],
        "num_hidden_layers": sum(key.endswith(LAST_OF_LAYER) for key in tensors),
        "intermediate_size": _table(tensors, UP_PROJECTIONS).shape[0],
        "max_position_embeddings": _table(tensors, POSITION_TABLES).shape[0],
    }


def _has(tensors: Mapping[str, Tensor], endings: tuple[str, ...]) -> bool:
    return any(key.endswith(endings) for key in tensors)


def _table(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """The one matrix whose key ends in one of `names`."""
    found = [tensor for key, tensor in tensors.items() if key.endswith(names)]
    if len(found) != 1 or found[0].dim() != 2:
        raise ValueError(f"it has {len(found)} matrices named {' or '.join(names)}")
    return found[0]


def _labels(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    heads = [
        tensor
        for key, tensor in tensors.items()
        if key.startswith("classification_heads.") and key.endswith(CLASSIFIER)
    ]
    return tuple(f"LABEL_{i}" for i in range(heads[0].shape[0])) if len(heads) == 1 else LABELS


# ---- dict.txt -------------------------------------------------------------------------------------------------------


def check_dictionary(dictionary: Path, pieces: Iterable[str]) -> None:
    """Raises CheckpointError unless dict.txt lists the pieces of the SentencePiece model, in its order.

    fairseq's ids count the lines of dict.txt; ours count pieces. `pieces` leaves out <unk>, <s> and </s>.
    """
    try:
        text = read_text(dictionary, TOKENIZER_LIMIT)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    listed = [line.rsplit(" ", 1)[0] for line in text.split("\n") if line]
    expected = list(pieces)
    for number, (theirs, ours) in enumerate(zip(listed, expected), start=1):  # noqa: B905 (lengths are compared below)
        if theirs != ours:
            raise CheckpointError(
                f"{dictionary}, line {number}, has {theirs!r} where the SentencePiece model has {ours!r}: "
                "the two do not belong together, and ids would mean other pieces"
            )
    if len(listed) != len(expected):
        raise CheckpointError(f"{dictionary} lists {len(listed)} pieces; the SentencePiece model has {len(expected)}")


def dictionary_of(pieces: Iterable[str]) -> str:
    """dict.txt for these pieces. The counts, which only fairseq's own training used, are all 1."""
    return "".join(f"{piece} 1\n" for piece in pieces)


def pieces_of(tokenizer: Path) -> list[str]:
    """The pieces of a SentencePiece model that dict.txt lists: all but the first three, which are special."""
    from sentencepiece import SentencePieceProcessor

    try:
        check_size(tokenizer, TOKENIZER_LIMIT)
        model = SentencePieceProcessor(model_file=str(tokenizer))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{tokenizer} is not a SentencePiece model ({error})") from error
    return [str(model.IdToPiece(i)) for i in range(3, model.GetPieceSize())]
