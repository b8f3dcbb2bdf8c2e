"""Files from strangers: each is read or refused with one line that says why, and nothing wrong passes in silence."""

import io
import json
import os
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import mutations
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlmr_core.parity.check import check_trace, dump_from_file, floors_path, measure_trace, read_floors
from xlmr_core.parity.compare import compare
from xlmr_core.parity.foreign import read_names
from xlmr_core.parity.formats import JSON_LIMIT, MOST_STEPS
from xlmr_core.parity.recording import Checkpoint, record
from xlmr_core.parity.tap_values import LOGSUMEXP, TOP, TOP_IDS
from xlmr_core.parity.trace import KEY, Trace, TraceError

SEED = 1
Setting = mutations.Setting


@pytest.fixture(scope="module")
def setting(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    trace = record(toy_checkpoint, ["the cat", "a bird"], grad=True, steps=2)
    checkpoint = Checkpoint.load(toy_checkpoint)
    table = measure_trace(trace, checkpoint, dtypes=[torch.float32])
    return mutations.prepare(trace, checkpoint, table.save, tmp_path_factory.mktemp("mutations"))


@pytest.mark.filterwarnings("ignore")  # numpy's, of values that a mutated dtype cannot hold
@pytest.mark.parametrize("target", mutations.CASES)
def test_what_was_changed_at_random_is_read_or_refused(target: str, setting: Setting) -> None:
    seen = mutations.run(target, 20, SEED, setting)
    assert seen["refused"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", mutations.CASES)
def test_many_more_are_read_or_refused(target: str, setting: Setting) -> None:
    print(f"\n{target}: {dict(mutations.run(target, 2_000, SEED + 1, setting))}")


# ---- traces ----------------------------------------------------------------------------------------------------------


def with_metadata(setting: Setting, path: Path, text: str) -> Path:
    save_file(load_file(setting.trace), path, {KEY: text})
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


@pytest.mark.parametrize(
    "text", ["[]", '"x"', "null", "5", "", "{", "[" * 10_000, '{"version": ' * 10_000, "1" * 9_000]
)
def test_metadata_that_is_not_a_table_is_refused(setting: Setting, tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match=r"t\.safetensors is not a trace that this program reads: "):
        Trace.load(with_metadata(setting, tmp_path / "t.safetensors", text))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("checkpoint", 5, "provenance.checkpoint: Input should be a valid string, found 5"),
        ("checkpoint", "x" * 10_000, r"provenance.checkpoint: String should have at most 300 .*found 'xxx.*\.\.\.xxx"),
        ("weights_sha256", None, "provenance.weights_sha256: Input should be a valid string, found None"),
        ("weights_sha256", "f" * 63, "provenance.weights_sha256: String should match"),
        ("steps", "2", "provenance.steps: Input should be a valid integer, found '2'"),
        ("steps", True, "provenance.steps: Input should be a valid integer, found True"),
        ("steps", -1, "provenance.steps: Input should be greater than or equal to 0, found -1"),
        ("steps", 10**12, f"provenance.steps: Input should be less than or equal to {MOST_STEPS}, found 10000000"),
        ("steps", 3, r"'training.losses' has shape \(3, 2, \d+\); expected \(4, 2, \d+\)"),
        ("steps", 0, "provenance.steps is 0; expected the number of steps of training.losses"),
        ("config", [], "provenance.config: Input should be an object"),
        ("config", {"model_type": "bert"}, "provenance.config: model_type 'bert' is not XLM-RoBERTa"),
        ("model", "Model", "provenance.model is 'Model'; expected one of .*XLMRobertaForMaskedLM"),
        ("versions", {}, "provenance.versions has no torch"),
        ("unknown", 1, "provenance.unknown: Unexpected keyword argument"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named(
    setting: Setting, tmp_path: Path, field: str, value: object, message: str
) -> None:
    content = metadata_of(setting.trace)
    content["provenance"][field] = value
    with pytest.raises(TraceError, match=message):
        Trace.load(with_metadata(setting, tmp_path / "t.safetensors", json.dumps(content)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000; expected at most 1000"),
        ("architectures", ["X"], "has the unknown key 'architectures'"),
        ("hidden_size", 48, r"embeddings.word' has shape .* expected"),
        ("vocab_size", 6, "input_ids holds numbers from 0 to"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    setting: Setting, tmp_path: Path, key: str, value: object, message: str
) -> None:
    content = metadata_of(setting.trace)
    content["provenance"]["config"][key] = value
    with pytest.raises(TraceError, match=message):
        Trace.load(with_metadata(setting, tmp_path / "t.safetensors", json.dumps(content)))


CHANGES: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "ids of another size": ("input_ids", lambda t: t[:, 1:], "'attention_mask' has shape"),
    "ids of rank 1": (
        "input_ids",
        lambda t: t.flatten(),
        r"input_ids has shape \(\d+,\); expected \(batch, sequence\)",
    ),
    "ids as floats": ("input_ids", lambda t: t.float(), "input_ids holds F32; expected I64"),
    "negative ids": ("input_ids", lambda t: -t, "input_ids holds numbers from -"),
    "mask of rank 1": ("attention_mask", lambda t: t[0], "attention_mask' has shape"),
    "mask of 2": ("attention_mask", lambda t: 2 * t, "attention_mask holds numbers from 2 to 2; expected 0 to 1"),
    "mask of 0": ("attention_mask", lambda t: 0 * t, "attention_mask is 0 everywhere"),
    "rank 0": ("layers.0.mid", lambda t: t[0, 0, 0], r"'layers.0.mid' has shape \(\); expected \(2, "),
    "no values": ("layers.0.mid", lambda t: t[:0], "'layers.0.mid' has shape .*; expected at least one value"),
    "another dtype": ("layers.0.mid", lambda t: t.half(), "layers.0.mid holds F16; expected F32"),
    "top ids as floats": (TOP_IDS, lambda t: t.float(), "top_ids holds F32; expected I64"),
    "negative top ids": (TOP_IDS, lambda t: t - 100, "top_ids holds -100 to"),
    "top ids beyond": (TOP_IDS, lambda t: t + 100, "top_ids holds 100 to"),
    "fewer top ids": (TOP_IDS, lambda t: t[..., 1:], "top_values' has shape .*; expected"),
    "gradient of rank 0": ("gradients.lm_head.norm.bias", lambda t: t[0], "a parameter has one axis or two"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_tensor_that_is_not_what_it_must_be_is_named(setting: Setting, tmp_path: Path, case: str) -> None:
    name, change, message = CHANGES[case]
    tensors = load_file(setting.trace)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "t.safetensors", {KEY: json.dumps(metadata_of(setting.trace))})
    with pytest.raises(TraceError, match=rf"t\.safetensors.*{message}"):
        Trace.load(tmp_path / "t.safetensors")


def test_sites_that_do_not_belong_together_are_refused(setting: Setting, tmp_path: Path) -> None:
    tensors, content = load_file(setting.trace), metadata_of(setting.trace)
    alone = {name: tensors[name] for name in ("input_ids", "attention_mask", TOP_IDS)}
    content["sites"] = [tap for tap in content["sites"] if tap["name"] == TOP_IDS]
    save_file(alone, tmp_path / "t.safetensors", {KEY: json.dumps(content)})
    with pytest.raises(TraceError, match=r"has lm_head.logits.top_ids; expected .* together"):
        Trace.load(tmp_path / "t.safetensors")


def test_steps_beyond_the_limit_are_not_recorded(toy_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="1001 steps of training are asked for; at most 1000"):
        record(toy_checkpoint, ["a cat"], steps=MOST_STEPS + 1)


# ---- nothing compared is never parity --------------------------------------------------------------------------------


def test_a_comparison_of_no_token_is_refused(setting: Setting) -> None:
    trace = Trace.load(setting.trace)
    nothing = replace(trace, inputs=trace.inputs | {"attention_mask": 0 * trace.inputs["attention_mask"]})
    with pytest.raises(ValueError, match="real is False everywhere"):
        check_trace(nothing, trace.tensors, floors=None)
    with pytest.raises(ValueError, match="nothing is expected"):
        check_trace(trace, trace.tensors, floors=None, taps=[TOP_IDS])


def test_a_site_without_a_real_value_does_not_agree() -> None:
    """The pooler takes the first token, which is padding here."""
    real = torch.tensor([[False, True]])
    comparison = compare({"pooler.output": torch.ones(1, 3)}, {"pooler.output": torch.zeros(1, 3)}, real=real)
    assert [row.verdict for row in comparison.rows] == ["no values"]
    assert not comparison.ok


# ---- floors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(factor=float("inf")), "factor: Input should be less than or equal to 10"),
        (lambda c: c.update(factor=0.5), "factor: Input should be greater than or equal to 1"),
        (lambda c: c.update(factor=1e9), "factor: Input should be less than or equal to 10"),
        (lambda c: c.update(factor="3"), "factor: Input should be a valid number, found '3'"),
        (lambda c: c.update(about=[]), "about: Input should be an object"),
        (lambda c: c["measurements"][0]["errors"].update({"layers.0.mid": float("inf")}), "should be a finite number"),
        (lambda c: c["measurements"][0]["errors"].update({"layers.0.mid": float("nan")}), "should be a finite number"),
        (lambda c: c["measurements"][0]["errors"].update({"layers.0.mid": -1e-9}), "greater than or equal to 0"),
        (lambda c: c["measurements"][0].update(dtype=[]), "measurements.0.dtype: Input should be a valid string"),
        (lambda c: c["measurements"][0].update(errors=5), "measurements.0.errors: Input should be an object"),
        (lambda c: c.clear(), "format: Field required"),
    ],
)
def test_floors_that_would_pass_anything_are_refused(
    setting: Setting, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = json.loads(floors_path(setting.trace).read_text())
    change(content)
    (tmp_path / "floors.json").write_text(json.dumps(content))
    with pytest.raises(TraceError, match=rf"floors\.json is not a table of floors, version 2: .*{message}"):
        read_floors(Trace.load(setting.trace), tmp_path / "floors.json")


def test_deep_and_large_json_is_refused(setting: Setting, tmp_path: Path) -> None:
    path, trace = tmp_path / "floors.json", Trace.load(setting.trace)
    path.write_text('{"about": ' * 10_000)
    with pytest.raises(TraceError, match=r"floors\.json is not a table.*recursion limit"):
        read_floors(trace, path)
    with path.open("wb") as file:
        file.truncate(JSON_LIMIT + 1)  # sparse
    with pytest.raises(TraceError, match=r"floors\.json: it has 16777217 bytes, at most 16777216 are read"):
        read_floors(trace, path)


# ---- maps of names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("json", '{"names": {"a": {"name": "b", "axes": 5}}}', "names.a.axes: Input should be a valid string, found 5"),
        ("json", '{"names": {"a": {"name": "b", "axis": "S"}}}', "names.a.axis: .*found 'S'"),
        ("json", '{"names": []}', "names: Input should be an object"),
        ("json", '{"a": ' * 10_000, "recursion limit"),
        ("toml", "[names]\na = " + "[" * 10_000, "is not a map of names: 'its arrays and tables are nested too deep'"),
        ("toml", "[names]\na = 1979-05-27", "names.a: .*expected a name, or a table with a name"),
        ("toml", "names = 5", "names: Input should be a valid dictionary, found 5"),
    ],
)
def test_a_map_that_is_not_one_is_refused(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    path = tmp_path / f"names.{suffix}"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_names(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are of POSIX systems")
def test_a_pipe_is_not_waited_for(setting: Setting, tmp_path: Path) -> None:
    pipe = tmp_path / "names.json"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    trace = Trace.load(setting.trace)
    for read in (read_names, Trace.load, lambda path: read_floors(trace, path)):
        with pytest.raises(TraceError, match="there is no"):
            read(pipe)


# ---- dumps -----------------------------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_read(setting: Setting, tmp_path: Path) -> None:
    """An array of 64 MB, and one that would have to be unpickled, are passed over."""
    trace = Trace.load(setting.trace)
    others = {"large": np.zeros(2**23), "object": np.array([{}], dtype=object)}
    np.savez_compressed(tmp_path / "dump.npz", **others, **{"layers.0.mid": trace.tensors["layers.0.mid"].numpy()})
    tracemalloc.start()
    dump = dump_from_file(trace, tmp_path / "dump.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert list(dump) == ["layers.0.mid"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_tensor_far_larger_than_the_traces_is_refused(setting: Setting, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"dump.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **{"layers.0.mid": np.zeros((1000, 1000))})
    else:
        save_file({"layers.0.mid": torch.zeros(1000, 1000)}, path)
    message = r"'layers.0.mid' has shape \(1000, 1000\); expected at most \d\d,\d\d\d numbers, which is 8 times"
    with pytest.raises(TraceError, match=message):
        dump_from_file(Trace.load(setting.trace), path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), "c8"), "holds complex64; expected one of F64"),
        (np.zeros((2, 3), "M8[s]"), r"holds datetime64\[s\]"),
        (np.array([["a"]]), "holds <U1"),
    ],
)
def test_what_is_not_a_number_is_refused(setting: Setting, tmp_path: Path, array: Any, message: str) -> None:
    np.savez(tmp_path / "dump.npz", **{"layers.0.mid": array})
    with pytest.raises(TraceError, match=message):
        dump_from_file(Trace.load(setting.trace), tmp_path / "dump.npz")


def test_an_array_without_axes_is_misshapen(setting: Setting, tmp_path: Path) -> None:
    trace = Trace.load(setting.trace)
    np.savez(tmp_path / "dump.npz", **{"layers.0.mid": np.float32(1), TOP: np.float32(1), LOGSUMEXP: np.float32(1)})
    comparison = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=None, partial=True)
    assert {row.verdict for row in comparison.rows} == {"misshapen"}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("attention_mask", np.zeros((2, 3), int), "attention_mask is 0 everywhere"),
        ("attention_mask", np.full((2, 3), 7), "attention_mask holds numbers from 7 to 7; expected 0 to 1"),
        ("attention_mask", np.ones((2, 3)), "attention_mask holds float64; expected whole numbers"),
        ("input_ids", np.full((2, 3), 10**6), "input_ids holds numbers from 1000000 to 1000000; expected 0 to"),
        ("input_ids", np.int64(3), r"input_ids has shape \(\); expected \(batch, sequence\)"),
        ("input_ids", np.full(13, 3), r"input_ids has shape \(13,\); expected 2 rows of one length"),
    ],
)
def test_ids_and_masks_of_a_dump_are_checked(
    setting: Setting, tmp_path: Path, name: str, array: Any, message: str
) -> None:
    trace = Trace.load(setting.trace)
    np.savez(tmp_path / "dump.npz", **{name: array, "layers.0.mid": trace.tensors["layers.0.mid"].numpy()})
    with pytest.raises(TraceError, match=message):
        dump_from_file(trace, tmp_path / "dump.npz", keep_inputs=True)


@pytest.mark.parametrize(
    ("member", "way", "message"),
    [
        (bytes(100), zipfile.ZIP_LZMA, "compressed in a way that numpy does not use"),
        (b"\x93NUMPY\x01\x00" + b"\xff\xff{", zipfile.ZIP_STORED, "not an .npz file of plain arrays"),
        (b"\x80\x04\x95", zipfile.ZIP_STORED, "not an .npz file of plain arrays"),
    ],
)
def test_an_odd_member_is_refused(setting: Setting, tmp_path: Path, member: bytes, way: int, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "dump.npz", "w", way) as archive:
        archive.writestr("layers.0.mid.npy", member)
    with pytest.raises(TraceError, match=rf"dump\.npz.*{message}"):
        dump_from_file(Trace.load(setting.trace), tmp_path / "dump.npz")


def test_an_array_longer_than_its_header_says_is_refused(setting: Setting, tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3)))
    with zipfile.ZipFile(tmp_path / "dump.npz", "w") as archive:
        archive.writestr("layers.0.mid.npy", array.getvalue() + bytes(8))
    with pytest.raises(TraceError, match=r"'layers\.0\.mid' has more bytes than its header says"):
        dump_from_file(Trace.load(setting.trace), tmp_path / "dump.npz")
