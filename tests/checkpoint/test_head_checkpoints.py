"""Heads from and to files: transformers' classes, a head that is missing, another, or beside the weights (BGE-M3)."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from checkpoint import published
from checkpoint.published import write_m3
from checkpoint.test_mapping import damaged, swept
from reference import CONFIGS, HEAD_KEYS
from torch import Tensor

import xlmr_core
from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import (
    XLMRobertaForM3,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)
from xlmr_core.model import XLMRobertaModel

LABELS = tuple("ABCDEFG")
KINDS = [(norms, kind) for norms in CONFIGS for kind in HEAD_KEYS]
# For three layers: 53 of the encoder, 2 or 4 of the head, or 2 with 2 of the pooler.
TENSORS = {
    "ForSequenceClassification": 57,
    "ForTokenClassification": 55,
    "ForQuestionAnswering": 55,
    "ForMultipleChoice": 57,
}
BATCH = reference.awkward_batch(reference.POST_NORM)


def config_of(norms: str, kind: str) -> XLMRobertaConfig:
    return replace(CONFIGS[norms], labels=("start", "end") if kind == "ForQuestionAnswering" else LABELS)


def our_class(kind: str) -> Any:
    return getattr(xlmr_core, f"XLMRoberta{kind}")


@pytest.fixture(scope="module")
def head_models() -> dict[tuple[str, str], Any]:
    """(norms, kind) -> transformers' model with random weights."""
    models = {}
    for norms, kind in KINDS:
        models[norms, kind] = reference.build_reference(config_of(norms, kind), "eager", kind).eval()
        reference.randomize(models[norms, kind])
    return models


@pytest.fixture(scope="module")
def head_folders(head_models: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(norms, kind) -> the folder transformers wrote."""
    root = tmp_path_factory.mktemp("heads")
    for (norms, kind), model in head_models.items():
        published.quietly(model.save_pretrained, root / f"{norms}-{kind}")
    return {key: root / "-".join(key) for key in head_models}


def answers(model: Any, kind: str) -> list[Tensor]:
    """The logits on the awkward batch, without those of padding. Works on our models and on transformers'."""
    choices = kind == "ForMultipleChoice"
    with torch.no_grad():
        out = model(**{name: tensor[:, None] if choices else tensor for name, tensor in BATCH.items()})
    names = ("start_logits", "end_logits") if kind == "ForQuestionAnswering" else ("logits",)
    per_token = kind in ("ForQuestionAnswering", "ForTokenClassification")
    return [getattr(out, name)[BATCH["attention_mask"].bool()] if per_token else getattr(out, name) for name in names]


def assert_same_answers(first: Any, second: Any, kind: str) -> None:
    first = copy.deepcopy(first)  # out of the mapped file: a product with one row rounds by where the row lies
    for ours, theirs in zip(answers(first, kind), answers(second, kind), strict=True):
        assert torch.equal(ours, theirs)


# ---- transformers' files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norms", "kind"), KINDS)
def test_from_transformers_and_back(
    norms: str, kind: str, head_folders: dict, head_models: dict, tmp_path: Path
) -> None:
    model = our_class(kind).from_pretrained(head_folders[norms, kind])
    assert model.config.labels == config_of(norms, kind).labels
    assert_same_answers(model, head_models[norms, kind], kind)
    model.save_pretrained(tmp_path)
    before, after = published.tensors_of(head_folders[norms, kind]), published.tensors_of(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor.view(torch.int32), after[key].view(torch.int32)) for key, tensor in before.items())
    values = json.loads((tmp_path / "config.json").read_text())
    (architecture,) = values["architectures"]
    again, info = published.quietly(
        getattr(transformers, architecture).from_pretrained,
        tmp_path,
        output_loading_info=True,
        attn_implementation="eager",
    )
    assert not any(info.values()), info
    assert again.config.id2label == model.config.id2label
    assert_same_answers(model, copy.deepcopy(again), kind)


@pytest.mark.parametrize(("kind", "damage"), swept(HEAD_KEYS))
def test_sweep_every_damage_to_every_key_is_refused(
    kind: str, damage: str, head_folders: dict, monkeypatch: Any
) -> None:
    folder = head_folders["post-norm", kind]
    tensors = published.tensors_of(folder)
    held: dict[str, Tensor] = {}
    monkeypatch.setattr("xlmr_core.checkpoint.loading.open_weights", lambda path: held)
    refused = 0
    for key in tensors:
        held, named = damaged(tensors, key, damage)
        with pytest.raises(CheckpointError) as caught:
            our_class(kind).from_pretrained(folder)
        assert named in str(caught.value)
        refused += 1
    assert refused == TENSORS[kind]


def test_the_shape_of_a_head_is_that_of_the_labels(head_folders: dict, tmp_path: Path) -> None:
    folder = published.copied(head_folders["post-norm", "ForTokenClassification"], tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"id2label": {"0": "A", "1": "B", "2": "C"}}))
    with pytest.raises(CheckpointError, match=r"classifier\.bias has shape \(7,\), but config\.json asks for \(3,\)"):
        XLMRobertaForTokenClassification.from_pretrained(folder)


@pytest.mark.parametrize(("norms", "kind"), KINDS)
def test_inspect_names_the_class(norms: str, kind: str, head_folders: dict) -> None:
    found = inspect_checkpoint(head_folders[norms, kind])
    assert found.model == f"XLMRoberta{kind}"
    assert not found.problems
    assert found.tied is None
    assert {info.status.status for info in found.keys if info.status is not None} == {"loaded"}


def test_inspect_tells_a_tagger_beside_a_pooler_from_multiple_choice(head_folders: dict, tmp_path: Path) -> None:
    """Older transformers saved a pooler with every model: then the two differ in the rows of the classifier alone."""
    folder = head_folders["post-norm", "ForTokenClassification"]
    pooler = {"roberta.pooler.dense.weight": torch.zeros(24, 24), "roberta.pooler.dense.bias": torch.zeros(24)}
    published.rewritten(folder, tmp_path, published.tensors_of(folder) | pooler)
    assert inspect_checkpoint(tmp_path).model == "XLMRobertaForTokenClassification"


# ---- a head that is not there, or another ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masked-lm", "masked-lm-xl"])
@pytest.mark.parametrize("head", HEAD_KEYS)
def test_a_missing_head_is_refused_or_new(head: str, kind: str, folders: dict) -> None:
    cls = our_class(head)
    with pytest.raises(CheckpointError, match=rf"{cls.__name__} needs the group .*new_head=True"):
        cls.from_pretrained(folders[kind])
    torch.manual_seed(0)
    model = cls.from_pretrained(folders[kind], new_head=True)
    report = model.load_report
    assert report is not None
    filled = {key for key, entry in report.model_keys.items() if entry.status == "filled"}
    own = {key for key in model.state_dict() if not key.startswith("encoder.")}
    assert filled == own | {key for key in model.state_dict() if "pooler" in key}
    assert {report.model_keys[key].why for key in filled} == {"initialised: a new head, as the checkpoint has none"}
    for key in filled:
        tensor = model.state_dict()[key]
        if key.endswith("bias"):
            assert not tensor.any()
        else:
            assert tensor.std().item() == pytest.approx(model.config.initializer_range, rel=0.3)
            assert tensor.any(dim=1).all()
    encoder = XLMRobertaModel.from_pretrained(folders[kind])
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.state_dict()[f"encoder.{name}"], tensor)
    assert "XLMRoberta" in report.checkpoint_keys["lm_head.dense.bias"].why
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(0)
    again = cls.from_pretrained(folders[kind], new_head=True)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_new_lm_head_is_tied_and_leaves_the_words_alone(folders: dict) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["encoder"], new_head=True)
    encoder = XLMRobertaModel.from_pretrained(folders["encoder"])
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(model.lm_head.decoder.weight, encoder.embeddings.word_embeddings.weight)
    assert torch.equal(model.lm_head.norm.weight, torch.ones(24))
    assert not model.lm_head.decoder.bias.any()
    report = model.load_report
    assert report is not None
    assert report.model_keys.keys() == model.state_dict().keys()
    assert report.model_keys["lm_head.decoder.weight"].status == "tied"
    assert "model keys: 53 loaded, 1 tied, 5 filled" in str(report)


def test_new_head_is_no_way_around_a_damaged_one(head_folders: dict, tmp_path: Path) -> None:
    folder = head_folders["post-norm", "ForSequenceClassification"]
    tensors = published.tensors_of(folder)
    del tensors["classifier.out_proj.bias"]
    published.rewritten(folder, tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"missing: 1\n    'classifier\.out_proj\.bias'"):
        XLMRobertaForSequenceClassification.from_pretrained(tmp_path, new_head=True)


def test_new_head_keeps_a_head_that_is_there(head_folders: dict, head_models: dict) -> None:
    key = ("post-norm", "ForTokenClassification")
    model = XLMRobertaForTokenClassification.from_pretrained(head_folders[key], new_head=True)
    assert_same_answers(model, head_models[key], key[1])


def test_a_new_head_has_the_dtype_and_place_of_the_rest(folders: dict) -> None:
    for dtype in (torch.bfloat16, torch.float64, None):
        model = XLMRobertaForQuestionAnswering.from_pretrained(folders["encoder"], new_head=True, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype or torch.float32}
    model = XLMRobertaForQuestionAnswering.from_pretrained(folders["encoder"], new_head=True, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("labels", [["score"], ["LABEL_0", "LABEL_1"], ["O", "B-ПЕР", "I-ПЕР", "B-LOC"]])
@pytest.mark.parametrize("kind", ["masked-lm", "masked-lm-xl"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_new_head_has_the_classes_that_are_asked_for(
    head: str, kind: str, labels: list[str], folders: dict, tmp_path: Path
) -> None:
    model = our_class(head).from_pretrained(folders[kind], new_head=True, labels=labels)
    assert model.config.labels == tuple(labels)
    assert model.config == replace(published.config_of(kind), labels=tuple(labels))
    assert model(**BATCH).logits.shape[-1] == len(labels)

    model.save_pretrained(tmp_path)
    again = our_class(head).from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    architecture = f"XLMRoberta{'XL' if model.config.norm_first else ''}{head}"
    cls = getattr(transformers, architecture)
    theirs, info = published.quietly(
        cls.from_pretrained, tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert theirs.config.id2label == dict(enumerate(labels))
    assert torch.allclose(theirs(**BATCH).logits, again(**BATCH).logits, atol=1e-6)  # one label's sum has any order


def test_labels_of_a_head_that_is_there_are_refused(head_folders: dict, folders: dict) -> None:
    folder = head_folders["post-norm", "ForTokenClassification"]
    message = "it has the head of XLMRobertaForTokenClassification already, with the classes A, B, C, D, E, F, G: leave"
    for labels in (["x", "y"], list(LABELS)):
        with pytest.raises(CheckpointError, match=message) as raised:
            XLMRobertaForTokenClassification.from_pretrained(folder, new_head=True, labels=labels)
        assert len(str(raised.value).splitlines()) == 2
    # of another kind: that head is dropped, and its labels with it
    fresh = XLMRobertaForSequenceClassification.from_pretrained(folder, new_head=True, labels=["x"])
    assert fresh.config.labels == ("x",)


def test_labels_that_cannot_be_are_refused(folders: dict) -> None:
    def load(cls: Any, labels: Any, new_head: bool = True) -> None:
        cls.from_pretrained(folders["masked-lm"], new_head=new_head, labels=labels)

    with pytest.raises(ValueError, match="labels are the classes of a new head: pass new_head=True"):
        load(XLMRobertaForSequenceClassification, ["a"], new_head=False)
    for labels in ("ab", [], ["a", "a"], [1, 2]):
        with pytest.raises(ValueError, match="labels must be "):
            load(XLMRobertaForSequenceClassification, labels)
    for cls in (XLMRobertaForMaskedLM, XLMRobertaForQuestionAnswering, XLMRobertaForMultipleChoice, XLMRobertaModel):
        with pytest.raises(ValueError, match=f"{cls.__name__} has no classes to name with labels"):
            load(cls, ["a"])


@pytest.mark.parametrize(("norms", "kind"), KINDS)
def test_the_bare_encoder_drops_a_head_and_says_so(norms: str, kind: str, head_folders: dict) -> None:
    model = XLMRobertaModel.from_pretrained(head_folders[norms, kind])
    report = model.load_report
    assert report is not None
    dropped = {key: entry.why for key, entry in report.checkpoint_keys.items() if entry.status == "dropped"}
    assert dropped.keys() == {f"{name}.{leaf}" for name in HEAD_KEYS[kind] for leaf in ("weight", "bias")}
    group = {"ForSequenceClassification": "sequence_classifier", "ForQuestionAnswering": "qa_outputs"}.get(
        kind, "linear_classifier"
    )
    assert set(dropped.values()) == {f"XLMRobertaModel has no {group}"}


@pytest.mark.parametrize("asked", HEAD_KEYS)
@pytest.mark.parametrize("kind", HEAD_KEYS)
def test_one_head_is_never_taken_for_another(kind: str, asked: str, head_folders: dict) -> None:
    if kind != asked:
        with pytest.raises(CheckpointError, match=r"needs the group|has shape"):
            our_class(asked).from_pretrained(head_folders["post-norm", kind])


# ---- BGE-M3 ---------------------------------------------------------------------------------------------------------


def test_m3(folders: dict, tmp_path: Path) -> None:
    parts = write_m3(tmp_path / "m3", folders["encoder"])
    model = XLMRobertaForM3.from_pretrained(tmp_path / "m3")
    for name, part in parts.items():
        for leaf, tensor in part.items():
            assert torch.equal(model.state_dict()[f"{name}.{leaf}"], tensor)
    report = model.load_report
    assert report is not None
    assert str(report.checkpoint_keys["sparse_linear.bias"]) == "loaded <-> sparse_linear.bias"
    assert report.checkpoint_keys["pooler.dense.bias"].why == "XLMRobertaForM3 has no pooler"
    expected = XLMRobertaModel.from_pretrained(tmp_path / "m3")(**BATCH).last_hidden_state
    assert torch.equal(model(**BATCH).last_hidden_state, expected)

    model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "colbert_linear.pt",
        "config.json",
        "model.safetensors",
        "sparse_linear.pt",
    ]
    for name, part in parts.items():
        saved = torch.load(tmp_path / "saved" / f"{name}.pt", weights_only=True)
        assert saved.keys() == part.keys()
        assert all(torch.equal(saved[leaf], tensor) for leaf, tensor in part.items())
    again = XLMRobertaForM3.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())

    found = inspect_checkpoint(tmp_path / "m3", values=True)
    assert (found.model, found.problems) == ("XLMRobertaForM3", ())
    assert {"sparse_linear.weight", "colbert_linear.bias"} <= {info.key for info in found.keys}


def test_m3_in_a_tar(folders: dict, tmp_path: Path) -> None:
    write_m3(tmp_path / "m3", folders["encoder"])
    path = shutil.make_archive(str(tmp_path / "m3"), "gztar", tmp_path / "m3")
    expected, model = XLMRobertaForM3.from_pretrained(tmp_path / "m3"), XLMRobertaForM3.from_pretrained(path)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in expected.state_dict().items())


def test_m3_without_its_files(folders: dict, tmp_path: Path) -> None:
    write_m3(tmp_path / "m3", folders["encoder"])
    (tmp_path / "m3" / "colbert_linear.pt").unlink()
    with pytest.raises(CheckpointError, match=r"XLMRobertaForM3 needs the group colbert_linear .*colbert_linear\.pt"):
        XLMRobertaForM3.from_pretrained(tmp_path / "m3")
    torch.save({"weight": torch.zeros(24, 24)}, tmp_path / "m3" / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match=r"missing: 1\n    'colbert_linear\.bias'"):
        XLMRobertaForM3.from_pretrained(tmp_path / "m3")
    torch.save({"weight": torch.zeros(2, 24), "bias": torch.zeros(24)}, tmp_path / "m3" / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match=r"colbert_linear\.weight has shape \(2, 24\)"):
        XLMRobertaForM3.from_pretrained(tmp_path / "m3")


# ---- RoBERTa and CamemBERT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Roberta", "Camembert"])
def test_the_same_model_under_another_name(name: str, tmp_path: Path) -> None:
    values = config_of("post-norm", "ForTokenClassification").to_dict()
    del values["model_type"]
    config = getattr(transformers, f"{name}Config")(**values, attn_implementation="eager")
    theirs = getattr(transformers, f"{name}ForTokenClassification")(config).eval()
    reference.randomize(theirs)
    published.quietly(theirs.save_pretrained, tmp_path)
    ours = XLMRobertaForTokenClassification.from_pretrained(tmp_path)
    assert_same_answers(ours, theirs, "ForTokenClassification")


def test_multiple_choice_reads_its_pooler(head_folders: dict) -> None:
    model = XLMRobertaForMultipleChoice.from_pretrained(head_folders["post-norm", "ForMultipleChoice"])
    assert model.encoder.pooler is not None
