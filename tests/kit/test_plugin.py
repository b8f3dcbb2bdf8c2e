"""The pytest plugin, used by another project: the NumPy port is tested with it in a pytest of its own."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

# Where the package is installed, its entry point loads the plugin, and loading it again is an error.
INSTALLED = any(point.name == "xlmr" for point in entry_points(group="pytest11"))
LOADED = () if INSTALLED else ("-p", "xlmr_core.pytest_plugin")

PORT_TESTS = """
import copy
import sys

sys.path.insert(0, {tests!r})
import pytest
from kit import numpy_port

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.int8 import quantise


def dump(trace, checkpoint, *faults):
    port = numpy_port.load(checkpoint)
    return numpy_port.forward(port, trace.inputs["input_ids"].numpy(), trace.inputs["attention_mask"].numpy(), faults)


FOLDER = __import__("pathlib").Path({checkpoint!r})


def test_right(xlmr_trace, assert_parity):
    comparison = assert_parity(dump(xlmr_trace, FOLDER), names=numpy_port.POST_NORM_NAMES)
    assert len(comparison.rows) == 36


def test_wrong(xlmr_trace, assert_parity):
    assert_parity(dump(xlmr_trace, FOLDER, "gelu_tanh"), names=numpy_port.POST_NORM_NAMES)


def test_wrong_but_not_here(xlmr_trace, assert_parity):
    names = numpy_port.POST_NORM_NAMES
    assert_parity(dump(xlmr_trace, FOLDER, "vocabulary_bias_missing"), names=names, taps=["layers.**"])


@pytest.mark.xlmr(texts=["a bird"])
def test_other_text(xlmr_trace, xlmr_model, assert_parity):
    assert len(xlmr_trace.inputs["input_ids"]) == 1
    assert xlmr_model.config.num_hidden_layers == 2
    unbatched = {{name: array[0] for name, array in dump(xlmr_trace, FOLDER).items()}}
    names = {{tap: drop_batch(name) for tap, name in numpy_port.POST_NORM_NAMES.items()}}
    assert_parity(unbatched, names=names)


def drop_batch(name):
    return name if isinstance(name, str) else {{**name, "axes": name["axes"][2:]}}


@pytest.mark.xlmr(texts=["a cat"], pairs=["the dog"])
def test_a_part_of_what_a_pair_gives(xlmr_trace, assert_parity):
    assert xlmr_trace.provenance.pairs == ("the dog",)
    part = {{name: array for name, array in dump(xlmr_trace, FOLDER).items() if name.startswith("b0.")}}
    names = {{tap: name for tap, name in numpy_port.POST_NORM_NAMES.items() if tap.startswith("layers.")}}
    comparison = assert_parity(part, names=names, partial=True)
    assert len(comparison.rows) == 14


def test_stored_wider(xlmr_trace, xlmr_model, assert_parity):
    narrow = dump_of(copy.deepcopy(xlmr_model).bfloat16(), xlmr_trace.inputs)
    assert_parity({{name: tensor.float() for name, tensor in narrow.items()}}, explain=False)


@pytest.mark.parametrize("dtype", ["int8", "int8-per-channel"])
def test_int8(xlmr_trace, xlmr_model, assert_parity, dtype):
    quantised = copy.deepcopy(xlmr_model)
    quantise(quantised, dtype)
    assert_parity(dump_of(quantised, xlmr_trace.inputs), dtype=dtype)


@pytest.mark.xlmr(text="a bird")
def test_bad_marker(xlmr_trace):
    pass
"""


def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_port_is_driven_through_the_plugin(
    pytester: pytest.Pytester, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch)
    pytester.makeini(
        f"[pytest]\nxlmr_checkpoint = {toy_checkpoint}\nxlmr_texts =\n  the cat <mask> the dog\n  a bird\n"
        "addopts = --strict-markers\nfilterwarnings = error\n"
    )
    pytester.makepyfile(PORT_TESTS.format(tests=str(ROOT / "tests"), checkpoint=str(toy_checkpoint)))
    run = pytester.runpytest_subprocess(*LOADED, "-p", "no:cacheprovider", "-rA")
    run.assert_outcomes(passed=7, failed=1, errors=1)
    output = run.stdout.str()
    assert "-> layers.0.feed_forward.post" in output  # the table, its first divergent tap marked
    assert "gelu_tanh: GELU is the tanh approximation" in output  # the diagnosis
    assert "the marker xlmr takes checkpoint, trace, texts, pairs, taps by name, not ['text']" in output


def test_markers_and_options_are_documented(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    markers = pytester.runpytest_subprocess(*LOADED, "--markers").stdout.str()
    assert "@pytest.mark.xlmr(checkpoint, trace, texts, pairs, taps)" in markers
    assert "xlmr_checkpoint" in pytester.runpytest_subprocess(*LOADED, "--help").stdout.str()


def test_importing_the_plugin_does_not_import_torch() -> None:
    code = (
        "import sys, xlmr_core.pytest_plugin; print(sorted({'torch', 'numpy', 'xlmr_core.model'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
