"""The sizes and the numerics of one XLM-RoBERTa: a frozen dataclass, with the field names of config.json."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from os import PathLike
from typing import Any

from typing_extensions import Self  # typing's own is from Python 3.11

from xlmr_core.errors import shortened

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
LABELS = ("LABEL_0", "LABEL_1")  # the labels of a config.json that names none
OPTIONAL: Mapping[str, type] = {"classifier_dropout": float, "problem_type": str}  # fields that may be None


@dataclass(frozen=True)
class XLMRobertaConfig:
    """Every number that the model depends on. The defaults are those of xlm-roberta-base.

    Two fields have another form in config.json: `norm_first` is the model type xlm-roberta-xl, `labels` is id2label.

    Args:
        vocab_size: entries of the vocabulary, `<mask>` and the other special tokens included.
        hidden_size: width of a token's vector, in features; a multiple of `num_attention_heads`.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: attention heads in each layer.
        intermediate_size: width between the two linear maps of a feed-forward block, in features.
        hidden_act: activation of the feed-forward blocks, one of `ACTIVATIONS`. "gelu" is the exact one, by erf.
        hidden_dropout_prob: dropout of the embeddings and of the output of each sublayer.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        classifier_dropout: dropout in the heads. None means `hidden_dropout_prob`.
        max_position_embeddings: rows of the position table. The first pad_token_id + 1 rows are never used.
        type_vocab_size: rows of the token-type table. XLM-R has one.
        layer_norm_eps: added to the variance in each layer norm.
        initializer_range: standard deviation of fresh weights.
        pad_token_id: id of `<pad>`.
        bos_token_id: id of `<s>`.
        eos_token_id: id of `</s>`.
        tie_word_embeddings: whether the LM head's decoder uses the word table as its weight.
        norm_first: whether layers normalise before each sublayer (XL and XXL) instead of after it.
        labels: names of the classes of a classification head, in the order of its logits.
        problem_type: what the logits of a classifier mean, one of `PROBLEM_TYPES`; None if the file does not say.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field, or a combination of fields, cannot work. The message names the field.
    """

    vocab_size: int = 250002
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    tie_word_embeddings: bool = True
    norm_first: bool = False
    labels: tuple[str, ...] = LABELS
    problem_type: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if field.default is None:
                kind = type(None) if value is None else OPTIONAL[field.name]
            if type(value) is not kind and not (kind is float and type(value) is int):  # not isinstance: True is an int
                raise TypeError(f"{field.name} must be of type {kind.__name__}, got {shortened(value)}")
            if kind is float and type(value) is int and abs(value) > sys.float_info.max:  # JSON has any integer
                raise ValueError(f"{field.name} must be a number that fits a float, got {shortened(value)}")
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "type_vocab_size")
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        ids, last_id = ("pad_token_id", "bos_token_id", "eos_token_id"), self.vocab_size - 1
        self._require("be at least 1", lambda size: size >= 1, *sizes)
        self._require("be at least 0", lambda count: count >= 0, "num_hidden_layers")
        heads = self.num_attention_heads
        self._require(f"be a multiple of num_attention_heads {heads}", lambda size: size % heads == 0, "hidden_size")
        self._require(f"be one of {', '.join(ACTIVATIONS)}", lambda name: name in ACTIVATIONS, "hidden_act")
        self._require("lie in [0, 1)", lambda rate: rate is None or 0 <= rate < 1, *rates)
        self._require("be positive and finite", lambda eps: 0 < eps < inf, "layer_norm_eps")
        self._require("be finite and not negative", lambda std: 0 <= std < inf, "initializer_range")
        self._require(f"be an id of the vocabulary 0..{last_id}", lambda i: 0 <= i <= last_id, *ids)
        self._require("be at least one name", lambda names: names and all(isinstance(n, str) for n in names), "labels")
        self._require(f"be one of {', '.join(PROBLEM_TYPES)}", lambda p: p in (None, *PROBLEM_TYPES), "problem_type")
        used = f"leave a row after those of 0..pad_token_id ({self.pad_token_id}), which no token uses"
        self._require(used, lambda rows: rows > self.pad_token_id + 1, "max_position_embeddings")

    def _require(self, what: str, holds: Callable[[Any], bool], *names: str) -> None:
        """Raises ValueError for the first of the named fields whose value does not do what it must."""
        for name in names:
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must {what}, got {shortened(getattr(self, name))}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head, in features."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head; 1 for a regression or a reranker's score."""
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each class by its number."""
        return dict(enumerate(self.labels))

    @property
    def max_tokens(self) -> int:
        """Longest sequence, in tokens with <s> and </s>: positions start at pad + 1, so 514 rows hold 512 tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config in a parsed config.json; config_json.py says how each field is read.

        Args:
            values: the content of config.json. The fields on which the numbers depend must be present.

        Raises:
            ValueError: it is another architecture, has a feature that this model does not have, or lacks a field.
            TypeError: a field has the wrong type.
        """
        from xlmr_core.config_json import arguments_in

        return cls(**arguments_in(values, HONOURED))

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Self:
        """Reads config.json.

        Raises:
            ValueError: the file is not a config that this model can follow. The message names the file.
        """
        from xlmr_core.json_files import read_json_object

        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The config as config.json spells it: `from_dict` reads it back and transformers understands it."""
        from xlmr_core.config_json import values_of

        return values_of(asdict(self), LABELS)


HONOURED = frozenset(field.name for field in fields(XLMRobertaConfig)) - {"labels"}  # fields of config.json
