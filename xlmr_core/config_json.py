"""How config.json is read and written. A reader of the model may skip this file: config.py has the fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from xlmr_core.config_fields import check_features
from xlmr_core.errors import shortened

POST_NORM_TYPES = ("xlm-roberta", "roberta", "camembert")  # one architecture under three names
PRE_NORM_TYPES = ("xlm-roberta-xl",)
MAX_LABELS = 1_000_000  # a config.json may say anything
# The numbers of a loaded encoder do not depend on these fields: they have defaults.
WITH_DEFAULT = {"initializer_range", "tie_word_embeddings", "norm_first", "classifier_dropout", "problem_type"}


def arguments_in(values: Mapping[str, Any], honoured: frozenset[str]) -> dict[str, Any]:
    """The arguments of `XLMRobertaConfig` in a parsed config.json.

    The fields on which the numbers depend must be present: a default taken in silence (eps 1e-12 for 1e-5, say) is the
    classic way for a port to be slightly wrong. config_fields.py has the fields of other kinds.

    Args:
        values: the content of config.json.
        honoured: the fields of config.json that `XLMRobertaConfig` has.

    Raises:
        ValueError: another architecture, a feature that this model does not have, a missing field, or labels that do
            not name the classes 0, 1, 2, ...
        TypeError: `architectures` is not a list of names.
    """
    model_type = values.get("model_type")
    if model_type not in POST_NORM_TYPES + PRE_NORM_TYPES:
        raise ValueError(
            f"model_type {shortened(model_type)} is not XLM-RoBERTa (one of "
            f"{', '.join(POST_NORM_TYPES + PRE_NORM_TYPES)}). A checkpoint may use XLM-R's vocabulary and still be "
            "another architecture: multilingual-e5-small, for one, is BERT"
        )
    check_features(values)
    missing = sorted(honoured - WITH_DEFAULT - values.keys())
    if missing:
        raise ValueError(f"config.json has no {', '.join(missing)}: a value assumed in silence would be a guess")
    is_xl = model_type in PRE_NORM_TYPES or any(name.startswith("XLMRobertaXL") for name in _architectures(values))
    arguments: dict[str, Any] = {"norm_first": is_xl}
    if (labels := _labels_in(values)) is not None:
        arguments["labels"] = labels
    return arguments | {name: values[name] for name in honoured & values.keys()}


def values_of(fields: Mapping[str, Any], default_labels: Sequence[str]) -> dict[str, Any]:
    """The content of config.json for a config with these fields, which `arguments_in` reads back."""
    values = {name: value for name, value in fields.items() if name not in ("norm_first", "labels")}
    if values["problem_type"] is None:
        del values["problem_type"]
    labels: Sequence[str] = fields["labels"]
    if labels != default_labels:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return {"model_type": "xlm-roberta-xl" if fields["norm_first"] else "xlm-roberta", **values}


def _architectures(values: Mapping[str, Any]) -> list[str]:
    """The names of transformers' classes in a parsed config.json."""
    names = values.get("architectures")
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"architectures must be a list of names, got {shortened(names)}")
    return names


def _labels_in(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes: from id2label, or made up from num_labels as transformers does; None without both."""
    names, count = values.get("id2label"), values.get("num_labels")
    if names is None:
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_LABELS):
            raise ValueError(f"num_labels must be a whole number in 1..{MAX_LABELS}, got {shortened(count)}")
        return None if count is None else tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(len(names))}:
        raise ValueError(f"id2label must name the classes 0, 1, 2, ..., each once, got {shortened(names)}")
    by_number = {int(key): name for key, name in names.items()}
    return tuple(by_number[i] for i in range(len(names)))
