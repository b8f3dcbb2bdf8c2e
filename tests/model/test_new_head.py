"""A head that is defined only in this file: loading, conversion, taps, traces and diagnosis work with it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copy

import pytest
import reference
import torch
from torch import Tensor, nn

from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
from xlmr_core.checkpoint.convert import convert
from xlmr_core.heads import EncoderWithHead, HeadInput, XLMRobertaForMaskedLM
from xlmr_core.kernels import first_token
from xlmr_core.model import XLMRobertaModel
from xlmr_core.parameter_groups import ParameterGroup
from xlmr_core.parity.check import check_trace
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.floors import measure
from xlmr_core.parity.recording import Checkpoint, record, rerun
from xlmr_core.parity.tap_values import in_reading_order, shape_of
from xlmr_core.parity.trace import Trace
from xlmr_core.spec import ModelSpec, Tap


@dataclass(frozen=True)
class RegressionOutput:
    scores: Tensor
    last_hidden_state: Tensor


class ForTwoScores(EncoderWithHead[RegressionOutput]):
    """Two numbers for a text: how positive it is, and how sure."""

    spec = ModelSpec(
        groups=(ParameterGroup("regression", ("regression.dense.*", "regression.scores.*")),),
        taps=(
            Tap("regression.dense", "(B, H)", "the first token through the head's map", "regression.dense"),
            Tap("regression.scores", "(B, 2)", "the two scores", "regression.scores"),
        ),
        row_parameters=("regression.scores.",),
    )

    def add_head(self, config) -> None:
        self.regression = nn.ModuleDict(
            {"dense": nn.Linear(config.hidden_size, config.hidden_size), "scores": nn.Linear(config.hidden_size, 2)}
        )

    def head(self, hidden: Tensor, given: HeadInput) -> RegressionOutput:
        first = hidden[first_token(given.lengths)]
        return RegressionOutput(self.regression["scores"](self.regression["dense"](first).tanh()), hidden)


TEXTS = ["the cat sees the dog", "a bird"]


@pytest.fixture(scope="module")
def folder(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with this head."""
    torch.manual_seed(0)
    model = ForTwoScores(XLMRobertaModel.from_pretrained(toy_checkpoint).config)
    model.initialize()
    folder = tmp_path_factory.mktemp("two-scores")
    model.save_pretrained(folder)
    copy(toy_checkpoint / "sentencepiece.bpe.model", folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.load(folder)


def test_it_is_saved_and_loaded(folder: Path) -> None:
    model = ForTwoScores.from_pretrained(folder)
    assert {entry.status for entry in model.load_report.model_keys.values()} == {"loaded"}
    assert {entry.status for entry in model.load_report.checkpoint_keys.values()} == {"loaded"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == []  # transformers has no such class
    again = ForTwoScores.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_without_it_is_refused_unless_a_new_head_is_asked_for(toy_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ForTwoScores needs the group regression \(regression\.dense\.weight"):
        ForTwoScores.from_pretrained(toy_checkpoint)
    model = ForTwoScores.from_pretrained(toy_checkpoint, new_head=True)
    filled = {name for name, entry in model.load_report.model_keys.items() if entry.status == "filled"}
    assert filled == {f"regression.{part}.{leaf}" for part in ("dense", "scores") for leaf in ("weight", "bias")}
    with pytest.raises(ValueError, match="ForTwoScores has no classes to name"):
        ForTwoScores.from_pretrained(toy_checkpoint, new_head=True, labels=["a", "b"])


def test_other_classes_drop_its_tensors_by_name(folder: Path) -> None:
    report = XLMRobertaModel.from_pretrained(folder).load_report
    assert report.checkpoint_keys["regression.scores.bias"].why == "XLMRobertaModel has no regression"
    with pytest.raises(CheckpointError, match="needs the group lm_head"):
        XLMRobertaForMaskedLM.from_pretrained(folder)


def test_it_is_found_in_a_file_and_converted(folder: Path, tmp_path: Path) -> None:
    found = inspect_checkpoint(folder)
    assert (found.model, found.problems) == ("ForTwoScores", ())
    convert(folder, tmp_path / "native", "native")
    expected = ForTwoScores.from_pretrained(folder).state_dict()
    again = ForTwoScores.from_pretrained(tmp_path / "native").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in expected.items())
    with pytest.raises(CheckpointError, match=r"has no name for .*Leave regression out on purpose"):
        convert(folder, tmp_path / "fairseq", "fairseq")


def test_its_taps_and_packed_batches() -> None:
    model = ForTwoScores(reference.POST_NORM).eval()
    reference.randomize(model)
    assert [tap.name for tap in model.taps()][-2:] == ["regression.dense", "regression.scores"]
    assert shape_of("regression.scores") == "(B, 2)"
    assert in_reading_order(["regression.scores", "layers.0.mid"])[-1] == "regression.scores"
    batch = reference.awkward_batch(reference.POST_NORM)
    packed = reference.packed_batch(batch, reference.POST_NORM.pad_token_id)
    with model.capture("regression.*") as acts:
        padded = model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    assert torch.equal(acts["regression.scores"], padded.scores)
    assert model(**packed).scores.shape == (len(packed["lengths"]), 2)
    with model.intervene({"regression.dense": torch.zeros_like}):
        assert torch.equal(model(**packed).scores, model.regression["scores"].bias.expand(len(packed["lengths"]), 2))


def test_a_trace_is_recorded_checked_and_diagnosed(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert isinstance(checkpoint.model, ForTwoScores)
    record(folder, TEXTS).save(tmp_path / "trace.safetensors")
    trace = Trace.load(tmp_path / "trace.safetensors")
    assert (trace.provenance.model, list(trace.tensors)[-1]) == ("ForTwoScores", "regression.scores")
    table = measure(checkpoint.model, trace.inputs, dtypes=[torch.float32])
    assert table.floors.errors["float32"]["regression.scores"] < 1e-4  # rounding, not the size of the scores
    right = rerun(trace, checkpoint, dtype=torch.float32)
    assert check_trace(trace, right, floors=table.floors).ok
    wrong = right | {"regression.scores": right["regression.scores"].flip(-1)}
    comparison = check_trace(trace, wrong, floors=table.floors)
    assert not comparison.ok
    assert comparison.first_divergence.tap == "regression.scores"
    assert diagnose(checkpoint.model, trace.inputs, wrong).first_tap == "regression.scores"


def test_a_spec_without_its_row_parameters_is_an_error(checkpoint: Checkpoint) -> None:
    """Otherwise the noise floor of the head would be as large as its scores, and any port would pass there."""
    batch = {"input_ids": torch.tensor([[0, 5, 6, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}

    class Forgetful(ForTwoScores):
        spec = replace(ForTwoScores.spec, row_parameters=())

    model = Forgetful(checkpoint.model.config).eval()
    model.load_state_dict(checkpoint.model.state_dict())
    with pytest.raises(ValueError, match=r"regression\.scores changes .* row_parameters of the spec of Forgetful"):
        measure(model, batch, dtypes=[torch.float32])
