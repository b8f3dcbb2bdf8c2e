"""Ports that are run here: ONNX and OpenVINO models with every tensor inside them, and any `nn.Module`."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from xlmr_core.cli import main
from xlmr_core.parity.check import check_trace
from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.matching import match_tensors
from xlmr_core.parity.module_port import dump_of_module
from xlmr_core.parity.onnx_port import run_onnx
from xlmr_core.parity.port_inputs import fed
from xlmr_core.parity.ports import in_our_terms, open_port, run_port
from xlmr_core.parity.recording import Checkpoint, record
from xlmr_core.parity.trace import Trace

WAY_OUT = "pip install 'xlmr-core[onnx]'"


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, ["the cat sees the dog", "a bird", "the dog"])


@pytest.fixture(scope="module")
def saved(trace: Trace, toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With noise floors beside it."""
    path = tmp_path_factory.mktemp("ports") / "trace.safetensors"
    trace.save(path)
    assert xlmr("floor", toy_checkpoint, path, "--dtype", "float32", "--dtype", "float16").exit_code == 0
    return path


@pytest.fixture(scope="module")
def theirs(toy_checkpoint: Path) -> Callable[..., Any]:
    """A model of transformers with the weights of the checkpoint."""
    transformers = pytest.importorskip("transformers")

    def load(**options: Any) -> Any:
        cls = transformers.XLMRobertaForMaskedLM
        return cls.from_pretrained(toy_checkpoint, dtype=torch.float32, **options).eval()

    return load


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def exported(model: nn.Module, path: Path, *, dynamic: bool = True, dynamo: bool = False) -> Path:
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
    names = ["input_ids", "attention_mask"]
    options: dict[str, Any] = {"dynamic_axes": {name: {0: "batch", 1: "seq"} for name in names} if dynamic else None}
    if dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
        options = {"dynamic_shapes": dict.fromkeys(names, axes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own future
        torch.onnx.export(
            Logits(model), (ids, (ids != 1).long()), path, input_names=names, dynamo=dynamo, **options
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def model_file(theirs: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason=f"onnx is not installed: {WAY_OUT}")
    pytest.importorskip("onnxruntime", reason=f"onnxruntime is not installed: {WAY_OUT}")
    return exported(theirs(attn_implementation="eager"), tmp_path_factory.mktemp("onnx") / "model.onnx")


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_an_onnx_file_needs_no_dump(saved: Path, model_file: Path) -> None:
    result = xlmr("check", saved, model_file)
    assert result.exit_code == 0, result.output
    assert "no map of names: 36 of 36 taps were recognised, 36 of them by numbers" in result.output
    text = xlmr("match", saved, model_file).stdout
    assert '"layers.{i}.attention.q" = "/model/roberta/encoder/layer.{i}/attention/self/query/' in text


def test_a_wrong_onnx_file_is_diagnosed(
    saved: Path, toy_checkpoint: Path, theirs: Callable[..., Any], model_file: Path, tmp_path: Path
) -> None:
    wrong = exported(theirs(attn_implementation="eager", hidden_act="gelu_new"), tmp_path / "wrong.onnx")
    result = xlmr("check", saved, wrong)
    assert result.exit_code == 1
    assert "first divergence: layers.0.feed_forward.post" in result.output
    result = xlmr("diagnose", saved, wrong, "--model", toy_checkpoint)
    assert "gelu_tanh" in result.output, result.output


def test_fused_operators_show_fewer_taps(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    """onnxruntime's optimizer merges attention, norms and activations; what is left is compared, the rest is proved."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer", reason=WAY_OUT)
    fused = optimizer.optimize_model(str(model_file), model_type="bert", num_heads=2, hidden_size=24, opt_level=0)
    assert fused.get_fused_operator_statistics()["Attention"] == 2
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    ours, matching = open_port(trace, tmp_path / "fused.onnx")
    assert matching is not None
    assert matching.unknown == ()
    assert "layers.1.attention.q" in matching.absent
    assert "layers.1.output" in ours
    rows = check_trace(trace, ours, floors=None, absent=matching.absent).rows
    assert all(row.max_abs < 1e-4 for row in rows)

    fused.convert_float_to_float16()
    fused.save_model_to_file(str(tmp_path / "half.onnx"))
    ours, matching = open_port(trace, tmp_path / "half.onnx")
    assert matching is not None
    assert matching.unknown == ()
    assert ours["layers.1.output"].dtype == torch.float16


def test_int8_weights(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason=WAY_OUT)
    quantization.quantize_dynamic(str(model_file), str(tmp_path / "int8.onnx"))
    ours, matching = open_port(trace, tmp_path / "int8.onnx")
    assert matching is not None
    assert {"layers.0.attention.q", "layers.1.output", "lm_head.logits"} <= ours.keys()


def test_weights_in_a_file_of_their_own(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(model_file))
    path = tmp_path / "split.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    ours, _ = open_port(trace, path)
    assert len(ours) == 36
    (tmp_path / "weights.bin").rename(tmp_path / "gone.bin")
    with pytest.raises(TraceError, match="which is not there: keep the two together"):
        open_port(trace, path)
    model = onnx.load(str(path), load_external_data=False)
    for location in ("../weights.bin", "/etc/passwd", ""):
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(TraceError, match=r"expected a file in the folder|which is not there"):
            open_port(trace, tmp_path / "bad.onnx")


def test_a_model_of_a_fixed_size(trace: Trace, theirs: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    path = exported(theirs(attn_implementation="eager"), tmp_path / "fixed.onnx", dynamic=False)
    with pytest.raises(TraceError, match=r"of shape \(2, 5\), and the trace has .* record a trace of that size"):
        open_port(trace, path)


def made(path: Path, nodes: list[Any], *, name: str = "input_ids") -> Path:
    """A model of these nodes, from ids to "out"."""
    import onnx
    from onnx import TensorProto, helper

    ids = helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "port", [ids], [out])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def test_files_that_are_no_model(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    cast = helper.make_node("Cast", ["input_ids"], ["out"], to=TensorProto.FLOAT)
    for content in (b"", b"junk", model_file.read_bytes()[:1000]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(TraceError, match=r"bad\.onnx"):
            open_port(trace, tmp_path / "bad.onnx")
    cases = [
        (
            [helper.make_node("Run", ["input_ids"], ["out"], domain="evil")],
            {},
            "Operators from libraries are not loaded",
        ),
        ([helper.make_node("Nothing", ["input_ids"], ["out"])], {}, "onnxruntime cannot load"),
        ([helper.make_node("Cast", ["mask"], ["out"], to=TensorProto.FLOAT)], {"name": "mask"}, "one input of ids"),
        ([cast], {}, "was recognised as a tap"),
    ]
    for nodes, options, message in cases:
        with pytest.raises(TraceError, match=message):
            open_port(trace, made(tmp_path / "odd.onnx", nodes, **options))
    assert run_port(trace, tmp_path / "odd.onnx").keys() == {"out"}
    result = xlmr("match", tmp_path / "odd.onnx", tmp_path / "odd.onnx")
    assert "is not a safetensors file" in result.stderr


def test_a_loop_without_end_is_ended(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    inner = helper.make_graph(
        [helper.make_node("Identity", ["condition"], ["go"]), helper.make_node("Mul", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["start"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True])),
        helper.make_node("Loop", ["", "yes", "start"], ["out"], body=inner),
    ]
    path = made(tmp_path / "loop.onnx", nodes)
    with pytest.raises(TraceError, match=r"fails on the input of the trace \(it was ended after 0.5 seconds\)"):
        run_onnx(path, trace.inputs, 1, limit=0.5)


def test_a_file_that_asks_for_all_memory_is_refused(trace: Trace, model_file: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    size = helper.make_tensor("v", TensorProto.INT64, [1], [2**42])
    nodes = [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids"], ["sum"], keepdims=0),
        helper.make_node("Add", ["huge", "sum"], ["out"]),
    ]
    with pytest.raises(TraceError, match="fails on the input of the trace"):
        open_port(trace, made(tmp_path / "huge.onnx", nodes))


def test_what_runs_a_model_may_be_missing(
    trace: Trace, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name, extra in (("model.onnx", "onnx"), ("model.xml", "openvino")):
        (tmp_path / name).write_bytes(b"x")
        result = xlmr("check", saved, tmp_path / name)
        assert result.exit_code == 1
        assert f"pip install 'xlmr-core[{extra}]'" in " ".join(result.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dynamo", [False, True])
def test_every_exporter(
    trace: Trace, theirs: Callable[..., Any], model_file: Path, tmp_path: Path, attention: str, dynamo: bool
) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
    path = exported(theirs(attn_implementation=attention), tmp_path / "model.onnx", dynamo=dynamo)
    ours, matching = open_port(trace, path)
    assert matching is not None
    assert (matching.absent, matching.unknown) == ((), ())
    assert all(row.max_abs < 1e-4 for row in check_trace(trace, ours, floors=None).rows)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_are_known_by_their_names(trace: Trace) -> None:
    asked = [
        ("input", "int32", ["b", "s"]), ("mask_1", "float", [None, None]), ("token_type_ids", "i64", (-1, -1)),
        ("position_ids", "int64", list(trace.real.shape)),
    ]  # fmt: skip
    given = fed(Path("m"), asked, trace.inputs, 1)
    assert given["input"].dtype == torch.int32
    assert torch.equal(given["mask_1"], trace.inputs["attention_mask"].float())
    assert not given["token_type_ids"].any()
    assert given["position_ids"][0, 0] == 2
    for bad, message in (
        ([("input", "float16", ["b", "s"])], "of type float16"),
        ([("input", "string", ["b", "s"])], "of type string"),
        ([("input", "int64", ["b"])], "expected two axes"),
        ([("input", "int64", ["b", "s"]), ("other", "int64", ["b", "s"])], "one input of ids"),
        ([], "takes nothing"),
    ):
        with pytest.raises(TraceError, match=message):
            fed(Path("m"), bad, trace.inputs, 1)


# ---- OpenVINO --------------------------------------------------------------------------------------------------------


def test_an_openvino_model_needs_no_dump(saved: Path, trace: Trace, model_file: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'xlmr-core[openvino]'")
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.convert_model(str(model_file)), path, compress_to_fp16=False)
    result = xlmr("check", saved, path)
    assert result.exit_code == 0, result.output
    assert "taps were recognised" in result.output
    ours, matching = open_port(trace, path)
    assert matching is not None
    assert matching.unknown == ()
    assert len(ours) >= 32  # the graph compiler may merge scores and probs
    for content in (b"", b"junk", path.read_bytes()[:1000]):
        (tmp_path / "bad.xml").write_bytes(content)
        with pytest.raises(TraceError, match="is not an OpenVINO model"):
            open_port(trace, tmp_path / "bad.xml")


# ---- nn.Module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_module(trace: Trace, theirs: Callable[..., Any], attention: str) -> None:
    model = theirs(attn_implementation=attention)
    dump = dump_of_module(model, trace.inputs)
    matching = match_tensors(trace, dump)
    inside = {"layers.0.attention.scores", "layers.0.attention.probs"} if attention == "sdpa" else set()
    assert matching.unknown == ()
    assert {tap for tap in matching.absent if tap.startswith("layers.0")} == inside
    ours, _ = in_our_terms(trace, dump)
    assert all(row.max_abs < 1e-4 for row in check_trace(trace, ours, floors=None, absent=matching.absent).rows)
    called = dump_of_module(model, {}, call=lambda: model(trace.inputs["input_ids"], trace.inputs["attention_mask"]))
    assert called.keys() == dump.keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_and_values_that_are_changed_in_place(trace: Trace) -> None:
    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y += 1
            return torch.cat([y, self.linear.weight.T])

    port = Port()
    x = torch.ones(2, 3)
    dump = dump_of_module(port, {"x": x})
    assert list(dump) == ["linear/addmm", "/add", "/cat"]  # the transposed weight is no result
    torch.testing.assert_close(dump["/add"], dump["linear/addmm"] + 1)


def test_the_model_of_this_package_is_a_module_too(toy_checkpoint: Path, trace: Trace) -> None:
    dump = dump_of_module(Checkpoint.load(toy_checkpoint).model, trace.inputs)
    assert match_tensors(trace, dump).unknown == ()
