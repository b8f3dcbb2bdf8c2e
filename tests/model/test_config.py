"""XLMRobertaConfig: what it accepts, what it refuses, and that it says which field is wrong."""

import json
import math
import os
import shutil
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import XLMRobertaConfig as TheirConfig
from transformers import XLMRobertaXLConfig as TheirXLConfig

from xlmr_core import XLMRobertaForMaskedLM
from xlmr_core.config import HONOURED, XLMRobertaConfig
from xlmr_core.config_fields import unknown_fields
from xlmr_core.json_files import JSON_LIMIT

# The encoder part of the published xlm-roberta-base/config.json.
PUBLISHED: dict[str, Any] = {
    "architectures": ["XLMRobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": 250002,
}


# A loaded encoder's numbers do not depend on these.
OPTIONAL = {"initializer_range", "tie_word_embeddings", "norm_first", "classifier_dropout", "problem_type", "labels"}


def test_the_defaults_are_xlm_roberta_base() -> None:
    assert XLMRobertaConfig.from_dict(PUBLISHED) == XLMRobertaConfig()


def test_the_published_file(shared: Path) -> None:
    config = XLMRobertaConfig.from_json(shared / "tokenizer" / "xlm-roberta-base" / "config.json")
    assert config == XLMRobertaConfig()
    assert config.max_tokens == 512
    assert config.head_dim == 64


@pytest.mark.parametrize("norm_first", [False, True])
def test_to_dict_is_read_back_and_understood_by_transformers(norm_first: bool) -> None:
    config = XLMRobertaConfig(vocab_size=60, layer_norm_eps=3e-3, hidden_act="relu", norm_first=norm_first)
    values = config.to_dict()
    assert XLMRobertaConfig.from_dict(json.loads(json.dumps(values))) == config
    theirs = (TheirXLConfig if norm_first else TheirConfig)(**values)
    assert theirs.model_type == values["model_type"] == ("xlm-roberta-xl" if norm_first else "xlm-roberta")
    for name, value in asdict(config).items():
        assert name in ("norm_first", "labels") or getattr(theirs, name) == value


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    TheirConfig(vocab_size=60, hidden_size=24, num_attention_heads=4).save_pretrained(tmp_path)
    config = XLMRobertaConfig.from_json(tmp_path / "config.json")
    assert (config.vocab_size, config.hidden_size, config.num_attention_heads) == (60, 24, 4)
    TheirXLConfig(hidden_size=24, num_attention_heads=4).save_pretrained(tmp_path)
    assert XLMRobertaConfig.from_json(tmp_path / "config.json").norm_first


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "LABEL_0"}}, ("LABEL_0",)),
        ({"id2label": {"1": "B", "0": "A", "2": "B"}}, ("A", "B", "B")),
        ({"id2label": {0: "A"}}, ("A",)),
    ],
)
def test_labels(names: dict[str, Any], labels: tuple[str, ...]) -> None:
    config = XLMRobertaConfig.from_dict({**PUBLISHED, **names})
    assert config.labels == labels
    assert config.num_labels == len(labels)
    assert config.id2label == dict(enumerate(labels))
    assert XLMRobertaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = TheirConfig(**config.to_dict())
    assert (theirs.id2label, theirs.num_labels) == (config.id2label, config.num_labels)


def test_twelve_labels_are_read_in_the_order_of_their_numbers() -> None:
    names = {str(i): f"label {i}" for i in sorted(range(12), key=str)}  # 0, 1, 10, 11, 2, ...
    assert XLMRobertaConfig.from_dict({**PUBLISHED, "id2label": names}).labels[10] == "label 10"


@pytest.mark.parametrize(
    "names",
    [
        {"id2label": {"1": "A", "2": "B"}},
        {"id2label": {"0": "A", "00": "B"}},
        {"id2label": {"a": "A"}},
        {"id2label": ["A", "B"]},
        {"id2label": {}},
        {"id2label": {"0": 7}},
        {"num_labels": 0},
        {"num_labels": 10**12},
        {"num_labels": True},
        {"num_labels": "2"},
    ],
    ids=str,
)
def test_labels_that_cannot_be_meant(names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"id2label must name|num_labels must be|labels must be at least one name"):
        XLMRobertaConfig.from_dict({**PUBLISHED, **names})


@pytest.mark.parametrize("rate", [None, 0.0, 0.3])
def test_classifier_dropout(rate: float | None) -> None:
    config = XLMRobertaConfig.from_dict({**PUBLISHED, "classifier_dropout": rate})
    assert config.classifier_dropout == rate
    assert XLMRobertaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("rate", "error"), [(1.0, ValueError), (-0.1, ValueError), ("0.1", TypeError)])
def test_classifier_dropout_that_cannot_be_meant(rate: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="classifier_dropout must"):
        XLMRobertaConfig.from_dict({**PUBLISHED, "classifier_dropout": rate})


@pytest.mark.parametrize("model_type", ["xlm-roberta", "roberta", "camembert"])
def test_the_three_names_of_one_architecture(model_type: str) -> None:
    assert XLMRobertaConfig.from_dict({**PUBLISHED, "model_type": model_type}) == XLMRobertaConfig()


def test_xl_is_pre_norm_under_either_name() -> None:
    assert XLMRobertaConfig.from_dict({**PUBLISHED, "model_type": "xlm-roberta-xl"}).norm_first
    early_xxl = {**PUBLISHED, "architectures": ["XLMRobertaXLForMaskedLM"]}
    assert XLMRobertaConfig.from_dict(early_xxl).norm_first
    assert not XLMRobertaConfig.from_dict({**PUBLISHED, "architectures": None}).norm_first


def test_tying_is_read_and_on_by_default() -> None:
    assert XLMRobertaConfig.from_dict(PUBLISHED).tie_word_embeddings
    assert not XLMRobertaConfig.from_dict({**PUBLISHED, "tie_word_embeddings": False}).tie_word_embeddings


def test_zero_layers_and_an_integer_for_a_float_are_allowed() -> None:
    config = XLMRobertaConfig(num_hidden_layers=0, hidden_dropout_prob=0)
    assert config.num_hidden_layers == config.hidden_dropout_prob == 0


def test_a_config_cannot_be_changed_by_accident() -> None:
    config = XLMRobertaConfig()
    with pytest.raises(FrozenInstanceError):
        config.hidden_size = 1024  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(config, hidden_size=1200).head_dim == 100


FOREIGN = {
    "bert": ({"model_type": "bert"}, r"model_type 'bert' is not XLM-RoBERTa .*multilingual-e5-small, for one, is BERT"),
    "none": ({"model_type": None}, "model_type None is not XLM-RoBERTa"),
    "rotary": ({"position_embedding_type": "rotary"}, "position_embedding_type 'rotary' asks for something"),
    "relative": ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    "decoder": ({"is_decoder": True}, "is_decoder True asks for something that this encoder does not have"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention True asks for something"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "remove pruned_heads from config.json"),
    "adapters": ({"adapters": {"adapters": {"ner": "pfeiffer"}}}, "adapters .* asks for something"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config .* asks for something"),
    "problem": ({"problem_type": "ranking"}, "problem_type must be one of regression, .*, got 'ranking'"),
    "gelu": ({"hidden_act": "gelu_fast"}, "hidden_act must be one of gelu, .*, got 'gelu_fast'"),
}


def test_features_that_are_switched_off_are_accepted() -> None:
    off = {"adapters": {"adapters": {}, "fusions": {}}, "pruned_heads": {}, "is_decoder": False, "auto_map": None}
    assert XLMRobertaConfig.from_dict({**PUBLISHED, **off}) == XLMRobertaConfig.from_dict(PUBLISHED)


def test_every_field_that_transformers_writes_is_known() -> None:
    for kind in (TheirConfig, TheirXLConfig):
        written = kind(problem_type="regression").to_dict()
        assert unknown_fields(written, HONOURED) == []


def test_an_unknown_field_is_named_in_the_report_of_loading(tmp_path: Path, toy_checkpoint: Path) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"my_experiment": 7, "use_cache": True}))
    report = str(XLMRobertaForMaskedLM.from_pretrained(tmp_path / "model").load_report)
    assert "note: config.json has fields that are not known here and were not used: my_experiment" in report
    assert "use_cache" not in report


def test_the_problem_type_comes_back(tmp_path: Path) -> None:
    assert "problem_type" not in XLMRobertaConfig().to_dict()
    config = XLMRobertaConfig(problem_type="regression", labels=("score",))
    assert XLMRobertaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_another_architecture(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XLMRobertaConfig.from_dict({**PUBLISHED, **change})


@pytest.mark.parametrize("name", sorted(set(asdict(XLMRobertaConfig())) - OPTIONAL))
def test_a_missing_field_is_never_guessed(name: str) -> None:
    values = {key: value for key, value in PUBLISHED.items() if key != name}
    with pytest.raises(ValueError, match=rf"config.json has no {name}: .* would be a guess"):
        XLMRobertaConfig.from_dict(values)


def test_every_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"no attention_probs_dropout_prob, .*hidden_size, .*vocab_size"):
        XLMRobertaConfig.from_dict({"model_type": "xlm-roberta"})


WRONG_TYPES = [
    ("hidden_size", "768", "hidden_size must be of type int, got '768'"),
    ("hidden_size", 768.0, "hidden_size must be of type int, got 768.0"),
    ("num_hidden_layers", True, "num_hidden_layers must be of type int, got True"),
    ("pad_token_id", None, "pad_token_id must be of type int, got None"),
    ("eos_token_id", [2], r"eos_token_id must be of type int, got \[2\]"),
    ("layer_norm_eps", "1e-5", "layer_norm_eps must be of type float, got '1e-5'"),
    ("hidden_dropout_prob", False, "hidden_dropout_prob must be of type float, got False"),
    ("hidden_act", None, "hidden_act must be of type str, got None"),
    ("tie_word_embeddings", 1, "tie_word_embeddings must be of type bool, got 1"),
    ("norm_first", "no", "norm_first must be of type bool, got 'no'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_TYPES)
def test_a_field_of_the_wrong_type(name: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        XLMRobertaConfig(**{name: value})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PUBLISHED, name: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        XLMRobertaConfig.from_json(file)


IMPOSSIBLE = [
    ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ({"hidden_size": -768}, "hidden_size must be at least 1, got -768"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
    ({"type_vocab_size": 0}, "type_vocab_size must be at least 1, got 0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 0, got -1"),
    ({"num_attention_heads": 7}, "hidden_size must be a multiple of num_attention_heads 7, got 768"),
    ({"hidden_act": "gelu_new"}, "hidden_act must be one of gelu, gelu_pytorch_tanh, relu, silu, got 'gelu_new'"),
    ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\), got 1.0"),
    ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob must lie in \[0, 1\), got -0.1"),
    ({"hidden_dropout_prob": math.nan}, r"hidden_dropout_prob must lie in \[0, 1\), got nan"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive and finite, got 0.0"),
    ({"layer_norm_eps": math.nan}, "layer_norm_eps must be positive and finite, got nan"),
    ({"layer_norm_eps": math.inf}, "layer_norm_eps must be positive and finite, got inf"),
    ({"initializer_range": -0.02}, "initializer_range must be finite and not negative, got -0.02"),
    ({"initializer_range": math.nan}, "initializer_range must be finite and not negative, got nan"),
    ({"pad_token_id": 250002}, "pad_token_id must be an id of the vocabulary 0..250001, got 250002"),
    ({"bos_token_id": -1}, "bos_token_id must be an id of the vocabulary .*, got -1"),
    ({"eos_token_id": 250002}, "eos_token_id must be an id of the vocabulary .*, got 250002"),
    ({"max_position_embeddings": 2}, r"max_position_embeddings must leave a row after .*pad_token_id \(1\), .*, got 2"),
    ({"pad_token_id": 600}, "max_position_embeddings must leave a row .*, got 514"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE)
def test_a_combination_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XLMRobertaConfig(**change)


def test_an_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="hidden_dim"):
        XLMRobertaConfig(hidden_dim=768)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"xlm-roberta"'])
def test_a_file_that_is_no_config_names_the_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        XLMRobertaConfig.from_json(file)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.touch()
    os.truncate(file, 2**33)  # sparse: it takes no room
    with pytest.raises(ValueError, match=rf"config\.json: it has {2**33} bytes, at most {JSON_LIMIT} are read"):
        XLMRobertaConfig.from_json(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": [1]}, r"architectures must be a list of names, got \[1\]"),
        ({"architectures": [None]}, r"architectures must be a list of names, got \[None\]"),
        ({"architectures": "XLMRobertaModel"}, "architectures must be a list of names"),
        ({"layer_norm_eps": 10**400}, r"layer_norm_eps must be a number that fits a float, got 10{79}\.\.\."),
        ({"initializer_range": 10**400}, "initializer_range must be a number that fits a float"),
        ({"hidden_size": "x" * 10_000}, r"hidden_size must be of type int, got 'x{79}\.\.\.$"),
    ],
)
def test_an_odd_value_is_named_with_its_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**XLMRobertaConfig().to_dict(), **change}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        XLMRobertaConfig.from_json(file)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json: "):
        XLMRobertaConfig.from_json(file)
