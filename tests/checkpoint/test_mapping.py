"""The set algebra: every key accounted for, and everything else refused with a message that names it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import published
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.mapping import Source, make_plan
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel

WORD_TABLE = "roberta.embeddings.word_embeddings.weight"
DECODER = "lm_head.decoder.weight"
CLASSES = {"ForMaskedLM": XLMRobertaForMaskedLM, "Model": XLMRobertaModel}


def our_class(kind: str) -> Any:
    return CLASSES[published.KINDS[kind][1]]


# ---- the sweep ------------------------------------------------------------------------------------------------------

# Tensors of each kind of file: 3 layers of 16, 3 tables, and 2 norms or 1, pooler or LM head.
TENSORS = {"masked-lm": 58, "encoder": 55, "masked-lm-xl": 58, "encoder-xl": 55}
DAMAGES = ("deletion", "addition", "rename", "prefix", "longer", "another rank")
ONE_OF_EACH_KIND = ("deletion", "rename", "longer")  # a key less, another key, another shape


def swept(files: Iterable[str]) -> list[Any]:
    """Each kind of file with each damage. By default the first has them all, and the others one of each kind."""
    first, *others = files
    cases = [pytest.param(first, damage) for damage in DAMAGES]
    for file in others:
        cases += [pytest.param(file, damage) for damage in ONE_OF_EACH_KIND]
        rest = [damage for damage in DAMAGES if damage not in ONE_OF_EACH_KIND]
        cases += [pytest.param(file, damage, marks=pytest.mark.slow) for damage in rest]
    return cases


def damaged(tensors: dict[str, Tensor], key: str, damage: str) -> tuple[dict[str, Tensor], str]:
    """The tensors with one key damaged, and the key that the message must name."""
    rest = {name: tensor for name, tensor in tensors.items() if name != key}
    tensor = tensors[key]
    if damage == "deletion":
        return rest, key
    if damage == "addition":
        return tensors | {f"{key}_copy": tensor}, f"{key}_copy"
    if damage == "rename":
        return rest | {f"{key[:-1]}é": tensor}, f"{key[:-1]}é"
    if damage == "prefix":
        return rest | {f"model.{key}": tensor}, f"model.{key}"
    if damage == "longer":
        return tensors | {key: torch.cat([tensor, tensor[:1]])}, key
    return tensors | {key: tensor[None]}, key


@pytest.mark.parametrize(("kind", "damage"), swept(published.KINDS))
def test_sweep_every_damage_to_every_key_is_refused(kind: str, damage: str, folders: dict, monkeypatch: Any) -> None:
    tensors = published.tensors_of(folders[kind])
    held: dict[str, Tensor] = {}
    monkeypatch.setattr("xlmr_core.checkpoint.loading.open_weights", lambda path: held)
    refused = 0
    for key in tensors:
        held, named = damaged(tensors, key, damage)
        with pytest.raises(CheckpointError) as caught:
            our_class(kind).from_pretrained(folders[kind])
        assert named in str(caught.value)
        refused += 1
    assert refused == TENSORS[kind]
    held = tensors
    our_class(kind).from_pretrained(folders[kind])  # the sweep's own way of loading is sound


def test_the_message_has_both_lists_and_the_nearest_row(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    right = "roberta.encoder.layer.1.attention.self.query.weight"
    wrong = "roberta.encoder.layer.1.attention.self.qeury.weight"
    tensors[wrong] = tensors.pop(right)
    with pytest.raises(CheckpointError) as caught:
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'model.safetensors'} cannot be loaded:"
    assert lines[1].endswith("Nearest: HF post-norm with 'roberta.'")
    assert lines[2:] == [
        "  missing: 1",
        f"    {right!r} (nearest: {wrong!r})",
        "  unexpected: 1",
        f"    {wrong!r} (nearest: {right!r})",
    ]


def test_a_foreign_file_gets_a_short_message(folders: dict, tmp_path: Path) -> None:
    tensors = {f"transformer.h.{i}.attn.c_attn.weight": torch.zeros(2) for i in range(500)}
    with pytest.raises(CheckpointError, match="unexpected: 500") as caught:
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))
    assert len(str(caught.value).splitlines()) < 40


def test_a_shape_error_names_key_expected_and_found(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors["lm_head.bias"] = torch.zeros(54)
    with pytest.raises(CheckpointError, match=r"lm_head\.bias has shape \(54,\), but config\.json asks for \(53,\)"):
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


@pytest.mark.parametrize("layers", [2, 4, 10**9])
def test_another_number_of_layers(layers: int, folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    folder = published.rewritten(folders["masked-lm"], tmp_path, tensors, num_hidden_layers=layers)
    with pytest.raises(CheckpointError, match=r"layer\.2\.|layer\.3\.|asks for 1000000000 layers"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


# ---- layouts --------------------------------------------------------------------------------------------------------


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("roberta."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("kind", ["masked-lm", "masked-lm-xl"])
def test_with_and_without_the_prefix(kind: str, folders: dict, tmp_path: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders[kind])
    folder = published.rewritten(folders[kind], tmp_path, bare(published.tensors_of(folders[kind])))
    again = XLMRobertaForMaskedLM.from_pretrained(folder)
    assert again.load_report is not None
    assert again.load_report.layout.endswith("without 'roberta.'")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("architectures", [["XLMRobertaForMaskedLM"], ["XLMRobertaXLForMaskedLM"], None])
def test_keys_decide_the_norm_placement(architectures: Any, folders: dict, tmp_path: Path) -> None:
    """An early config of XXL says model_type xlm-roberta."""
    tensors = published.tensors_of(folders["masked-lm-xl"])
    options = {"model_type": "xlm-roberta", "architectures": architectures}
    model = XLMRobertaForMaskedLM.from_pretrained(
        published.rewritten(folders["masked-lm-xl"], tmp_path, tensors, **options)
    )
    assert model.config.norm_first
    expected = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm-xl"])
    batch = reference.awkward_batch(reference.PRE_NORM)
    assert torch.equal(model(**batch).logits, expected(**batch).logits)
    says_so = architectures == ["XLMRobertaXLForMaskedLM"]
    assert ("note: the keys are pre-norm; config.json suggests post-norm" in str(model.load_report)) == (not says_so)


def test_a_file_that_holds_two_encoders_is_refused(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    with pytest.raises(CheckpointError, match="holds the encoder 2 times"):
        XLMRobertaForMaskedLM.from_pretrained(
            published.rewritten(
                folders["masked-lm"], tmp_path, tensors | {k: t.clone() for k, t in bare(tensors).items()}
            )
        )


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_a_masked_lm_needs_its_head(folders: dict) -> None:
    with pytest.raises(CheckpointError, match=r"needs the group lm_head \(lm_head\.dense\.weight, ...\)"):
        XLMRobertaForMaskedLM.from_pretrained(folders["encoder"])


def test_the_published_extras_are_dropped_with_a_reason(folders: dict, tmp_path: Path) -> None:
    """xlm-roberta-base's file: a position_ids buffer, a pooler beside the LM head, and every tied name."""
    tensors = published.tensors_of(folders["masked-lm"])
    pooler = {f"roberta.{key}": t for key, t in published.tensors_of(folders["encoder"]).items() if "pooler" in key}
    extras = {
        "roberta.embeddings.position_ids": torch.arange(31)[None],
        DECODER: tensors[WORD_TABLE].clone(),
        "lm_head.decoder.bias": tensors["lm_head.bias"].clone(),
        **pooler,
    }
    model = XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors | extras))
    report = model.load_report
    assert report is not None
    statuses = report.checkpoint_keys
    assert statuses.keys() == tensors.keys() | extras.keys()
    assert {key for key, entry in statuses.items() if entry.status == "loaded"} == tensors.keys()
    assert str(statuses[DECODER]) == f"tied = {WORD_TABLE}"
    assert str(statuses["lm_head.decoder.bias"]) == "tied = lm_head.bias"
    assert "counts 0, 1, 2" in statuses["roberta.embeddings.position_ids"].why
    assert {statuses[key].why for key in pooler} == {"XLMRobertaForMaskedLM has no pooler"}
    assert report.model_keys.keys() == model.state_dict().keys()
    assert str(report.model_keys[DECODER]) == "tied = encoder.embeddings.word_embeddings.weight"
    assert "checkpoint keys: 58 loaded, 2 tied, 3 dropped" in str(report)
    assert "model keys: 58 loaded, 1 tied" in str(report)

    encoder = XLMRobertaModel.from_pretrained(tmp_path)
    assert encoder.pooler is not None
    assert encoder.load_report is not None
    assert encoder.load_report.checkpoint_keys[DECODER].why == "XLMRobertaModel has no lm_head"


@pytest.mark.parametrize("kept", ["weight", "bias"])
def test_a_group_is_all_or_nothing(kept: str, folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["encoder"])
    lost = tensors.pop(f"pooler.dense.{'bias' if kept == 'weight' else 'weight'}")
    assert lost is not None
    with pytest.raises(CheckpointError, match=r"missing: 1\n    'pooler\.dense\."):
        XLMRobertaModel.from_pretrained(published.rewritten(folders["encoder"], tmp_path, tensors))
    del tensors[f"pooler.dense.{kept}"]
    assert XLMRobertaModel.from_pretrained(published.rewritten(folders["encoder"], tmp_path, tensors)).pooler is None


def test_half_a_head_is_refused_by_the_bare_encoder_too(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    del tensors["lm_head.layer_norm.bias"]
    with pytest.raises(CheckpointError, match=r"lm_head\.layer_norm\.bias"):
        XLMRobertaModel.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


# ---- tied tensors and buffers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(WORD_TABLE, DECODER), ("lm_head.bias", "lm_head.decoder.bias")])
def test_a_tied_tensor_must_be_equal_bit_for_bit(first: str, second: str, folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors[first].view(-1)[5] = 0.0
    tensors[second] = tensors[first].clone()
    XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path / "equal", tensors))
    tensors[second].view(-1)[5] = -0.0  # equal as a number, but not the same bits
    folder = published.rewritten(folders["masked-lm"], tmp_path / "other", tensors)
    with pytest.raises(CheckpointError, match=f"{second} differs from {first}".replace(".", r"\.")):
        XLMRobertaForMaskedLM.from_pretrained(folder)
    XLMRobertaModel.from_pretrained(folder)  # it takes neither


@pytest.mark.parametrize(("first", "second"), [(WORD_TABLE, DECODER), ("lm_head.bias", "lm_head.decoder.bias")])
def test_one_name_of_a_tied_tensor_is_enough(first: str, second: str, folders: dict, tmp_path: Path) -> None:
    """safetensors keeps one name of a shared tensor, and not always the one you would."""
    tensors = published.tensors_of(folders["masked-lm"])
    expected = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"]).state_dict()
    tensors[second] = tensors.pop(first)
    folder = published.rewritten(folders["masked-lm"], tmp_path, tensors)
    for name, tensor in XLMRobertaForMaskedLM.from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    XLMRobertaModel.from_pretrained(folder)


def test_a_tied_tensor_of_another_shape_is_refused(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors[DECODER] = tensors[WORD_TABLE][:-1].clone()
    with pytest.raises(CheckpointError, match=r"lm_head\.decoder\.weight has shape \(52, 24\)"):
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


def test_a_tied_tensor_that_is_dropped_may_have_any_shape(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors[DECODER] = tensors[WORD_TABLE][:-1].clone()
    XLMRobertaModel.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


def test_an_untied_config_needs_the_decoder(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    folder = published.rewritten(folders["masked-lm"], tmp_path, tensors, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: 1\n    'lm_head\.decoder\.weight'"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


def test_an_untied_decoder_has_its_own_bias(tmp_path: Path) -> None:
    """transformers answers with lm_head.decoder.bias, and leaves lm_head.bias lying about."""
    theirs = published.write(tmp_path, "masked-lm", tied=False)
    model = XLMRobertaForMaskedLM.from_pretrained(tmp_path)
    assert not torch.equal(theirs.lm_head.bias, theirs.lm_head.decoder.bias)
    assert torch.equal(model.lm_head.decoder.bias, theirs.lm_head.decoder.bias)
    assert model.load_report is not None
    assert model.load_report.checkpoint_keys["lm_head.bias"].status == "dropped"


@pytest.mark.parametrize("buffer", [torch.arange(31)[None] + 2, torch.zeros(1, 31, dtype=torch.int64)])
def test_a_buffer_that_does_not_count_is_not_dropped(buffer: Tensor, folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"]) | {"roberta.embeddings.position_ids": buffer}
    with pytest.raises(CheckpointError, match=r"roberta\.embeddings\.position_ids does not count"):
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


# ---- totality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", published.KINDS)
@pytest.mark.parametrize("cls", CLASSES.values())
def test_every_key_has_exactly_one_fate(kind: str, cls: Any, folders: dict) -> None:
    keys = published.tensors_of(folders[kind]).keys()
    plan = make_plan(published.config_of(kind), keys, cls.spec, cls.__name__)
    if plan.problems:
        assert cls is XLMRobertaForMaskedLM
        assert kind.startswith("encoder")
        return
    assert plan.statuses.keys() == keys
    loaded = {key: entry.why for key, entry in plan.statuses.items() if entry.status == "loaded"}
    assert {ours: Source(key) for key, ours in loaded.items()} == plan.sources


def test_the_plan_does_not_change_its_arguments(folders: dict) -> None:
    config = replace(reference.POST_NORM)
    keys = list(published.tensors_of(folders["masked-lm-xl"]))
    before = list(keys)
    plan = make_plan(config, keys, XLMRobertaForMaskedLM.spec, "XLMRobertaForMaskedLM")
    assert keys == before
    assert config == reference.POST_NORM
    assert plan.config.norm_first
