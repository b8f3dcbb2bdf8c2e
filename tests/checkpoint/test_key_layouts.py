"""Every layout a published file may have: the same weights, the same answers, and every damaged key refused.

The files come from fairseq_files.py, which knows the key names by itself, and not from the tables under test.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import fairseq_files, published
from checkpoint.test_mapping import DAMAGES, damaged, swept
from safetensors.torch import save_file
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.layouts import FAIRSEQ_HEAD, FAMILIES
from xlmr_core.checkpoint.mapping import ExportPlan, export_plan, lossy, make_plan
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import (
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)
from xlmr_core.model import PretrainedModel, XLMRobertaModel

POST_NORM = replace(reference.POST_NORM, num_hidden_layers=2)
PRE_NORM = replace(POST_NORM, norm_first=True)
# Name of a key layout -> the family that writes it, and the config.
KEY_LAYOUTS: dict[str, tuple[str, XLMRobertaConfig]] = {
    **{release: (release, POST_NORM) for release in fairseq_files.RELEASES},
    "fairseq XL": ("fairseq", PRE_NORM),
    "torchtext": ("torchtext", POST_NORM),
    "torchtext-0.14": ("torchtext-0.14", POST_NORM),
}
# Tensors in each, for two layers: the sweep below goes over all of them.
TENSORS = {
    "fairseq": 34,
    "fairseq-0.9": 42,
    "fairseq-0.10": 42,
    "fairseq-1.0": 43,
    "fairseq XL": 43,
    "torchtext": 28,
    "torchtext-0.14": 28,
}
WORDS = "roberta.embeddings.word_embeddings.weight"


def state_in(foreign: str, hf: Mapping[str, Tensor]) -> dict[str, Tensor]:
    family, config = KEY_LAYOUTS[foreign]
    if family.startswith("torchtext"):
        return fairseq_files.torchtext_state(hf, config, newer=family != "torchtext")
    return fairseq_files.fairseq_state(hf, config, family)


def class_of(foreign: str) -> type[PretrainedModel]:
    return XLMRobertaModel if foreign.startswith("torchtext") else XLMRobertaForMaskedLM


def write(folder: Path, tensors: Mapping[str, Tensor], config: XLMRobertaConfig) -> Path:
    """A folder that is loaded by its keys: config.json and the tensors, whatever they are called."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def states() -> dict[bool, dict[str, Tensor]]:
    """By norm_first: random weights under transformers' names."""
    return {config.norm_first: fairseq_files.hf_state(config) for config in (POST_NORM, PRE_NORM)}


@pytest.fixture(scope="module")
def written(states: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a key layout -> a folder with it; "HF" and "HF XL" hold the same weights in transformers' layout."""
    root = tmp_path_factory.mktemp("key_layouts")
    folders = {
        name: write(root / name, state_in(name, states[c.norm_first]), c) for name, (_, c) in KEY_LAYOUTS.items()
    }
    for name, config in (("HF", POST_NORM), ("HF XL", PRE_NORM)):
        tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
        state = {key: tensor for key, tensor in states[config.norm_first].items() if key not in tied}
        folders[name] = write(root / name, state, config)
    return folders


def same_weights_in_hf(foreign: str) -> str:
    return "HF XL" if KEY_LAYOUTS[foreign][1].norm_first else "HF"


# ---- the same model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", KEY_LAYOUTS)
def test_the_same_weights_are_the_same_model(foreign: str, written: dict) -> None:
    cls = class_of(foreign)
    model, expected = (
        cls.from_pretrained(written[foreign]),
        cls.from_pretrained(written[same_weights_in_hf(foreign)]),
    )
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    batch = reference.awkward_batch(KEY_LAYOUTS[foreign][1])
    with torch.no_grad():
        ours, theirs = model(**batch), expected(**batch)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    if cls is XLMRobertaForMaskedLM:
        assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("foreign", ["fairseq", "fairseq XL"])
def test_the_answers_are_those_of_transformers(foreign: str, states: dict, written: dict) -> None:
    """XL too: fairseq's layout, the HF XL layout and transformers' own XL class agree bit for bit."""
    config = KEY_LAYOUTS[foreign][1]
    theirs = reference.build_reference(config, "eager", "ForMaskedLM").eval()
    theirs.load_state_dict(states[config.norm_first])
    batch = reference.awkward_batch(config)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**batch).logits[real]
        for folder in (written[foreign], written[same_weights_in_hf(foreign)]):
            assert torch.equal(XLMRobertaForMaskedLM.from_pretrained(folder)(**batch).logits[real], expected)


@pytest.mark.parametrize("foreign", KEY_LAYOUTS)
def test_position_rows_keep_their_numbers(foreign: str, states: dict, tmp_path: Path) -> None:
    """All 31 rows, each with the values of its own row: fairseq and torchtext have the two unused rows as well."""
    config = KEY_LAYOUTS[foreign][1]
    rows = torch.arange(31.0)[:, None] + torch.arange(24.0) / 100
    hf = {**states[config.norm_first], "roberta.embeddings.position_embeddings.weight": rows}
    model = class_of(foreign).from_pretrained(write(tmp_path, state_in(foreign, hf), config))
    encoder = getattr(model, "encoder", model)
    assert torch.equal(encoder.embeddings.position_embeddings.weight, rows)
    assert torch.equal(
        encoder.embeddings.position_embeddings(torch.tensor([0, 1, 2, 30])), rows[torch.tensor([0, 1, 2, 30])]
    )


@pytest.mark.parametrize("foreign", KEY_LAYOUTS)
def test_the_report_tells_every_key(foreign: str, written: dict) -> None:
    config = KEY_LAYOUTS[foreign][1]
    model = class_of(foreign).from_pretrained(written[foreign])
    report = model.load_report
    assert report is not None
    assert report.checkpoint_keys.keys() == published.tensors_of(written[foreign]).keys()
    assert report.model_keys.keys() == model.state_dict().keys()
    filled = {key: entry.why for key, entry in report.model_keys.items() if entry.status == "filled"}
    (token_types,) = filled
    assert token_types.endswith("embeddings.token_type_embeddings.weight")
    assert filled[token_types].startswith("zeros: ")
    assert not model.state_dict()[token_types].any()
    assert "1 filled" in str(report)
    twice = {key for key, entry in report.checkpoint_keys.items() if entry.status == "tied"}
    assert twice == ({key for key in report.checkpoint_keys if key.endswith("lm_head.weight")})
    dropped = {key for key, entry in report.checkpoint_keys.items() if entry.status == "dropped"}
    assert dropped == {key for key in report.checkpoint_keys if key.endswith(".version")}
    assert model.config.norm_first == config.norm_first


def test_parts_of_a_fused_tensor_are_views(written: dict) -> None:
    """Mapped, not copied: the three projections lie in one piece of memory."""
    attention = XLMRobertaModel.from_pretrained(written["torchtext"]).layers[1].attention
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1
    report = XLMRobertaModel.from_pretrained(written["torchtext"]).load_report
    assert report is not None
    key = "encoder.transformer.layers.1.attention.input_projection.weight"
    assert report.model_keys["layers.1.attention.k_proj.weight"].why == f"{key}, part 2 of 3"
    assert report.checkpoint_keys[key].why == " + ".join(f"layers.1.attention.{name}_proj.weight" for name in "qkv")


# ---- the sweep ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("foreign", "damage"), swept(KEY_LAYOUTS))
def test_sweep_every_damage_to_every_key_is_refused(foreign: str, damage: str, written: dict, monkeypatch: Any) -> None:
    tensors = published.tensors_of(written[foreign])
    held: dict[str, Tensor] = {}
    monkeypatch.setattr("xlmr_core.checkpoint.loading.open_weights", lambda path: held)
    # No weights, and the two names of the word table, of which one is enough.
    lm_head = class_of(foreign) is XLMRobertaForMaskedLM
    may_be_absent = {
        key
        for key in tensors
        if key.endswith(".version") or (lm_head and key.endswith(("lm_head.weight", "embed_tokens.weight")))
    }
    refused, accepted = 0, 0
    for key in tensors:
        held, named = damaged(tensors, key, damage)
        if damage == "deletion" and key in may_be_absent:
            class_of(foreign).from_pretrained(written[foreign])
            accepted += 1
            continue
        with pytest.raises(CheckpointError) as caught:
            class_of(foreign).from_pretrained(written[foreign])
        assert named in str(caught.value)
        if damage in ("rename", "prefix"):
            assert "nearest: " in str(caught.value)
        refused += 1
    assert accepted == (len(may_be_absent) if damage == "deletion" else 0)
    assert refused + accepted == TENSORS[foreign]


@pytest.mark.parametrize("other", ["fairseq", "torchtext-0.14"])
@pytest.mark.parametrize("foreign", KEY_LAYOUTS)
def test_two_layouts_in_one_file_are_refused(foreign: str, other: str, written: dict, tmp_path: Path) -> None:
    """Half of one and half of another, and both as a whole."""
    first, second = published.tensors_of(written[foreign]), published.tensors_of(written[other])
    config = KEY_LAYOUTS[foreign][1]
    if foreign == other:
        return
    half = dict(list(first.items())[::2]) | dict(list(second.items())[1::2])
    with pytest.raises(CheckpointError, match=r"missing: |unexpected: "):
        XLMRobertaModel.from_pretrained(write(tmp_path / "half", half, config))
    if first.keys() <= second.keys() or second.keys() <= first.keys():
        return
    with pytest.raises(CheckpointError, match=r"the encoder 2 times|unexpected: "):
        XLMRobertaModel.from_pretrained(write(tmp_path / "both", second | first, config))


# ---- there and back -------------------------------------------------------------------------------------------------


def exported(tensors: Mapping[str, Tensor], config: XLMRobertaConfig, cls: type, family: str) -> dict[str, Tensor]:
    """The tensors in another layout, as the converter does it: tensor by tensor, without a model."""
    plan = make_plan(config, tensors.keys(), cls.spec, cls.__name__)
    assert not plan.problems
    export: ExportPlan = export_plan(plan, family)
    assert not lossy(export, tensors)
    return {one.key: one.read(tensors) for one in export.exports}


def assert_same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype, key
        assert torch.equal(tensor.view(torch.int32), second[key].view(torch.int32)), key


@pytest.mark.parametrize("through", FAMILIES)
@pytest.mark.parametrize("foreign", KEY_LAYOUTS)
def test_round_trips_from_a_key_layout(foreign: str, through: str, written: dict) -> None:
    """Into any other key layout and back: the same keys and bits."""
    family, config = KEY_LAYOUTS[foreign]
    cls = class_of(foreign)
    tensors = published.tensors_of(written[foreign])
    if through.startswith("torchtext") and cls is XLMRobertaForMaskedLM:
        with pytest.raises(CheckpointError, match=r"has no pre-norm model|has no name for lm_head\."):
            exported(tensors, config, cls, through)
        return
    if config.norm_first and through.startswith("fairseq-"):
        with pytest.raises(CheckpointError, match="has no pre-norm model"):
            exported(tensors, config, cls, through)
        return
    there = exported(tensors, config, cls, through)
    assert through == family or there.keys() != tensors.keys()
    assert_same_bits(exported(there, config, cls, family), tensors)


@pytest.mark.parametrize("through", FAMILIES)
@pytest.mark.parametrize("kind", published.KINDS)
def test_round_trips_from_hf(kind: str, through: str, folders: dict, states: dict) -> None:
    config, name = published.KINDS[kind]
    cls = XLMRobertaForMaskedLM if name == "ForMaskedLM" else XLMRobertaModel
    tensors = published.tensors_of(folders[kind])
    pooled = [key for key in tensors if "pooler" in key]
    has_no_types = through.split("-")[0] in ("fairseq", "torchtext")
    if has_no_types:
        plan = make_plan(config, tensors.keys(), cls.spec, cls.__name__)
        if through.startswith(("torchtext", "fairseq-")) and config.norm_first:
            with pytest.raises(CheckpointError, match="has no pre-norm model"):
                export_plan(plan, through)
            return
        if pooled or through.startswith("torchtext"):
            with pytest.raises(
                CheckpointError, match=r"has no name for (pooler|lm_head)\..*writing it would lose them"
            ):
                export_plan(plan, through)
            tensors = {key: tensor for key, tensor in tensors.items() if key not in pooled}
            if name == "ForMaskedLM":
                return
            plan = make_plan(config, tensors.keys(), cls.spec, cls.__name__)
        (problem,) = lossy(export_plan(plan, through), tensors)
        assert "token_type_embeddings.weight holds numbers other than 0" in problem
        tensors = {key: t.zero_() if "token_type" in key else t for key, t in tensors.items()}
    there = exported(tensors, config, cls, through)
    assert_same_bits(exported(there, config, cls, "hf"), tensors)


def test_what_fairseq_expects_is_written(written: dict) -> None:
    """Both names of the word table, and the version without which fairseq takes away the final norm of XL."""
    there = exported(published.tensors_of(written["HF XL"]), PRE_NORM, XLMRobertaForMaskedLM, "fairseq")
    assert torch.equal(there["encoder.lm_head.weight"], there["encoder.sentence_encoder.embed_tokens.weight"])
    assert (
        there["encoder.lm_head.weight"].data_ptr() != there["encoder.sentence_encoder.embed_tokens.weight"].data_ptr()
    )
    assert there["encoder.sentence_encoder.version"].tolist() == [3.0]


def test_an_unknown_target() -> None:
    plan = make_plan(POST_NORM, [], XLMRobertaModel.spec, "XLMRobertaModel")
    with pytest.raises(
        CheckpointError, match="there is no key layout 'onnx' to write: expected one of hf, native, fairseq"
    ):
        export_plan(plan, "onnx")


@pytest.mark.parametrize("value", [torch.tensor([1.0]), torch.tensor([3.0, 3.0]), torch.tensor([])])
def test_another_version_is_not_dropped(value: Tensor, written: dict, tmp_path: Path) -> None:
    """fairseq leaves out the final norm of a file whose version is below 2: such a file is another model."""
    tensors = published.tensors_of(written["fairseq XL"])
    tensors["encoder.sentence_encoder.version"] = value
    with pytest.raises(CheckpointError, match=r"encoder\.sentence_encoder\.version is not the one number 3\.0"):
        XLMRobertaForMaskedLM.from_pretrained(write(tmp_path, tensors, PRE_NORM))


def test_a_decoder_that_is_not_the_word_table(written: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(written["fairseq"])
    tensors["decoder.lm_head.weight"][3, 4] += 1
    folder = write(tmp_path / "tied", tensors, POST_NORM)
    with pytest.raises(CheckpointError, match=r"decoder\.lm_head\.weight differs from .*embed_tokens\.weight"):
        XLMRobertaForMaskedLM.from_pretrained(folder)
    untied = replace(POST_NORM, tie_word_embeddings=False)
    model = XLMRobertaForMaskedLM.from_pretrained(write(tmp_path / "untied", tensors, untied))
    assert torch.equal(model.lm_head.decoder.weight, tensors["decoder.lm_head.weight"])
    assert_same_bits(exported(tensors, untied, XLMRobertaForMaskedLM, "fairseq"), tensors)
    hf = exported(tensors, untied, XLMRobertaForMaskedLM, "hf")
    assert_same_bits(exported(hf, untied, XLMRobertaForMaskedLM, "fairseq"), tensors)


# ---- classification heads of fairseq --------------------------------------------------------------------------------

LABELLED = replace(POST_NORM, labels=tuple("ABCDEFG"))


def fine_tuned(hf: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A fairseq file with a classification head of seven labels."""
    state = fairseq_files.fairseq_state(hf, LABELLED, "fairseq-1.0")
    modules = {f"classifier.{part}": f"classification_heads.{name}.{part}" for part in ("dense", "out_proj")}
    return state | fairseq_files.renamed(hf, modules)


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    return fairseq_files.hf_state(LABELLED, "ForSequenceClassification")


@pytest.mark.parametrize("name", ["mnli", FAIRSEQ_HEAD])
def test_a_fairseq_classifier(name: str, classifier: dict, tmp_path: Path) -> None:
    folder = write(tmp_path / "fairseq", fine_tuned(classifier, name), LABELLED)
    model = XLMRobertaForSequenceClassification.from_pretrained(folder)
    expected = XLMRobertaForSequenceClassification.from_pretrained(write(tmp_path / "hf", classifier, LABELLED))
    batch = reference.awkward_batch(LABELLED)
    assert torch.equal(model(**batch).logits, expected(**batch).logits)
    bare = XLMRobertaModel.from_pretrained(folder).load_report
    assert bare is not None
    assert bare.checkpoint_keys[f"classification_heads.{name}.dense.bias"].why == (
        "XLMRobertaModel has no sequence_classifier"
    )
    again = exported(published.tensors_of(folder), LABELLED, XLMRobertaForSequenceClassification, "fairseq-1.0")
    assert_same_bits(again, fine_tuned(classifier, FAIRSEQ_HEAD))


def test_two_fairseq_heads(classifier: dict, tmp_path: Path) -> None:
    folder = write(tmp_path, fine_tuned(classifier, "mnli") | fine_tuned(classifier, "rte"), LABELLED)
    with pytest.raises(CheckpointError, match=r"2 classification heads \(mnli, rte\): keep one"):
        XLMRobertaForSequenceClassification.from_pretrained(folder)
    XLMRobertaModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_sweep_of_a_fairseq_head(damage: str, classifier: dict, tmp_path: Path, monkeypatch: Any) -> None:
    tensors = fine_tuned(classifier, "mnli")
    folder = write(tmp_path, tensors, LABELLED)
    held: dict[str, Tensor] = {}
    monkeypatch.setattr("xlmr_core.checkpoint.loading.open_weights", lambda path: held)
    heads = [key for key in tensors if key.startswith("classification_heads.")]
    assert len(heads) == 4
    for key in heads:
        held, named = damaged(tensors, key, damage)
        with pytest.raises(CheckpointError) as caught:
            XLMRobertaForSequenceClassification.from_pretrained(folder)
        assert named in str(caught.value)


# ---- base size ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_base_size_from_fairseq_is_base_size_from_hf(tmp_path: Path) -> None:
    """270 million random numbers in the layout of 2019, and the same in transformers': equal logits."""
    config = XLMRobertaConfig()
    hf = fairseq_files.hf_state(config)
    fairseq = write(tmp_path / "fairseq", fairseq_files.fairseq_state(hf, config), config)
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    theirs = write(tmp_path / "hf", {key: tensor for key, tensor in hf.items() if key not in tied}, config)
    batch = reference.awkward_batch(config)
    positions = batch["attention_mask"].bool()
    with torch.no_grad():
        first = XLMRobertaForMaskedLM.from_pretrained(fairseq)(**batch, positions=positions).logits
        second = XLMRobertaForMaskedLM.from_pretrained(theirs)(**batch, positions=positions).logits
    assert torch.equal(first, second)
    assert first.std() > 0.1


def test_a_tagger_does_not_take_a_fairseq_head(classifier: dict, tmp_path: Path) -> None:
    folder = write(tmp_path, fine_tuned(classifier, "mnli"), LABELLED)
    with pytest.raises(CheckpointError, match=r"needs the group linear_classifier \(none in fairseq 1\.0\)"):
        XLMRobertaForTokenClassification.from_pretrained(folder)
