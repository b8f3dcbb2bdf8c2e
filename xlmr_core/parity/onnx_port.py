"""An ONNX model as a dump: onnxruntime runs it on the inputs of a trace, with every tensor inside it as an output.

Nothing in the file is executed but operators that onnxruntime has: no library of others is loaded. External data is
read from the folder of the model only.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core.parity.formats import TraceError, shortened
from xlmr_core.parity.port_inputs import MOST_NODES, TIME_LIMIT, fed, reason

MOST_BYTES = 2 * 2**30  # of a file: protobuf reads no more
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview")
MEMORY = 16 * 2**30  # bytes of a machine that does not say how many it has
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
SILENT = 4  # messages of onnxruntime on stderr: only fatal ones


def run_onnx(path: Path, inputs: Mapping[str, Tensor], pad: int, *, limit: float = TIME_LIMIT) -> dict[str, Tensor]:
    """Runs a model and gives every floating-point tensor that depends on its inputs.

    Args:
        path: The .onnx file.
        inputs: input_ids and attention_mask, (B, S).
        pad: The id of padding, which positions are counted from where the model asks for them.
        limit: Seconds after which the run is ended.

    Returns:
        The tensors by their names in the graph, in the order of its nodes.

    Raises:
        TraceError: onnx or onnxruntime is not installed; the file is damaged, has operators that onnxruntime lacks or
            data outside of its folder; the model takes other inputs, or its run fails or takes too long.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed(path) from error
    content, names = _with_outputs(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would merge nodes
    options.intra_op_num_threads = 1
    options.log_severity_level = SILENT
    _limit_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    try:
        session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each kind of problem, without one above them
        raise TraceError(f"onnxruntime cannot load {path}: {reason(error)}") from error
    del content
    asked = [
        (each.name, each.type.removeprefix("tensor(").removesuffix(")"), each.shape) for each in session.get_inputs()
    ]
    given = {name: tensor.numpy() for name, tensor in fed(path, asked, inputs, pad).items()}
    position = {name: index for index, name in enumerate(names)}
    outputs = [each.name for each in session.get_outputs() if each.type in FLOATS]
    outputs = sorted((name for name in outputs if name in position), key=position.__getitem__)
    run = onnxruntime.RunOptions()
    run.log_severity_level = SILENT
    timer = threading.Timer(limit, lambda: setattr(run, "terminate", True))
    timer.start()
    try:
        arrays: list[Any] = session.run(outputs, given, run)
    except Exception as error:
        late = f" (it was ended after {limit:g} seconds)" if run.terminate else ""
        raise TraceError(f"{path} fails on the input of the trace{late}: {reason(error)}") from error
    finally:
        timer.cancel()
    return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays, strict=True)}


@cache
def _limit_memory() -> None:
    """Gives onnxruntime at most three quarters of this machine's memory: a file may ask for any amount."""
    import onnxruntime

    runtime: Any = onnxruntime
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else MEMORY
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    as_asked = 1  # the arena grows by what is asked for, and not by twice as much each time
    arena = runtime.OrtArenaCfg({"max_mem": memory * 3 // 4, "arena_extend_strategy": as_asked})
    runtime.create_and_register_allocator(place, arena)


def _with_outputs(path: Path) -> tuple[bytes, list[str]]:
    """The model with all tensors that depend on its inputs as outputs, and their names."""
    try:
        import onnx
        from onnx import inliner
    except ImportError as error:
        raise _not_installed(path) from error
    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    if path.stat().st_size > MOST_BYTES:
        raise TraceError(f"{path} has {path.stat().st_size:,} bytes; expected at most {MOST_BYTES:,}, or external data")
    try:
        model: Any = onnx.load(str(path), load_external_data=False)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except Exception as error:  # protobuf and onnx have errors of their own, and a corrupt file finds them all
        raise TraceError(f"{path} is not an ONNX model, or it is damaged ({reason(error)})") from error
    graph = model.graph
    if not graph.node:
        raise TraceError(f"{path} is not an ONNX model, or it is empty: its graph has no node")
    if len(graph.node) > MOST_NODES:
        raise TraceError(f"{path} has {len(graph.node):,} nodes; expected at most {MOST_NODES:,}")
    _check_data(path, graph)
    unknown = next((node for node in graph.node if node.domain not in DOMAINS), None)
    if unknown is not None:
        raise TraceError(
            f"{path} has the operator {shortened(unknown.op_type)} of {shortened(unknown.domain)}, which is not one of "
            "onnxruntime. Operators from libraries are not loaded: export the model without them"
        )
    weights = {tensor.name for tensor in graph.initializer}
    known = {value.name for value in graph.input if value.name not in weights}
    names: list[str] = []
    for node in graph.node:
        if known.intersection(node.input) or _reads_outside(node):
            produced = [name for name in node.output if name]
            known.update(produced)
            names += produced
    already = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in already)
    try:
        return model.SerializeToString(), names
    except Exception as error:
        raise TraceError(f"{path} cannot be run with its tensors as outputs: {reason(error)}") from error


def _reads_outside(node: Any) -> bool:
    """Whether a node has a graph of its own, which may read tensors that its inputs do not list."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _check_data(path: Path, graph: Any) -> None:
    """Raises TraceError for external data that does not lie in the folder of the model."""
    folder = path.parent.resolve()
    for tensor in _tensors_of(graph):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if tensor.data_location != tensor.EXTERNAL:
            continue
        file = folder / (location or "")
        if not location or not file.resolve().is_relative_to(folder):
            raise TraceError(
                f"{path}: {shortened(tensor.name)} has its data in {shortened(location)}; expected a file in the "
                "folder of the model"
            )
        if not file.is_file():
            raise TraceError(f"{path} has its data in {shortened(location)}, which is not there: keep the two together")


def _tensors_of(graph: Any, depth: int = 0) -> Iterator[Any]:
    """Every stored tensor of a graph, of its nodes and of the graphs inside them."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                yield from _tensors_of(inner, depth + 1) if inner.node or inner.initializer else ()


def _not_installed(path: Path) -> TraceError:
    return TraceError(f"{path} is run by onnxruntime, which is not installed: pip install 'xlmr-core[onnx]'")
