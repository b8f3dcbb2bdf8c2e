"""Files of fairseq's own: what else lies in them, what its settings change, and what its code asks of ours.

fairseq_facts.json has what was recorded from fairseq's running code (see test_fairseq_live.py, which runs it).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import fairseq_files
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.fairseq import FIXED, settings_for
from xlmr_core.checkpoint.inspection import inspect_checkpoint
from xlmr_core.checkpoint.layouts import FAMILIES
from xlmr_core.checkpoint.mapping import make_plan
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "fairseq_facts.json").read_text(encoding="utf-8"))
POST_NORM = replace(reference.POST_NORM, num_hidden_layers=FACTS["layers"], layer_norm_eps=1e-5)
PRE_NORM = replace(POST_NORM, norm_first=True)
COPIES = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")
COPIES += ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
FAIRSEQ_FAMILIES = [family for family in FAMILIES if family.startswith("fairseq")]


def write(folder: Path, state: Mapping[str, Tensor], config: XLMRobertaConfig, **settings: Any) -> Path:
    """A model.pt with these tensors, and these settings besides those of the config."""
    content = fairseq_files.fairseq_checkpoint(state, config)
    vars(content["args"]).update(settings)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def states() -> dict[bool, dict[str, Tensor]]:
    """By norm_first: random weights in the layout of fairseq 0.12."""
    return {
        config.norm_first: fairseq_files.fairseq_state(fairseq_files.hf_state(config), config, "fairseq-1.0")
        for config in (POST_NORM, PRE_NORM)
    }


# ---- copies for the fast path of 0.12.2 -----------------------------------------------------------------------------


def with_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as fairseq 0.12.2 saves it: a stale copy of each matrix of each layer beside the live one."""
    copies = {
        f"encoder.sentence_encoder.layers.{i}.{name}": torch.full((2, 2), 9.0)
        for i in range(FACTS["layers"])
        for name in COPIES
    }
    return {**state, **copies}


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_copies_for_the_fast_path_are_dropped(config: XLMRobertaConfig, states: dict, tmp_path: Path) -> None:
    state = states[config.norm_first]
    folder = write(tmp_path / "copies", with_copies(state), config)
    model = XLMRobertaForMaskedLM.from_pretrained(folder)
    expected = XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "plain", state, config))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    report = model.load_report
    assert report is not None
    dropped = {key: entry.why for key, entry in report.checkpoint_keys.items() if entry.status == "dropped"}
    assert len(dropped) == 8 * FACTS["layers"] + 1  # and the version
    assert "fast path of fairseq 0.12.2" in dropped["encoder.sentence_encoder.layers.1.in_proj_weight"]
    assert inspect_checkpoint(folder).problems == ()
    convert(folder, tmp_path / "hf", "hf")
    assert torch.equal(
        XLMRobertaForMaskedLM.from_pretrained(tmp_path / "hf").lm_head.decoder.bias, model.lm_head.decoder.bias
    )


def test_a_copy_does_not_stand_in_for_a_live_tensor(states: dict, tmp_path: Path) -> None:
    """self_attn.in_proj_weight of 2019 is live; layers.0.in_proj_weight of 0.12.2 is not."""
    state = with_copies(states[False])
    key = "encoder.sentence_encoder.layers.0.self_attn.k_proj.weight"
    del state[key]
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "lost", state, POST_NORM))
    old = fairseq_files.fairseq_state(fairseq_files.hf_state(POST_NORM), POST_NORM, "fairseq")
    stray = {"decoder.sentence_encoder.layers.0.in_proj_weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"unexpected: 1\n.*layers\.0\.in_proj_weight"):
        XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "old", old | stray, POST_NORM))


@pytest.mark.parametrize("version", [1.0, 2.0, 3.0])
def test_the_version_of_a_file_that_was_trained_on(version: float, states: dict, tmp_path: Path) -> None:
    """0.12 writes 1 where it began from a file without a version; in a post-norm model nothing depends on it."""
    key = "encoder.sentence_encoder.version"
    number = {key: torch.tensor([version])}
    XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "post", states[False] | number, POST_NORM))
    folder = write(tmp_path / "pre", states[True] | number, PRE_NORM)
    if version == 3.0:
        XLMRobertaForMaskedLM.from_pretrained(folder)
        return
    with pytest.raises(CheckpointError, match=r"is not the one number 3\.0"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


# ---- settings that change the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True], ids=["no config.json", "with config.json"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"activation_fn": "relu"}, "activation_fn 'relu', which in fairseq is the LM head's too"),
        ({"activation_fn": "gelu_accurate"}, "activation_fn 'gelu_accurate', which in fairseq is the LM head's too"),
        ({"no_scale_embedding": False}, "no_scale_embedding False where this model has True"),
        ({"encoder_layers_to_keep": "0,1"}, "encoder_layers_to_keep '0,1' where this model has None"),
        ({"quant_noise_scalar": 0.5}, "quant_noise_scalar 0.5 where this model has 0"),
        ({"encoder_normalize_before": True}, "encoder_normalize_before True, and yet a norm of the embeddings"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_changes_the_numbers(
    setting: dict[str, Any], message: str, beside: bool, states: dict, tmp_path: Path
) -> None:
    folder = write(tmp_path, states[False], POST_NORM, **setting)
    if beside:
        (folder / "config.json").write_text(json.dumps(POST_NORM.to_dict()))
    with pytest.raises(CheckpointError, match=f"fairseq's settings in it say {message}"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


def test_settings_that_are_as_they_must_be(states: dict, tmp_path: Path) -> None:
    settings = {**FIXED, "spectral_norm_classification_head": 0, "pooler_activation_fn": "relu"}  # it has no such head
    settings |= {"activation_dropout": 0.1, "seed": 7, "lr": 0.1}
    folder = write(tmp_path, states[False], POST_NORM, **settings)
    XLMRobertaForMaskedLM.from_pretrained(folder)
    assert "trained with activation_dropout 0.1, which this model does not have" in str(inspect_checkpoint(folder))


def test_the_activation_of_a_classification_head(states: dict, tmp_path: Path) -> None:
    head = {
        f"classification_heads.topic.{name}": torch.zeros(shape)
        for name, shape in {
            "dense.weight": (24, 24),
            "dense.bias": (24,),
            "out_proj.weight": (2, 24),
            "out_proj.bias": (2,),
        }.items()
    }
    state = states[False] | head
    XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "tanh", state, POST_NORM, pooler_activation_fn="tanh"))
    folder = write(tmp_path / "relu", state, POST_NORM, pooler_activation_fn="relu")
    with pytest.raises(CheckpointError, match="pooler_activation_fn 'relu', which is its classification head's"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


# ---- what is written for fairseq ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FACTS["state_dict"])
def test_the_keys_that_fairseq_writes_are_all_known(kind: str) -> None:
    """Recorded from the trainer of each version: every key of its state dict is accounted for."""
    recorded = FACTS["state_dict"][kind]
    keys = [key.replace("{i}", str(i)) for key in recorded for i in range(FACTS["layers"] if "{i}" in key else 1)]
    config = PRE_NORM if kind.endswith("pre-norm") else POST_NORM
    plan = make_plan(config, keys, XLMRobertaForMaskedLM.spec, "XLMRobertaForMaskedLM")
    assert plan.problems == []
    assert plan.statuses.keys() == set(keys)
    assert plan.config.norm_first == config.norm_first


@pytest.mark.parametrize("version", FACTS["versions"])
def test_every_setting_that_fairseq_reads_is_written(version: str) -> None:
    for config in (POST_NORM, PRE_NORM):
        written = settings_for(config, ("encoder", "lm_head"), "fairseq")
        reads = FACTS["versions"][version]["reads"]
        assert set(reads) - written.keys() == {"data"}  # which its from_pretrained adds
        assert written["layernorm_embedding"] is not written["encoder_normalize_before"] is config.norm_first


def test_what_fairseq_would_compute_otherwise_is_not_written() -> None:
    both = ("encoder", "lm_head")
    with pytest.raises(CheckpointError, match="uses activation_fn in the LM head too"):
        settings_for(replace(POST_NORM, hidden_act="relu"), both, "fairseq")
    assert settings_for(replace(POST_NORM, hidden_act="relu"), ("encoder",), "fairseq")["activation_fn"] == "relu"
    with pytest.raises(CheckpointError, match="no activation_fn that is hidden_act 'silu'"):
        settings_for(replace(POST_NORM, hidden_act="silu"), ("encoder",), "fairseq")
    with pytest.raises(CheckpointError, match=r"fairseq 0\.9 always ties"):
        settings_for(replace(POST_NORM, tie_word_embeddings=False), both, "fairseq-0.9")


@pytest.mark.parametrize("to", FAIRSEQ_FAMILIES)
def test_the_report_says_what_fairseq_does_not_open(to: str, states: dict, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", states[False], POST_NORM)
    assert "without an LM head" not in str(convert(folder, tmp_path / "b", to))
    assert "without an LM head the file is not opened" in str(convert(folder, tmp_path / "c", to, drop=["lm_head"]))


# ---- tensors that are not plain numbers -----------------------------------------------------------------------------


def odd_tensors() -> dict[str, Tensor]:
    ones = torch.ones(2, 2)
    return {
        "sparse COO": ones.to_sparse(),
        "meta": torch.empty(2, 2, device="meta"),
        "quantised": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
        "nested": torch._nested_tensor_from_tensor_list([ones, ones[:1]]),
        "float4": torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "complex": ones.to(torch.complex64),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse COO", "meta", "quantised", "nested", "float4", "complex"])
@pytest.mark.parametrize("key", ["lm_head.dense.weight", "roberta.embeddings.position_ids", "lm_head.decoder.weight"])
def test_a_tensor_that_is_not_plain_numbers(kind: str, key: str, tmp_path: Path) -> None:
    """Also where it would be dropped, or is the second copy of a tied tensor; refused when the file is opened."""
    state = fairseq_files.hf_state(POST_NORM)
    torch.save({**state, key: odd_tensors()[kind]}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(POST_NORM.to_dict()))
    for read in (XLMRobertaForMaskedLM.from_pretrained, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=f"{key}.* does not hold plain numbers|is refused"):
            read(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not hold plain numbers|is refused"):
        convert(tmp_path, tmp_path / "out", "native")


def test_the_facts_say_where_they_come_from() -> None:
    assert FACTS["source"] == "https://github.com/facebookresearch/fairseq"
    assert all(len(facts["commit"]) == 40 for facts in FACTS["versions"].values())
