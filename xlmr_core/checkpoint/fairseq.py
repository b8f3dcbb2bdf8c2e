"""What fairseq keeps beside the tensors: settings in place of a config.json, and dict.txt."""

from collections.abc import Iterable, Mapping
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
    "swish": "silu",
}
# Without settings all but the number of heads follows from the shapes. By hidden size: base, large, XL, XXL.
PUBLISHED_HEADS = {768: 12, 1024: 16, 2560: 32, 4096: 32}
WORD_TABLES = ("embed_tokens.weight", "token_embedding.weight")
POSITION_TABLES = ("embed_positions.weight", "positional_embedding.embedding.weight")
UP_PROJECTIONS = ("layers.0.fc1.weight", "layers.0.residual_mlp.mlp.0.weight", "layers.0.linear1.weight")
LAST_OF_LAYER = (".final_layer_norm.weight", ".norm2.weight")
CLASSIFIER = (".out_proj.weight",)
FINAL_NORM = ("sentence_encoder.layer_norm.weight",)
SPECIALS = 4  # <s>, <pad>, </s>, <unk> come before the lines of dict.txt; <mask> follows them


def config_from(settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], path: Path) -> XLMRobertaConfig:
    """The config of a file without a config.json: from fairseq's settings, or else from the shapes.

    From shapes alone dropout is the published 0.1, the activation GELU, and the heads those of the published model of
    that width. Raises CheckpointError, naming the file, for what is missing or cannot be.
    """
    way_out = "Put a config.json beside it"
    try:
        values = _from_settings(settings) if settings else _from_shapes(tensors)
        values["vocab_size"] = _table(tensors, WORD_TABLES).shape[0]
        values["labels"] = _labels(tensors)
        return XLMRobertaConfig(
            **values,
            norm_first=any(key.endswith(FINAL_NORM) for key in tensors),
            layer_norm_eps=EPS,
            pad_token_id=PAD,
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} does not tell its architecture: {error}. {way_out}") from error


def note_on(settings: Mapping[str, Any] | None) -> str:
    """Where the config came from, for a report."""
    if settings:
        return f"note: the config was read from fairseq's settings in the file, with layer-norm eps {EPS}"
    return (
        "note: the file has no config and no settings: sizes are those of its shapes; heads are those of the published "
        f"model of that width; exact GELU, dropout 0.1 and layer-norm eps {EPS} are assumed"
    )


def settings_for(config: XLMRobertaConfig) -> dict[str, Any]:
    """fairseq's settings for a config. Raises CheckpointError for what fairseq cannot express."""
    defaults = (config.bos_token_id, config.pad_token_id, config.eos_token_id)
    if config.layer_norm_eps != EPS or defaults != (0, 1, 2):
        raise CheckpointError(
            f"fairseq's layer-norm eps is always {EPS}, its <s>, <pad>, </s> 0, 1, 2; this model has "
            f"{config.layer_norm_eps} and {', '.join(map(str, defaults))}: it would give other numbers there"
        )
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "arch": "roberta_base" if config.num_hidden_layers <= 12 else "roberta_large",
        "task": "multilingual_masked_lm",
        **{theirs: getattr(config, ours) for ours, theirs in SETTINGS.items()},
        "activation_fn": activations[config.hidden_act],
        "activation_dropout": 0.0,
        "pooler_activation_fn": "tanh",
        "pooler_dropout": config.hidden_dropout_prob
        if config.classifier_dropout is None
        else config.classifier_dropout,
        "max_positions": config.max_tokens,
        "tokens_per_sample": config.max_tokens,
        "encoder_normalize_before": config.norm_first,
        "untie_weights_roberta": not config.tie_word_embeddings,
    }


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
