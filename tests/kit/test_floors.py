"""Noise floors: measured, of the right order, and reached by what is right but not by what is wrong."""

import json
import math
from pathlib import Path

import pytest
import reference
import torch
from reference import CONFIGS, no_cuda

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.parity import find_fault
from xlmr_core.parity.adapters import compare_models, dump_of
from xlmr_core.parity.check import floors_path, measure_trace, read_floors
from xlmr_core.parity.compare import FACTOR, compare
from xlmr_core.parity.floors import REPEATS, FloorTable, measure, measure_floors
from xlmr_core.parity.recording import Checkpoint, record
from xlmr_core.parity.trace import Trace, TraceError
from xlmr_core.parity.variants import packed_taps, run_taps, unreversed, variant, with_features_reversed

NORMS = pytest.mark.parametrize("norm", CONFIGS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module", params=CONFIGS)
def measured(request: pytest.FixtureRequest) -> tuple[reference.Pair, FloorTable]:
    pair = reference.build_pair(CONFIGS[request.param])
    reference.packed_batch(pair.batch, pair.config.pad_token_id)  # no padding is attended to from here on
    return pair, measure(pair.ours, pair.batch, grad=True, steps=2)


@NORMS
@pytest.mark.parametrize("grad", [False, True])
def test_a_reversed_model_is_the_same_mathematics(norm: str, grad: bool) -> None:
    pair = reference.build_pair(CONFIGS[norm], dtype=torch.float64)
    taps = [tap.name for tap in pair.ours.taps()]
    expected = run_taps(pair.ours, pair.batch, taps, grad=grad)
    turned = with_features_reversed(variant(pair.ours, torch.float64, "eager", "cpu"))
    assert not torch.equal(
        turned.encoder.layers[0].attention.q_proj.weight, pair.ours.encoder.layers[0].attention.q_proj.weight
    )
    found = unreversed(run_taps(turned, pair.batch, taps, grad=grad), pair.ours.spec)
    assert list(found) == list(expected)
    for row in compare(expected, found, real=pair.real).rows:
        assert row.max_abs <= reference.ORACLE_TOLERANCE, row


def test_a_reversed_pooler_too() -> None:
    pair = reference.build_encoder_pair(CONFIGS["post-norm"])
    expected = dump_of(variant(pair.ours, torch.float64, "eager", "cpu"), pair.batch)
    found = unreversed(
        dump_of(with_features_reversed(variant(pair.ours, torch.float64, "eager", "cpu")), pair.batch), pair.ours.spec
    )
    assert reference.gap(expected["pooler.output"], found["pooler.output"]) <= reference.ORACLE_TOLERANCE


def test_every_way_to_run_is_measured(measured: tuple[reference.Pair, FloorTable]) -> None:
    pair, table = measured
    names = [f"{m.dtype} {m.name}" for m in table.measurements if m.device == "cpu"]
    orders = [
        f"{dtype} {attention} cpu{layout}{order}"
        for dtype in DTYPES
        for attention in ("eager", "sdpa")
        for layout in ("", " packed")
        for order in ("", " reversed")
    ]
    draws = [f"{dtype} eager cpu perturbed {seed}" for dtype in DTYPES for seed in range(1, REPEATS + 1)]
    assert sorted(names) == sorted(orders + draws)
    taps = {tap.name for tap in pair.ours.taps()}
    for measurement in table.measurements:
        hidden = {name for name in taps if name.endswith(("scores", "probs")) and measurement.attention == "sdpa"}
        assert taps - hidden <= measurement.errors.keys()


def test_padding_that_is_attended_to_is_not_packed() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    table = measure(pair.ours, pair.batch, dtypes=[torch.float32])
    assert {m.layout for m in table.measurements} == {"padded"}


def test_what_a_tokenizer_returns_is_measured(toy_checkpoint: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint)
    batch = XLMRobertaTokenizer.from_pretrained(toy_checkpoint)(["the cat sees the dog", "a bird"])
    floors = measure_floors(model, batch, dtypes=[torch.float32])
    assert floors == measure_floors(model, dict(batch), dtypes=[torch.float32])
    assert compare_models(model, model, batch, floors=floors).ok


@NORMS
def test_a_packed_run_is_put_back_where_it_was(norm: str) -> None:
    pair = reference.build_pair(CONFIGS[norm], dtype=torch.float64)
    reference.packed_batch(pair.batch, pair.config.pad_token_id)
    taps = [tap.name for tap in pair.ours.taps()]
    expected, found = run_taps(pair.ours, pair.batch, taps), packed_taps(pair.ours, pair.batch, taps)
    assert list(found) == list(expected)
    for row in compare(expected, found, real=pair.real).rows:
        assert row.max_abs <= reference.ORACLE_TOLERANCE, row


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
@NORMS
def test_a_compiled_model_is_measured_too(norm: str) -> None:
    pair = reference.build_pair(CONFIGS[norm])
    table = measure(pair.ours, pair.batch, dtypes=[torch.float32, torch.bfloat16], compiled=True)
    compiled = [m for m in table.measurements if m.compiled]
    assert [f"{m.dtype} {m.name}" for m in compiled] == [
        f"{dtype} {attention} cpu compiled" for dtype in ("float32", "bfloat16") for attention in ("eager", "sdpa")
    ]
    assert compiled[0].errors.keys() == {tap.name for tap in pair.ours.taps()}
    eager = next(m for m in table.measurements if (m.dtype, m.name) == ("float32", "eager cpu"))
    assert compiled[0].errors != eager.errors  # it really ran another way
    assert 1 < reference.outlier_ratio(table) < FACTOR


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    pair = reference.build_pair(CONFIGS["post-norm"])
    with pytest.raises(ValueError, match=r"cannot be compiled here \(RuntimeError: no compiler\): leave that out"):
        measure(pair.ours, pair.batch, dtypes=[torch.float32], compiled=True)


def test_floors_are_of_the_order_of_the_dtypes_rounding(measured: tuple[reference.Pair, FloorTable]) -> None:
    """A value that is one rounding away from the truth errs by at most eps / 2 of it; later ones by some dozens."""
    pair, table = measured
    truth = dump_of(variant(pair.ours, torch.float64, "eager", "cpu"), pair.batch)
    for name, dtype in DTYPES.items():
        errors = table.floors.errors[name]
        for tap in ("embeddings.sum", "layers.0.mid", "layers.2.output", "lm_head.logits"):
            unit = torch.finfo(dtype).eps / 2 * float(truth[tap][pair.real].abs().max())
            assert unit / 20 < errors[tap] < 50 * unit, (name, tap)
    for tap in ("embeddings.word", "embeddings.position"):
        assert table.floors.errors["float32"][tap] == 0  # a look-up rounds nothing


def test_no_run_configuration_is_worse_than_all_others_by_the_factor_at_any_tap(
    measured: tuple[reference.Pair, FloorTable],
) -> None:
    pair, table = measured
    taps = {tap.name for tap in pair.ours.taps()}
    of_taps = [vars(m) | {"errors": {s: e for s, e in m.errors.items() if s in taps}} for m in table.measurements]
    chosen = FloorTable(tuple(type(table.measurements[0])(**row) for row in of_taps))
    assert 1 < reference.outlier_ratio(chosen) < FACTOR


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_is_within_the_floors(
    measured: tuple[reference.Pair, FloorTable], dtype: str, attention: str
) -> None:
    pair, table = measured
    theirs = reference.build_reference(pair.config, attention, "ForMaskedLM")
    theirs.load_state_dict(pair.theirs.state_dict())
    actual = dump_of(theirs.eval().to(getattr(torch, dtype)), pair.batch)
    expected = {tap: tensor for tap, tensor in dump_of(pair.ours, pair.batch).items() if tap in actual}
    comparison = compare(expected, actual, real=pair.real, floors=table.floors)
    assert comparison.ok, str(comparison)


@pytest.mark.parametrize("name", ["eps_of_bert", "q_k_swapped", "vocabulary_bias_missing", "gelu_tanh"])
def test_a_fault_is_above_the_floor_at_its_site_and_nothing_before(name: str) -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    floors = measure_floors(pair.ours, pair.batch, dtypes=[torch.float32])
    expected, fault = dump_of(pair.ours, pair.batch), find_fault(name)
    other_order = with_features_reversed(
        variant(pair.ours, torch.float32, "eager", "cpu")
    )  # a port with its own rounding
    with fault.applied(other_order):
        actual = unreversed(dump_of(other_order, pair.batch), pair.ours.spec)
    first = compare(expected, actual, real=pair.real, floors=floors).first_divergence
    assert first is not None
    assert first.tap == fault.tap


def test_an_overflow_is_no_floor() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    with torch.no_grad():
        pair.ours.encoder.layers[0].feed_forward.up_proj.bias += 1e5  # above the largest float16, 65504
    floors = measure_floors(pair.ours, pair.batch, dtypes=[torch.float16])
    assert "layers.0.mid" in floors.errors["float16"]
    assert "layers.0.feed_forward.pre" not in floors.errors["float16"]
    assert all(math.isfinite(error) for error in floors.errors["float16"].values())


def test_the_model_is_not_touched() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    before = {name: tensor.clone() for name, tensor in pair.ours.state_dict().items()}
    measure(pair.ours, pair.batch, steps=2, grad=True, dtypes=[torch.bfloat16])
    for name, tensor in pair.ours.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in pair.ours.parameters())


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, ["the cat sees the dog"])


def test_a_table_is_read_as_it_was_written(trace: Trace, toy_checkpoint: Path, tmp_path: Path) -> None:
    path = floors_path(tmp_path / "trace.safetensors")
    assert path.name == "trace.floors.json"
    table = measure_trace(trace, Checkpoint.load(toy_checkpoint), dtypes=[torch.float32])
    table.save(path)
    assert FloorTable.load(path) == table
    assert read_floors(trace, path) == table.floors
    assert trace.tensors.keys() - table.floors.errors["float32"].keys() == {"lm_head.logits.top_ids"}
    assert "layers.1.mid" in str(table)


def test_floors_of_something_else_are_refused(trace: Trace, toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.floors.json"
    with pytest.raises(TraceError, match="xlmr parity floor"):
        read_floors(trace, path)
    measure_trace(trace, Checkpoint.load(toy_checkpoint), dtypes=[torch.float32]).save(path)
    other = record(toy_checkpoint, ["the dog"])
    with pytest.raises(TraceError, match="measured for another checkpoint or other inputs"):
        read_floors(other, path)


@pytest.mark.parametrize("change", [{"version": 1}, {"format": "x"}, {"measurements": 3}, {"measurements": [{"a": 1}]}])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    content = {"format": "xlmr-core floors", "version": 2, "factor": 3.0, "about": {}, "measurements": []}
    path = tmp_path / "floors.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"floors\.json is not a table of floors"):
        FloorTable.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"floors\.json is not a table of floors"):
        FloorTable.load(path)


@pytest.mark.gpu
@no_cuda
def test_a_gpu_is_measured_too() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    table = measure(pair.ours, pair.batch, grad=True, steps=2)
    assert {m.device for m in table.measurements} == {"cpu", "cuda"}
    print(table)
