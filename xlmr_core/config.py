"""The shape and the numerics of one XLM-RoBERTa: a frozen dataclass, with the field names of config.json."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from os import PathLike
from typing import Any

from typing_extensions import Self  # typing's own is from Python 3.11

from xlmr_core.config_fields import check_features
from xlmr_core.json_files import read_json_object

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")
POST_NORM_TYPES = ("xlm-roberta", "roberta", "camembert")  # one architecture under three names
PRE_NORM_TYPES = ("xlm-roberta-xl",)
LABELS = ("LABEL_0", "LABEL_1")  # what config.json means when it names none
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
OPTIONAL: Mapping[str, type] = {"classifier_dropout": float, "problem_type": str}  # fields that may be None
MAX_LABELS = 1_000_000  # a config.json may say anything
LONGEST_MESSAGE = 300  # characters
LARGEST_FLOAT = sys.float_info.max
LONGEST_VALUE = 80  # characters of a value in a message


@dataclass(frozen=True)
class XLMRobertaConfig:
    """Every number the model depends on. The defaults are those of xlm-roberta-base.

    Two fields config.json spells in another way. `norm_first` is True for XL and XXL, whose layers normalise before
    each sublayer instead of after it. `labels` are the names of what a classification head tells apart, in the order
    of its logits (`id2label`). Raises TypeError for a field of the wrong type, ValueError for a combination that
    cannot work; both name the field.
    """

    vocab_size: int = 250002
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # in the heads; None: as hidden_dropout_prob
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
    problem_type: str | None = None  # one of PROBLEM_TYPES: what the logits of a classifier mean

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if field.default is None:
                kind = type(None) if value is None else OPTIONAL[field.name]
            if type(value) is not kind and not (kind is float and type(value) is int):  # not isinstance: True is an int
                raise TypeError(f"{field.name} must be of type {kind.__name__}, not {shortened(value)}")
            if type(value) is int and kind is float and abs(value) > LARGEST_FLOAT:  # JSON has integers of any size
                raise ValueError(f"{field.name} must be a number that fits a float, not {shortened(value)}")
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must not be negative, not {self.num_hidden_layers}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if not 0 < self.layer_norm_eps < inf:
            raise ValueError(f"layer_norm_eps must be positive and finite, not {self.layer_norm_eps}")
        if not 0 <= self.initializer_range < inf:
            raise ValueError(f"initializer_range must be finite and not negative, not {self.initializer_range}")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} lies outside the vocabulary of {self.vocab_size}")
        if not self.labels or not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels must be at least one name, not {self.labels}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type {self.problem_type!r} is not one of {', '.join(PROBLEM_TYPES)}")
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position for a token: "
                f"rows 0 to pad_token_id ({self.pad_token_id}) are never used"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head, in features."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_labels(self) -> int:
        """How many classes a classification head tells apart; 1 for a regression or a reranker's score."""
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
        """The config in a parsed config.json.

        The fields that fix the numbers must be present: a default taken in silence (eps 1e-12 for 1e-5, say) is the
        classic way for a port to be slightly wrong. config_fields.py has the fields of other kinds.
        Raises ValueError for another architecture, a feature this model does not have, or a missing field, and
        TypeError for a field of the wrong type.
        """
        model_type = values.get("model_type")
        if model_type not in POST_NORM_TYPES + PRE_NORM_TYPES:
            raise ValueError(
                f"model_type {model_type!r} is not XLM-RoBERTa (one of {', '.join(POST_NORM_TYPES + PRE_NORM_TYPES)}). "
                "A checkpoint may use XLM-R's vocabulary and still be another architecture: "
                "multilingual-e5-small, for one, is BERT"
            )
        check_features(values)
        # No effect on a loaded encoder's numbers.
        optional = {"initializer_range", "tie_word_embeddings", "norm_first", "classifier_dropout", "problem_type"}
        missing = sorted(HONOURED - optional - values.keys())
        if missing:
            raise ValueError(f"config.json has no {', '.join(missing)}: a value assumed in silence would be a guess")
        is_xl = model_type in PRE_NORM_TYPES or any(name.startswith("XLMRobertaXL") for name in _architectures(values))
        chosen: dict[str, Any] = {"norm_first": is_xl, "labels": _labels_in(values)}
        chosen.update((name, values[name]) for name in HONOURED & values.keys())
        return cls(**chosen)

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Self:
        """Reads config.json. Raises ValueError, naming the file, if it is not a config this model can follow."""
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The config as config.json spells it: what `from_dict` reads back and transformers understands."""
        values = asdict(self)
        norm_first = values.pop("norm_first")
        if self.problem_type is None:
            del values["problem_type"]
        if values.pop("labels") != LABELS:
            values["id2label"] = {str(i): label for i, label in self.id2label.items()}
            values["label2id"] = {label: i for i, label in self.id2label.items()}
        return {"model_type": "xlm-roberta-xl" if norm_first else "xlm-roberta", **values}


HONOURED = frozenset(field.name for field in fields(XLMRobertaConfig)) - {"labels"}  # fields of config.json


def shortened(value: Any) -> str:
    """The value as a message shows it, on one line and not longer than LONGEST_VALUE."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested too deeply
        text = f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _architectures(values: Mapping[str, Any]) -> list[str]:
    """The names of transformers' classes in a parsed config.json."""
    names = values.get("architectures")
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"architectures must be a list of names, not {shortened(names)}")
    return names


def _labels_in(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a parsed config.json: from id2label, or made up from num_labels as HF does."""
    names, count = values.get("id2label"), values.get("num_labels")
    if names is None:
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_LABELS):
            raise ValueError(f"num_labels must be a whole number from 1 to {MAX_LABELS}, not {count!r}")
        return LABELS if count is None else tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(len(names))}:
        raise ValueError(f"id2label must name the classes 0, 1, 2, ..., each once, not {names!r}"[:LONGEST_MESSAGE])
    by_number = {int(key): name for key, name in names.items()}
    return tuple(by_number[i] for i in range(len(names)))
