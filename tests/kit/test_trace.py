"""Golden traces: the same run gives the same bytes, what is read is what was written, and mistakes are named."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel
from xlmr_core.checkpoint import CheckpointError, bundled
from xlmr_core.parity.check import (
    check_trace,
    dump_from_file,
    dump_from_transformers,
    measure_trace,
    run_transformers,
)
from xlmr_core.parity.floors import FloorTable
from xlmr_core.parity.recording import Checkpoint, hash_of_weights, record, rerun
from xlmr_core.parity.tap_values import LOGITS, TOP, TOP_IDS
from xlmr_core.parity.trace import KEY, Trace, TraceError

TEXTS = ["the cat sees the dog", "a bird"]
TINY = Path(__file__).parent / "traces" / "xlmr-tiny.safetensors"
TINY_TEXTS = ["The cat is <mask>.", "Guten Morgen!"]


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, TEXTS, grad=True, steps=2)


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint: Path) -> Checkpoint:
    return Checkpoint.load(toy_checkpoint)


@pytest.fixture(scope="module")
def table(trace: Trace, checkpoint: Checkpoint) -> FloorTable:
    return measure_trace(trace, checkpoint)


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


@pytest.fixture
def saved(trace: Trace, tmp_path: Path) -> Path:
    path = tmp_path / "trace.safetensors"
    trace.save(path)
    return path


# ---- recording -------------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes(trace: Trace, toy_checkpoint: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = record(toy_checkpoint, TEXTS, grad=True, steps=2)
    finally:
        torch.set_num_threads(threads)
    assert again.to_bytes() == trace.to_bytes()


def test_a_trace_holds_what_the_model_computes(trace: Trace, toy_checkpoint: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint)
    with torch.no_grad(), model.capture("**") as acts:
        logits = model(**trace.inputs).logits
    kept = {tap for tap in trace.tensors if tap in acts}
    assert kept == acts.keys() - {LOGITS}
    for tap in kept:
        assert torch.equal(trace.tensors[tap], acts[tap]), tap
    assert torch.equal(trace.tensors[TOP], logits.topk(32).values)
    assert torch.equal(logits.gather(-1, trace.tensors[TOP_IDS]), trace.tensors[TOP])


def test_it_can_be_read_without_us(saved: Path, trace: Trace) -> None:
    arrays = load_numpy(saved)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    np.testing.assert_array_equal(arrays["layers.0.mid"], trace.tensors["layers.0.mid"].numpy())
    content = metadata_of(saved)
    assert content["version"] == 2
    assert [tap["name"] for tap in content["sites"]] == list(trace.tensors)
    assert content["provenance"]["weights_sha256"] == trace.provenance.weights_sha256
    assert "/" not in content["provenance"]["checkpoint"]  # no path of the machine that recorded it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_reading_gives_back_what_was_recorded(toy_checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    trace = record(toy_checkpoint, TEXTS, dtype=dtype, grad=True)
    trace.save(tmp_path / "t.safetensors")
    again = Trace.load(tmp_path / "t.safetensors")
    assert again.provenance == trace.provenance
    assert list(again.tensors) == list(trace.tensors)
    for tap, tensor in trace.tensors.items():
        assert again.tensors[tap].dtype == tensor.dtype, tap
        assert torch.equal(again.tensors[tap], tensor), tap
    assert load_numpy(tmp_path / "t.safetensors")  # bfloat16 included


def test_taps_and_top_k_are_chosen(toy_checkpoint: Path) -> None:
    trace = record(toy_checkpoint, TEXTS, taps=["layers.-1.output"])
    assert list(trace.tensors) == ["layers.1.output"]
    whole = record(toy_checkpoint, TEXTS, taps=["lm_head.logits"], top_k=0)
    assert list(whole.tensors) == [LOGITS]
    small = record(toy_checkpoint, TEXTS, taps=["lm_head.logits"], top_k=3)
    assert small.tensors[TOP].shape[-1] == 3
    assert whole.provenance.logits_sha256 == small.provenance.logits_sha256


def test_fused_attention_is_recorded_without_scores(toy_checkpoint: Path) -> None:
    trace = record(toy_checkpoint, TEXTS, attention="sdpa")
    assert trace.provenance.attention == "sdpa"
    assert not any(tap.endswith(("scores", "probs")) for tap in trace.tensors)
    assert len(trace.tensors) > 30


def test_an_encoder_without_head_is_recorded(toy_checkpoint: Path, tmp_path: Path) -> None:
    XLMRobertaModel.from_pretrained(toy_checkpoint).save_pretrained(tmp_path)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(toy_checkpoint / name, tmp_path / name)
    trace = record(tmp_path, TEXTS)
    assert trace.provenance.model == "XLMRobertaModel"
    assert trace.provenance.logits_sha256 is None
    with pytest.raises(ValueError, match="has no vocabulary logits: gradients need"):
        record(tmp_path, TEXTS, grad=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": [""]}, "a pattern of taps is empty"),
        ({"taps": []}, "nothing is asked for"),
        ({"taps": ["layers.9.output"]}, "no tap matches 'layers.9.output'"),
        ({"texts": []}, "there is no text"),
    ],
)
def test_nothing_to_record_is_an_error(toy_checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(toy_checkpoint, **{"texts": TEXTS, **options})


def test_the_hash_of_weights_is_of_the_weights(checkpoint: Checkpoint, toy_checkpoint: Path, tmp_path: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint)
    model.save_pretrained(tmp_path)
    before = hash_of_weights(checkpoint.model)
    assert hash_of_weights(XLMRobertaForMaskedLM.from_pretrained(tmp_path)) == before
    with torch.no_grad():
        model.lm_head.decoder.bias[7] += 1e-6
    assert hash_of_weights(model) != before


# ---- bad files -------------------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = metadata_of(path)
    change(content)
    save_file(load_file(path), path, {KEY: json.dumps(content)})


def test_a_file_that_is_no_trace_is_refused(saved: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(1)}, plain)
    for path, message in [
        (tmp_path / "none.safetensors", "there is no file"),
        (plain, "is not a trace: its metadata has no 'xlmr_trace'"),
    ]:
        with pytest.raises(TraceError, match=message):
            Trace.load(path)
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(TraceError, match="or it is damaged"):
        Trace.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=1), "that this program reads: version: Input should be 2, found 1"),
        (lambda content: content["provenance"].pop("dtype"), "dtype: Field required"),
        (lambda content: content["provenance"].update(dtype="int3"), "dtype.*found 'int3'"),
        (lambda content: content["sites"].append({"name": "gone", "axes": None}), "'gone' differs"),
        (lambda content: content.clear(), "Field required"),
    ],
)
def test_a_damaged_trace_is_refused(saved: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    rewritten(saved, change)
    with pytest.raises(TraceError, match=message):
        Trace.load(saved)


def test_another_checkpoint_is_refused(trace: Trace, toy_checkpoint: Path) -> None:
    other = Checkpoint.load(toy_checkpoint)
    with torch.no_grad():
        other.model.get_parameter("encoder.layers.0.attention.q_proj.bias")[0] += 1
    with pytest.raises(TraceError, match=r"of another checkpoint.*other weights"):
        rerun(trace, other, dtype=torch.float32)
    other.model.config = replace(other.model.config, layer_norm_eps=1e-12)
    with pytest.raises(TraceError, match=r"of another checkpoint.*layer_norm_eps 1e-05 and 1e-12"):
        rerun(trace, other, dtype=torch.float32)


def test_another_input_is_refused(trace: Trace, toy_checkpoint: Path, tmp_path: Path) -> None:
    record(toy_checkpoint, ["the dog"]).save(tmp_path / "other.safetensors")
    with pytest.raises(TraceError, match="of different inputs"):
        dump_from_file(trace, tmp_path / "other.safetensors")
    ids = trace.inputs["input_ids"].clone()
    ids[0, 1] -= 1
    np.savez(tmp_path / "dump.npz", input_ids=ids.numpy())
    with pytest.raises(TraceError, match="was made from other input_ids"):
        dump_from_file(trace, tmp_path / "dump.npz")


# ---- against others --------------------------------------------------------------------------------------------------


def test_our_own_run_is_equal(trace: Trace, checkpoint: Checkpoint) -> None:
    comparison = check_trace(trace, rerun(trace, checkpoint, dtype=torch.float32), floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)
    assert len(comparison.rows) == len(trace.tensors) - 1  # top_ids tells where to look


def test_a_run_in_another_dtype_leaves_the_checkpoint_as_it_is(trace: Trace, checkpoint: Checkpoint) -> None:
    rerun(trace, checkpoint, dtype=torch.bfloat16)
    assert hash_of_weights(checkpoint.model) == trace.provenance.weights_sha256
    assert checkpoint.model.get_parameter("lm_head.norm.weight").dtype == torch.float32


def test_transformers_is_equal_in_values_gradients_and_training(trace: Trace, toy_checkpoint: Path) -> None:
    actual = dump_from_transformers(trace, str(toy_checkpoint), dtype=torch.float32)
    comparison = check_trace(trace, actual, floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)
    assert sum(row.tap.startswith("gradients.") for row in comparison.rows) == len(
        dict(Checkpoint.load(toy_checkpoint).model.named_parameters())
    )
    assert comparison.rows[-1].tap == "training.losses"


def test_a_wrong_gradient_alone_is_found(trace: Trace, toy_checkpoint: Path, table: FloorTable) -> None:
    """transformers with a detached tensor: every value is right, a gradient is not."""
    from xlmr_core.parity.adapters import transformers_model

    model = transformers_model(str(toy_checkpoint), "XLMRobertaForMaskedLM", False, "eager", torch.float32)
    model.roberta.embeddings.position_embeddings.register_forward_hook(
        lambda _m, _a, out: out * 0.5 + out.detach() * 0.5
    )
    comparison = check_trace(trace, run_transformers(trace, model), floors=table.floors)
    first = comparison.first_divergence
    assert first is not None
    assert first.tap == "gradients.encoder.embeddings.position_embeddings.weight"
    last = comparison.rows[-1]
    assert (last.tap, last.verdict) == ("training.losses", "DIVERGES")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_transformers_in_every_dtype_is_within_the_floors(
    trace: Trace, toy_checkpoint: Path, table: FloorTable, dtype: torch.dtype
) -> None:
    actual = dump_from_transformers(trace, str(toy_checkpoint), dtype=dtype)
    comparison = check_trace(trace, actual, floors=table.floors)
    assert comparison.ok, str(comparison)


def test_sites_can_be_chosen(trace: Trace, checkpoint: Checkpoint) -> None:
    actual = rerun(trace, checkpoint, dtype=torch.float32)
    comparison = check_trace(trace, actual, floors=None, taps=["**.probs"])
    assert [row.tap for row in comparison.rows] == ["layers.0.attention.probs", "layers.1.attention.probs"]
    last = check_trace(trace, actual, floors=None, taps=["layers.-1.attention.*"])
    assert {row.tap.split(".")[1] for row in last.rows} == {"1"}
    everything = check_trace(trace, actual, floors=None, taps=["**"])
    assert everything == check_trace(trace, actual, floors=None)
    with pytest.raises(ValueError, match="no tap of the trace matches 'nothing'"):
        check_trace(trace, actual, floors=None, taps=["nothing"])


@pytest.mark.parametrize("pattern", ["lm_head.logits", "lm_head.*", "lm_head.**", "**.logits"])
def test_logits_are_looked_up_where_they_are_chosen(trace: Trace, checkpoint: Checkpoint, pattern: str) -> None:
    """The trace keeps the largest, a dump has them all: the pattern of the tap is that of what was made of it."""
    actual = rerun(trace, checkpoint, dtype=torch.float32)
    comparison = check_trace(trace, actual, floors=None, taps=[pattern])
    verdicts = {row.tap: row.verdict for row in comparison.rows}
    assert verdicts["lm_head.logits.top_values"] == verdicts["lm_head.logits.logsumexp"] == "equal"
    assert set(verdicts.values()) == {"equal"}


def test_a_part_of_a_dump_is_enough_if_one_says_so(trace: Trace, checkpoint: Checkpoint) -> None:
    whole = rerun(trace, checkpoint, dtype=torch.float32)
    part = {tap: whole[tap] for tap in ("layers.0.mid", "lm_head.logits")}
    assert not check_trace(trace, part, floors=None).ok
    comparison = check_trace(trace, part, floors=None, partial=True)
    assert comparison.ok
    assert [row.tap for row in comparison.rows] == [
        "layers.0.mid",
        "lm_head.logits.top_values",
        "lm_head.logits.logsumexp",
    ]
    part["layers.0.mid"] = part["layers.0.mid"] + 1
    assert not check_trace(trace, part, floors=None, partial=True).ok
    with pytest.raises(ValueError, match="the dump has no tap of the trace, but x"):
        check_trace(trace, {"x": whole["layers.0.mid"]}, floors=None, partial=True)


# ---- foreign dumps ---------------------------------------------------------------------------------------------------


def foreign_arrays(trace: Trace) -> dict[str, np.ndarray]:
    """A port's dump of one text: no batch axis, heads apart and first, a name scheme of its own."""
    arrays: dict[str, np.ndarray] = {"emb": trace.tensors["embeddings.output"][0].numpy()}
    for i in range(2):
        q = trace.tensors[f"layers.{i}.attention.q"][0].unflatten(-1, (2, 12)).transpose(0, 1)  # N S D
        probs = trace.tensors[f"layers.{i}.attention.probs"][0].permute(1, 0, 2)  # Q N K
        arrays |= {f"blk{i}_q": q.numpy(), f"blk{i}_p": probs.numpy()}
    return arrays


NAMES = """
[names]
"embeddings.output" = "emb"
"layers.{i}.attention.q" = { name = "blk{i}_q", axes = "N S D" }
"layers.{i}.attention.probs" = { name = "blk{i}_p", axes = "Q N K" }
"""
AS_JSON = {
    "names": {
        "embeddings.output": "emb",
        "layers.{i}.attention.q": {"name": "blk{i}_q", "axes": "N S D"},
        "layers.{i}.attention.probs": {"name": "blk{i}_p", "axes": "Q N K"},
    }
}
TAPS = ["embeddings.output", "layers.*.attention.q", "layers.*.attention.probs"]


@pytest.fixture
def one_text(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, TEXTS[:1])


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("names", ["toml", "json"])
def test_a_foreign_dump_through_a_map_of_names(one_text: Trace, tmp_path: Path, kind: str, names: str) -> None:
    (tmp_path / "names.toml").write_text(NAMES)
    (tmp_path / "names.json").write_text(json.dumps(AS_JSON))
    arrays = foreign_arrays(one_text)
    if kind == "npz":
        np.savez(tmp_path / "dump.npz", **arrays)
    else:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        save_file(tensors, tmp_path / "dump.safetensors")
    dump = dump_from_file(one_text, tmp_path / f"dump.{kind}", tmp_path / f"names.{names}")
    comparison = check_trace(one_text, dump, floors=None, taps=TAPS)
    assert len(comparison.rows) == 5
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


def test_shapes_with_one_reading_need_no_map(one_text: Trace, tmp_path: Path) -> None:
    heads = one_text.tensors["layers.0.attention.q"].unflatten(-1, (2, 12))  # B S N D
    arrays = {
        "embeddings.output": one_text.tensors["embeddings.output"][0].numpy(),
        "layers.0.attention.q": heads.transpose(1, 2).numpy(),
        "layers.0.attention.k": heads[0].numpy(),
        "layers.0.attention.v": np.asfortranarray(heads.numpy()).astype(">f4"),
    }
    np.savez(tmp_path / "dump.npz", **arrays)
    dump = dump_from_file(one_text, tmp_path / "dump.npz")
    for tap in ("q", "k", "v"):
        assert torch.equal(dump[f"layers.0.attention.{tap}"], one_text.tensors["layers.0.attention.q"]), tap
    assert torch.equal(dump["embeddings.output"], one_text.tensors["embeddings.output"])


def test_a_dump_in_half_precision_is_judged_by_that_precision(trace: Trace, table: FloorTable, tmp_path: Path) -> None:
    tap = "layers.1.output"
    np.savez(tmp_path / "dump.npz", **{tap: trace.tensors[tap].numpy().astype(np.float16)})
    comparison = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=table.floors, taps=[tap])
    assert comparison.rows[0].verdict == "ok"
    np.savez(tmp_path / "dump.npz", **{tap: trace.tensors[tap].numpy().astype(np.float16).astype(np.float32)})
    comparison = check_trace(trace, dump_from_file(trace, tmp_path / "dump.npz"), floors=table.floors, taps=[tap])
    assert comparison.rows[0].verdict == "DIVERGES"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('{"names": {"embeddings.output": "gone"}}', "no such tensor"),
        ('{"names": {"embeddings.nothing": {"name": "emb", "axes": "S H"}}}', "is no tap"),
        ('{"names": {"embeddings.output": {"name": "emb", "axes": "S"}}}', "do not fit a tensor"),
        ('{"names": {"embeddings.output": 7}}', "is not a map of names"),
        ('{"nomes": {}}', "is not a map of names"),
        ("not json", "is not a map of names"),
    ],
)
def test_a_wrong_map_is_refused(one_text: Trace, tmp_path: Path, names: str, message: str) -> None:
    np.savez(tmp_path / "dump.npz", **foreign_arrays(one_text))
    (tmp_path / "names.json").write_text(names)
    with pytest.raises(TraceError, match=message):
        dump_from_file(one_text, tmp_path / "dump.npz", tmp_path / "names.json")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
@pytest.mark.parametrize("name", ["dump.npz", "dump.safetensors", "dump.pt"])
def test_a_broken_dump_is_refused(one_text: Trace, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=name):
        dump_from_file(one_text, tmp_path / name)


def test_an_npz_of_objects_runs_nothing(one_text: Trace, tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", **{"embeddings.output": np.array([{"an": "object"}], dtype=object)})
    with pytest.raises(TraceError, match=r"dump\.npz: 'embeddings\.output' holds object; expected one of F64"):
        dump_from_file(one_text, tmp_path / "dump.npz")


# ---- committed traces ------------------------------------------------------------------------------------------------


def test_the_committed_trace_of_xlmr_tiny_is_what_we_compute() -> None:
    """tests/kit/traces/xlmr-tiny.safetensors was made by

        xlmr parity record xlmr-tiny --text "The cat is <mask>." --text "Guten Morgen!" --grad --steps 3 \
            -o tests/kit/traces/xlmr-tiny.safetensors

    Bit for bit the same on the same processor with the same torch and kernels of its own choice, else within what
    rounding explains. The floors are measured here, on the processor that runs the test.
    """
    try:
        bundled()
    except CheckpointError as error:
        pytest.skip(str(error))
    trace = Trace.load(TINY)
    assert list(trace.provenance.texts) == TINY_TEXTS
    again = record("xlmr-tiny", TINY_TEXTS, grad=True, steps=3)
    assert again.provenance.weights_sha256 == trace.provenance.weights_sha256
    chosen = any(name.startswith(("MKL_", "ONEDNN_", "DNNL_")) for name in os.environ)  # kernels, by whoever runs this
    if again.provenance.machine == trace.provenance.machine and not chosen:
        assert list(again.tensors) == list(trace.tensors)
        for tap, tensor in trace.tensors.items():
            assert torch.equal(again.tensors[tap], tensor), tap
        assert again.provenance.logits_sha256 == trace.provenance.logits_sha256
    table = measure_trace(trace, Checkpoint.load("xlmr-tiny"), dtypes=[torch.float32])
    comparison = check_trace(trace, again.tensors, floors=table.floors)
    assert comparison.ok, str(comparison)


@pytest.mark.hub
@pytest.mark.filterwarnings("ignore")  # of the download client
def test_a_trace_of_the_published_base_model(tmp_path: Path) -> None:
    """Records twice to the same bytes, in a few megabytes; and transformers, from the same files, is bit-equal."""
    name = "FacebookAI/xlm-roberta-base"
    first, second = (record(name, ["My dog is cute"]) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    assert len(first.to_bytes()) < 6e6
    comparison = check_trace(first, dump_from_transformers(first, name, dtype=torch.float32), floors=None)
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)
