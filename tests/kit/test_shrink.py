"""The smallest input on which a port goes wrong at the same tap."""

import random
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from xlmr_core.cli import main
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.recording import Checkpoint, record
from xlmr_core.parity.shrink import Port, cut, shrink, smallest
from xlmr_core.parity.trace import Trace

TEXTS = ["the cat sees the dog", "a bird", "the dog"]


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint: Path) -> Checkpoint:
    return Checkpoint.load(toy_checkpoint)


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, TEXTS)


@pytest.fixture(scope="module")
def saved(trace: Trace, toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shrink") / "trace.safetensors"
    trace.save(path)
    assert xlmr("floor", toy_checkpoint, path, "--dtype", "float32").exit_code == 0
    return path


def with_fault(checkpoint: Checkpoint, name: str) -> Port:
    def port(trace: Trace) -> Mapping[str, Tensor]:
        with find_fault(name).applied(checkpoint.model):  # type: ignore[union-attr]
            return {f"x.{tap}": tensor for tap, tensor in dump_of(checkpoint.model, trace.inputs).items()}

    return port


# ---- delta debugging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_nothing_of_the_smallest_part_can_be_removed(seed: int) -> None:
    draw = random.Random(seed)
    needed = {*draw.sample(range(30), draw.randint(1, 6))}
    kept = smallest(range(30), lambda part: needed <= {*part})
    assert {*kept} == needed
    assert kept == sorted(kept)


def test_what_needs_a_number_of_items() -> None:
    assert len(smallest(range(40), lambda part: len(part) >= 7)) == 7
    assert smallest([3], lambda part: True) == [3]


# ---- ports that run --------------------------------------------------------------------------------------------------


def test_a_function_that_is_wrong_everywhere_needs_one_token(trace: Trace, checkpoint: Checkpoint) -> None:
    found = shrink(trace, with_fault(checkpoint, "gelu_tanh"), checkpoint, floors=None)
    assert found.divergence.tap == "layers.0.feed_forward.post"
    assert found.trace.real.tolist() == [[True]]
    assert found.trace.provenance.texts == ()
    lines = str(found).splitlines()
    assert lines[0].startswith("layers.0.feed_forward.post is the first tap that differs, by ")
    assert lines[1] == f"1 of 3 rows and 1 of {int(trace.real.sum())} tokens show it"
    assert lines[-1] == f"input_ids {found.trace.inputs['input_ids'].tolist()}"


def test_padding_stays_where_the_fault_needs_it(trace: Trace, checkpoint: Checkpoint) -> None:
    found = shrink(trace, with_fault(checkpoint, "mask_missing"), checkpoint, floors=None)
    assert found.divergence.tap == "layers.0.attention.scores"
    assert found.trace.real.shape == (1, 2)
    assert int(found.trace.real.sum()) == 1


def test_a_fault_of_one_token_keeps_that_token(trace: Trace, checkpoint: Checkpoint) -> None:
    odd = int(trace.inputs["input_ids"][1, 2])

    def port(small: Trace) -> Mapping[str, Tensor]:
        dump = dump_of(checkpoint.model, small.inputs)
        wrong = small.inputs["input_ids"][..., None] == odd
        return {tap: t + wrong if tap == "embeddings.output" else t for tap, t in dump.items()}

    found = shrink(trace, port, checkpoint, floors=None)
    assert found.trace.inputs["input_ids"].tolist() == [[odd]]


def test_the_texts_stay_where_only_rows_are_removed(trace: Trace, checkpoint: Checkpoint) -> None:
    """A port of a fixed length, which goes wrong on one row."""
    length = trace.real.shape[1]
    row = trace.inputs["input_ids"][1]

    def port(small: Trace) -> Mapping[str, Tensor]:
        ids = small.inputs["input_ids"]
        if ids.shape[1] != length:
            raise TraceError("expected another length")
        wrong = (ids == row).all(dim=1)[:, None, None]
        dump = dump_of(checkpoint.model, small.inputs)
        return {tap: t + wrong if tap == "layers.0.output" else t for tap, t in dump.items()}

    found = shrink(trace, port, checkpoint, floors=None)
    assert found.trace.provenance.texts == (TEXTS[1],)
    assert torch.equal(found.trace.inputs["input_ids"], row[None])


def test_the_search_ends_after_so_many_runs(trace: Trace, checkpoint: Checkpoint) -> None:
    ticks: list[int] = []
    port = with_fault(checkpoint, "gelu_tanh")
    found = shrink(trace, port, checkpoint, floors=None, most=3, tick=ticks.append)
    assert found.stopped
    assert found.runs == len(ticks) == 3
    assert "ended after 3 runs" in str(found)
    with pytest.raises(TraceError, match="there is nothing to shrink"):
        shrink(trace, lambda small: dump_of(checkpoint.model, small.inputs), checkpoint, floors=None)


# ---- dumps -----------------------------------------------------------------------------------------------------------


def test_of_a_dump_rows_are_cut(trace: Trace, checkpoint: Checkpoint) -> None:
    dump = {tap: tensor.clone() for tap, tensor in trace.tensors.items()}
    dump["layers.1.mid"][2] += 1
    dump["layers.1.output"] += 1
    found = cut(trace, dump, floors=None)
    assert found.divergence.tap == "layers.1.mid"
    assert found.trace.provenance.texts == (TEXTS[2],)
    assert found.trace.real.shape == (1, trace.real.shape[1])
    assert "cannot be run again: tokens are not removed" in str(found)


def test_the_commands(trace: Trace, saved: Path, toy_checkpoint: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    small, port = tmp_path / "small.safetensors", tmp_path / "port.npz"
    with find_fault("gelu_tanh").applied(checkpoint.model):  # type: ignore[union-attr]
        wrong = dump_of(checkpoint.model, trace.inputs)
    np.savez(port, **{f"x.{tap}": tensor.numpy() for tap, tensor in wrong.items()})
    result = xlmr("shrink", saved, port, "-o", small)
    assert result.exit_code == 0, result.output
    assert len(Trace.load(small).real) == 1
    assert Trace.load(small).provenance.weights_sha256 == trace.provenance.weights_sha256

    script = tmp_path / "dump.py"
    script.write_text(
        "import sys\nimport numpy as np\nfrom safetensors.numpy import load_file\n"
        "inputs = load_file(sys.argv[1])\ndump = {}\n"
        "ids, states = inputs['input_ids'], inputs['embeddings.output']\n"
        "dump['states'] = states + (ids == 7)[..., None]\nnp.savez(sys.argv[2], **dump)\n"
    )
    line = f"{sys.executable} {script} {{trace}} {{dump}}"
    names = tmp_path / "names.toml"
    names.write_text('[names]\n"embeddings.output" = "states"\n')
    arguments = ["--names", names, "--model", toy_checkpoint, "-o", small, "--most", 12]
    result = xlmr("shrink", saved, "--run", line, *arguments)
    assert result.exit_code == 0, result.output
    assert 7 in Trace.load(small).inputs["input_ids"]
    for line, message in (("false", "wrote no dump to {dump} (exit status 1"), ("/no/such/program", "cannot be run")):
        result = xlmr("shrink", saved, "--run", line, *arguments)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_transformers_and_onnx(saved: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = tmp_path / "small.safetensors"
    result = xlmr("shrink", saved, "--reference", "transformers", "--model", toy_checkpoint, "-o", small)
    assert result.exit_code == 1
    assert "there is nothing to shrink" in result.stderr
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'xlmr-core[onnx]'")
    from kit.test_ports import exported

    options = {"dtype": torch.float32, "attn_implementation": "eager", "hidden_act": "gelu_new"}
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint, **options).eval()
    port = exported(model, tmp_path / "model.onnx")
    result = xlmr("shrink", saved, port, "--model", toy_checkpoint, "-o", small)
    assert result.exit_code == 0, result.output
    assert int(Trace.load(small).real.sum()) == 1
    assert "layers.0.feed_forward.post is the first tap that differs, by" in result.output
    assert xlmr("check", small, port, "--exact").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "small.npz"], "a trace is a .safetensors file"),
        (["-o", "small.safetensors"], "name one port"),
        (["{port}", "--run", "x", "-o", "small.safetensors"], "name one port"),
        (["{other}", "-o", "small.safetensors"], "is not .npz, .safetensors, .onnx or .xml"),
        (["{port}", "-o", "{trace}"], "is read"),
    ],
)
def test_wrong_arguments(saved: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {"{port}": tmp_path / "port.npz", "{other}": tmp_path / "port.txt", "{trace}": saved}
    for file in list(files.values())[:2]:
        file.write_bytes(b"x")
    result = xlmr("shrink", saved, *(files.get(argument, argument) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
