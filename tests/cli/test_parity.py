"""`xlmr parity`, as a person at a terminal meets it."""

import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from kit.test_trace_heads import write
from safetensors.torch import save_file

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification
from xlmr_core.cli import main
from xlmr_core.cli.progress import progress
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.faults import FAULTS, POOLING_FAULTS, TOKENIZER_FAULTS, find_fault
from xlmr_core.parity.floors import FloorTable
from xlmr_core.parity.trace import Trace


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture(scope="module")
def recorded(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with its floors beside it."""
    path = tmp_path_factory.mktemp("traces") / "toy.safetensors"
    result = xlmr("record", toy_checkpoint, "--text", "the cat sees the dog", "--text", "a bird", "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}: {len(Trace.load(path).tensors)} tensors, {path.stat().st_size:,} bytes\n"
    result = xlmr("floor", toy_checkpoint, path, "--dtype", "float32", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert f"written to {path.with_suffix('.floors.json')}" in result.stdout
    return path


@pytest.fixture
def dump(recorded: Path, tmp_path: Path) -> Path:
    """What a port would write: right, but for layer 1's norms, and in float32."""
    arrays = {tap: tensor.numpy() for tap, tensor in Trace.load(recorded).tensors.items()}
    arrays["layers.1.mid"] = arrays["layers.1.mid"] * 1.001
    np.savez(tmp_path / "port.npz", **arrays)
    return tmp_path / "port.npz"


def test_parity_has_subcommands() -> None:
    result = xlmr("--help")
    assert result.exit_code == 0
    for name in ("record", "floor", "check"):
        assert name in result.stdout


def test_floors_are_measured_uncompiled_unless_asked(recorded: Path) -> None:
    measurements = FloorTable.load(recorded.with_suffix(".floors.json")).measurements
    assert not any(measurement.compiled for measurement in measurements)


def test_progress_is_shown_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("measuring", total=3, every=0) as tick:
        tick(1)
        tick(2)
    with progress("trying", every=0) as tick:
        tick(1)
    with progress("measuring", total=3) as tick:  # done before the first line is due
        tick(3)
    assert capsys.readouterr().err == "measuring: 1 of 3 runs\nmeasuring: 3 of 3 runs\ntrying: 1 runs\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_agrees_with_its_own_trace(recorded: Path, toy_checkpoint: Path, dtype: str) -> None:
    result = xlmr("check", recorded, toy_checkpoint, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("parity: 37 of 37 taps agree")
    exact = xlmr("check", recorded, toy_checkpoint, "--dtype", dtype, "--exact")
    assert exact.exit_code == (0 if dtype == "float32" else 1)


def test_another_trace_agrees(recorded: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "sdpa.safetensors"
    texts = ["--text", "the cat sees the dog", "--text", "a bird"]
    assert xlmr("record", toy_checkpoint, *texts, "--attention", "sdpa", "-o", other).exit_code == 0
    result = xlmr("check", recorded, other)
    assert result.exit_code == 1  # fused attention has no scores and probs
    assert "incomplete: 33 of 37 taps agree; 4 expected tensors are missing" in result.stdout
    assert xlmr("check", recorded, other, "--taps", "layers.?.output", "--taps", "lm_head.*").exit_code == 0


def test_transformers_agrees(recorded: Path, toy_checkpoint: Path) -> None:
    result = xlmr("check", recorded, toy_checkpoint, "--reference", "transformers", "--exact")
    assert result.exit_code == 0, result.output


def test_a_divergence_is_marked_drawn_and_told_by_the_exit_status(recorded: Path, dump: Path, tmp_path: Path) -> None:
    result = xlmr("check", recorded, dump, "--plot", tmp_path / "error.svg")
    assert result.exit_code == 1
    [marked] = [line for line in result.stdout.splitlines() if line.startswith("->")]
    assert marked.split()[1] == "layers.1.mid"
    assert marked.endswith("DIVERGES")
    assert result.stdout.splitlines()[-1].startswith("first divergence: layers.1.mid: DIVERGES; 1 of 37 taps differ")
    assert ET.parse(tmp_path / "error.svg").getroot().tag.endswith("svg")


def test_json(recorded: Path, dump: Path) -> None:
    result = xlmr("check", recorded, dump, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ok"], found["first_divergence"]) == (False, "layers.1.mid")
    assert len(found["rows"]) == 37


def test_a_port_that_computed_in_bfloat16_and_stored_float32(recorded: Path, tmp_path: Path) -> None:
    taps = Trace.load(recorded).tensors
    rounded = {tap: t.to(torch.bfloat16).float().numpy() for tap, t in taps.items() if t.is_floating_point()}
    np.savez(tmp_path / "port.npz", **rounded)
    check = ["check", recorded, tmp_path / "port.npz", "--taps", "layers.*.output"]
    seen = xlmr(*check)
    assert seen.exit_code == 0, seen.output
    assert "every number is one of bfloat16, stored wider: judged by the floors of bfloat16" in seen.stdout
    assert json.loads(xlmr(*check, "--json").stdout)["ok"]
    assert xlmr(*check, "--dtype", "float32").exit_code == 1
    assert xlmr(*check, "--exact").exit_code == 1
    np.savez(tmp_path / "port.npz", **{tap: array * np.float32(1.0001) for tap, array in rounded.items()})
    assert xlmr(*check).exit_code == 1
    assert xlmr(*check, "--dtype", "bfloat16").exit_code == 0


def test_a_port_in_int8_is_judged_by_floors_of_its_own(recorded: Path, dump: Path, toy_checkpoint: Path) -> None:
    unmeasured = xlmr("check", recorded, dump, "--dtype", "int8")
    assert "no floor was measured here for float32 and int8" in unmeasured.stdout
    floors = recorded.parent / "int8.floors.json"
    measured = xlmr("floor", toy_checkpoint, recorded, "--dtype", "float32", "--dtype", "int8", "-o", floors)
    assert measured.exit_code == 0, measured.output
    result = xlmr("check", recorded, dump, "--dtype", "int8", "--floors", floors)
    assert result.exit_code == 0, result.output
    assert "is a checkpoint" in xlmr("check", recorded, toy_checkpoint, "--dtype", "int8").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "{trace}"], "name what to compare"),
        (["check", "{trace}", "{folder}", "--plot", "a.bmp"], "--plot writes .svg, .png, .pdf, not a.bmp"),
        (["check", "{trace}", "{folder}", "--taps", "nothing.*"], "no tap of the trace matches"),
        (["check", "{trace}", "{folder}", "--floors", "none.json"], "there is no none.json"),
        (["check", "{trace}", "{folder}/config.json"], "is not .npz, .safetensors, .onnx or .xml"),
        (["check", "{trace}", "{folder}/model.safetensors", "--names", "{folder}/config.json"], "not a map of names"),
        (["check", "{folder}/model.safetensors", "{folder}"], "is not a trace"),
        (["diagnose", "{trace}", "{trace}", "--dtype", "int8"], "Diagnose a dump of the port before it was quantised"),
        (["record", "{folder}", "--text", "the cat", "-o", "a.bin"], "a trace is a .safetensors file"),
        (["record", "{folder}", "--text", "the cat", "--taps", "nothing", "-o", "a.safetensors"], "no tap matches"),
        (["record", "{folder}", "--text", "the cat", "--taps", "", "-o", "a.safetensors"], "pattern of taps is empty"),
        (["record", "{folder}", "-o", "a.safetensors"], "Missing option '--text'"),
    ],
)
def test_errors_are_one_line(recorded: Path, toy_checkpoint: Path, arguments: list[str], message: str) -> None:
    result = xlmr(*(argument.format(trace=recorded, folder=toy_checkpoint) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["record", "check"])
def test_a_device_that_is_not_here(command: str, recorded: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    arguments = {
        "record": [toy_checkpoint, "--text", "a cat", "-o", tmp_path / "t.safetensors"],
        "check": [recorded, toy_checkpoint],
    }
    result = xlmr(command, *arguments[command], "--device", "foo")
    assert result.exit_code == 1
    assert "device 'foo'" in result.stderr
    assert "there is cpu" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_faults_are_listed() -> None:
    listed = xlmr("faults")
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    names = {fault.name for fault in (*FAULTS, *TOKENIZER_FAULTS, *POOLING_FAULTS)}
    assert len(lines) == len(names) + 1  # a fault with two levels is listed once
    assert "gelu_tanh" in listed.stdout
    one = xlmr("faults", "q_k_swapped")
    assert one.stdout.splitlines()[1] == "tap     layers.0.attention.q"
    assert [row["name"] for row in json.loads(xlmr("faults", "q_k_swapped", "--json").stdout)] == ["q_k_swapped"]
    unknown = xlmr("faults", "q_k_swop")
    assert unknown.exit_code == 2
    assert "no fault is called 'q_k_swop'" in unknown.stderr


def test_a_reranker_is_recorded_with_pairs(toy_checkpoint: Path, tmp_path: Path) -> None:
    folder = write(XLMRobertaForSequenceClassification, toy_checkpoint, tmp_path / "reranker")
    path = tmp_path / "t.safetensors"
    result = xlmr("record", folder, "--text", "a cat", "--pair", "the dog", "-o", path)
    assert result.exit_code == 0, result.output
    trace = Trace.load(path)
    assert (trace.provenance.texts, trace.provenance.pairs) == (("a cat",), ("the dog",))
    assert "classifier.logits" in trace.tensors
    assert xlmr("check", path, folder, "--exact").exit_code == 0
    assert (
        "as many pairs as texts"
        in xlmr("record", folder, "--text", "a", "--text", "b", "--pair", "c", "-o", path).stderr
    )


@pytest.fixture
def own_folder(recorded: Path, toy_checkpoint: Path, tmp_path: Path) -> Path:
    """A model and its trace, for the commands to destroy; links to both and a file of notes."""
    shutil.copytree(toy_checkpoint, tmp_path / "model")
    shutil.copy(recorded, tmp_path / "trace.safetensors")
    shutil.copy(recorded.with_suffix(".floors.json"), tmp_path / "trace.floors.json")
    (tmp_path / "notes.safetensors").write_text("mine")
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "notes.svg").write_text("mine")
    for link, target in [
        ("link.safetensors", "model/model.safetensors"),
        ("link.json", "trace.safetensors"),
        ("link.svg", "trace.floors.json"),
        ("folder", "model"),
    ]:
        (tmp_path / link).symlink_to(tmp_path / target)
    os.link(tmp_path / "trace.safetensors", tmp_path / "same.json")
    os.link(tmp_path / "model" / "model.safetensors", tmp_path / "same.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        ("record", "model/model.safetensors", "lies in"),
        ("record", "model/new.safetensors", "lies in"),
        ("record", "folder/new.safetensors", "lies in"),
        ("record", "link.safetensors", "lies in"),
        ("record", "same.safetensors", "is not a trace"),
        ("record", "notes.safetensors", "is not a trace"),
        ("floor", "trace.safetensors", "is the same file as"),
        ("floor", "link.json", "is the same file as"),
        ("floor", "same.json", "is the same file as"),
        ("floor", "model/config.json", "lies in"),
        ("floor", "notes.json", "is not a table of floors"),
        ("check", "notes.svg", "is not a picture of that type"),
        ("check", "link.svg", "is the same file as"),
    ],
)
def test_nothing_that_is_read_and_nothing_of_another_kind_is_overwritten(
    own_folder: Path, command: str, output: str, message: str
) -> None:
    arguments = {
        "record": [own_folder / "model", "--text", "a cat", "-o"],
        "floor": [own_folder / "model", own_folder / "trace.safetensors", "-o"],
        "check": [own_folder / "trace.safetensors", own_folder / "trace.safetensors", "--plot"],
    }
    before = {path: path.read_bytes() for path in own_folder.rglob("*") if path.is_file()}
    result = xlmr(command, *arguments[command], own_folder / output)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert {path: path.read_bytes() for path in own_folder.rglob("*") if path.is_file()} == before


def test_a_trace_and_a_table_are_replaced_by_new_ones(own_folder: Path) -> None:
    trace = own_folder / "trace.safetensors"
    (own_folder / "empty.safetensors").touch()
    for output in (trace, own_folder / "empty.safetensors"):
        assert xlmr("record", own_folder / "model", "--text", "a cat", "-o", output).exit_code == 0
    assert Trace.load(trace).provenance.texts == ("a cat",)
    result = xlmr("floor", own_folder / "model", trace, "--dtype", "float32", "--no-compiled")
    assert result.exit_code == 0, result.output
    assert xlmr("check", trace, own_folder / "model").exit_code == 0


def test_a_fault_below_the_noise_is_reported_and_fails_only_when_strict(
    recorded: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    trace = Trace.load(recorded)
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint).eval().to(torch.bfloat16)
    with find_fault("gelu_tanh").applied(model):
        dump = dump_of(model, trace.inputs)
    save_file({tap: tensor.contiguous() for tap, tensor in dump.items()}, tmp_path / "port.safetensors")
    check = ["check", recorded, tmp_path / "port.safetensors"]
    unknown = xlmr(*check)  # the trace names a folder that is not below this one
    assert unknown.exit_code == 0
    assert "name the checkpoint of the trace with --model" in unknown.stderr
    found = xlmr(*check, "--model", toy_checkpoint)
    assert found.exit_code == 0
    assert "within noise, but leaning towards gelu_tanh (size" in found.stdout
    strict = xlmr(*check, "--model", toy_checkpoint, "--strict", "--json")
    assert strict.exit_code == 1
    assert json.loads(strict.stdout)["leanings"][0]["name"] == "gelu_tanh"
    assert xlmr(*check, "--strict").exit_code == 1  # it cannot be judged
    assert xlmr(*check, "--strict", "--no-leaning").exit_code == 2
    assert "leaning" not in xlmr(*check, "--no-leaning").stdout
