"""Traces of models with other heads than the masked language model's, of pairs of texts, and of packed dumps."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from xlmr_core import (
    XLMRobertaForM3,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizer,
)
from xlmr_core.parity.check import check_trace, dump_from_file, dump_from_transformers, measure_trace
from xlmr_core.parity.compare import FACTOR
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.recording import Checkpoint, record, rerun
from xlmr_core.parity.trace import Trace, TraceError
from xlmr_core.pretrained import PretrainedModel

TEXTS = ["a cat", "a bird"]
PAIRS = ["the dog", "cat"]
HEADS: dict[type[PretrainedModel], tuple[str, ...]] = {
    XLMRobertaForSequenceClassification: ("classifier.dense", "classifier.logits"),
    XLMRobertaForTokenClassification: ("tagger.logits",),
    XLMRobertaForQuestionAnswering: ("answer.logits",),
    XLMRobertaForM3: ("sparse.weight", "colbert.dense"),
}


@pytest.fixture(scope="module", params=HEADS, ids=lambda cls: cls.__name__)
def head(request: pytest.FixtureRequest, toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A class with a head, and a folder with such a checkpoint: every tensor random, biases of norms too."""
    return request.param, write(request.param, toy_checkpoint, tmp_path_factory.mktemp("head"))


def write(cls: type[PretrainedModel], toy_checkpoint: Path, folder: Path) -> Path:
    model = cls.from_pretrained(toy_checkpoint, new_head=True)
    reference.randomize(model)
    model.save_pretrained(folder)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(toy_checkpoint / name, folder / name)
    return folder


def test_a_head_is_recorded_with_its_taps(head: Any, tmp_path: Path) -> None:
    cls, folder = head
    trace = record(folder, TEXTS, pairs=PAIRS)
    assert trace.provenance.model == cls.__name__
    assert trace.provenance.pairs == tuple(PAIRS)
    assert tuple(trace.tensors)[-len(HEADS[cls]) :] == HEADS[cls]
    batch = XLMRobertaTokenizer.from_pretrained(folder)(TEXTS, PAIRS)
    assert torch.equal(trace.inputs["input_ids"], batch.input_ids)
    trace.save(tmp_path / "trace.safetensors")
    again = Trace.load(tmp_path / "trace.safetensors")
    assert again.provenance == trace.provenance
    assert again.to_bytes() == trace.to_bytes()
    run = rerun(again, Checkpoint.load(folder), dtype=torch.float32)
    comparison = check_trace(again, run, floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


def test_a_head_has_floors(head: Any) -> None:
    cls, folder = head
    trace = record(folder, TEXTS)
    table = measure_trace(trace, Checkpoint.load(folder), dtypes=[torch.float32, torch.bfloat16])
    assert 1 < reference.outlier_ratio(table) < FACTOR
    for tap in HEADS[cls]:
        assert 0 < table.floors.errors["float32"][tap] < table.floors.errors["bfloat16"][tap]
    run = rerun(trace, Checkpoint.load(folder), dtype=torch.bfloat16)
    assert check_trace(trace, run, floors=table.floors).ok


def test_transformers_is_equal(head: Any) -> None:
    cls, folder = head
    trace = record(folder, TEXTS, pairs=PAIRS)
    comparison = check_trace(trace, dump_from_transformers(trace, str(folder), dtype=torch.float32), floors=None)
    missing = {row.tap for row in comparison.rows if row.verdict == "missing"}
    assert missing == (set(HEADS[cls]) if cls is XLMRobertaForM3 else set())  # transformers has no class for it
    assert {row.verdict for row in comparison.rows} <= {"equal", "missing"}, str(comparison)


def test_gradients_are_of_masked_language_models(head: Any) -> None:
    _, folder = head
    with pytest.raises(ValueError, match="gradients need a masked language model"):
        record(folder, TEXTS, grad=True)


@pytest.mark.parametrize("fault", ["gelu_tanh", "scores_unscaled", "mask_missing"])
def test_a_fault_below_a_head_is_named(head: Any, fault: str) -> None:
    """What is known of a port is its head's output and a few taps; the fault is in the encoder."""
    cls, folder = head
    trace, model = record(folder, TEXTS, pairs=PAIRS), Checkpoint.load(folder).model
    with find_fault(fault).applied(model):
        wrong = rerun_taps(model, trace, ["layers.*.output", *HEADS[cls]])
    found = diagnose(Checkpoint.load(folder).model, trace.inputs, wrong)
    assert found.faults == (fault,), str(found)
    assert found.explained


def rerun_taps(model: PretrainedModel, trace: Trace, taps: list[str]) -> dict[str, Tensor]:
    with torch.no_grad(), model.capture(*taps) as acts:
        model(**trace.inputs)
    return dict(acts)


def test_a_wrong_head_is_found_at_its_tap(head: Any) -> None:
    cls, folder = head
    trace, model = record(folder, TEXTS), Checkpoint.load(folder).model
    table = measure_trace(trace, Checkpoint.load(folder), dtypes=[torch.float32])
    last = model.get_submodule(next(tap.module for tap in model.taps() if tap.name == HEADS[cls][-1]))
    with torch.no_grad():
        last.get_parameter("bias").zero_()
    run = rerun_taps(model, trace, trace.taps)
    first = check_trace(trace, run, floors=table.floors).first_divergence
    assert first is not None
    assert (first.tap, first.verdict) == (HEADS[cls][-1], "DIVERGES")
    found = diagnose(Checkpoint.load(folder).model, trace.inputs, run)
    if cls is XLMRobertaForM3:  # no fault of the catalogue is made there
        assert found.faults == ("colbert.dense: colbert_linear.bias is not added",), str(found)
    else:
        assert found.faults[0].endswith("bias_missing"), str(found)


def test_of_multiple_choice_the_encoder_is_recorded(toy_checkpoint: Path, tmp_path: Path) -> None:
    model = XLMRobertaForMultipleChoice.from_pretrained(toy_checkpoint, new_head=True)
    reference.randomize(model)
    model.save_pretrained(tmp_path)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(toy_checkpoint / name, tmp_path / name)
    trace = record(tmp_path, TEXTS)
    assert trace.provenance.model == "XLMRobertaModel"
    assert list(trace.tensors)[-2:] == ["pooler.dense", "pooler.output"]


def test_every_text_needs_its_pair(toy_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="as many pairs as texts: 2, got 1"):
        record(toy_checkpoint, TEXTS, pairs=PAIRS[:1])


# ---- packed dumps ----------------------------------------------------------------------------------------------------


def test_a_packed_dump_is_put_in_its_places(toy_checkpoint: Path, tmp_path: Path) -> None:
    """A port without padding writes (T, H) for each token, and (B, H) for each text, or heads apart."""
    trace = record(toy_checkpoint, TEXTS, taps=["layers.*.output", "layers.*.attention.q", "lm_head.logits"], top_k=0)
    packed = {tap: tensor[trace.real].numpy() for tap, tensor in trace.tensors.items()}
    assert packed["layers.1.output"].shape == (int(trace.real.sum()), trace.config.hidden_size)
    for tap, array in packed.items():
        if tap.endswith(".q"):
            packed[tap] = array.reshape(len(array), trace.config.num_attention_heads, -1)
    np.savez(tmp_path / "dump.npz", **packed)
    comparison = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)

    packed["layers.1.output"] = packed["layers.1.output"][::-1].copy()
    np.savez(tmp_path / "dump.npz", **packed)
    first = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=None).first_divergence
    assert first is not None
    assert first.tap == "layers.1.output"
    packed["layers.1.output"] = packed["layers.1.output"][:-1]
    np.savez(tmp_path / "dump.npz", **packed)
    rows = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=None).rows
    assert next(row for row in rows if row.tap == "layers.1.output").verdict == "misshapen"


def test_a_map_can_say_that_a_dump_is_packed(toy_checkpoint: Path, tmp_path: Path) -> None:
    trace = record(toy_checkpoint, TEXTS, taps=["layers.*.attention.q", "embeddings.output"])
    heads = trace.config.num_attention_heads
    arrays = {"e": trace.tensors["embeddings.output"][trace.real].numpy()}
    for i in range(trace.config.num_hidden_layers):
        q = trace.tensors[f"layers.{i}.attention.q"][trace.real]  # (T, H)
        arrays[f"q{i}"] = np.ascontiguousarray(q.unflatten(1, (heads, -1)).transpose(0, 1).numpy())
    np.savez(tmp_path / "dump.npz", **arrays)
    names = {"layers.{i}.attention.q": {"name": "q{i}", "axes": "N T D"}, "embeddings.output": "e"}
    (tmp_path / "names.json").write_text(json.dumps({"names": names}))
    dump = dump_from_file(trace, tmp_path / "dump.npz", tmp_path / "names.json")
    comparison = check_trace(trace, dump, floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


def test_a_layer_that_a_dump_lacks_is_missing_and_a_wrong_name_is_told(toy_checkpoint: Path, tmp_path: Path) -> None:
    trace = record(toy_checkpoint, TEXTS, taps=["layers.*.mid"])
    np.savez(tmp_path / "dump.npz", m0=trace.tensors["layers.0.mid"].numpy())

    def read(names: object) -> dict[str, Tensor]:
        (tmp_path / "names.json").write_text(json.dumps(names))
        return dump_from_file(trace, tmp_path / "dump.npz", tmp_path / "names.json")

    comparison = check_trace(trace, read({"names": {"layers.{i}.mid": "m{i}"}}), floors=None)
    assert [row.verdict for row in comparison.rows] == ["equal", "missing"]
    with pytest.raises(TraceError, match=r"'layers\.\{i\}\.midd', which is no tap; near: layers\.\{i\}\.mid"):
        read({"names": {"layers.{i}.midd": "m{i}"}})
    with pytest.raises(TraceError, match=r"called 'n0', but the dump has no such tensor\. It has 'm0'"):
        read({"names": {"layers.{i}.mid": "n{i}"}})
    with pytest.raises(TraceError, match="is not a map of names: names: Field required"):
        read({"layers.{i}.mid": "m{i}"})
