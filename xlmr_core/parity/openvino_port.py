"""An OpenVINO model as a dump: run on the inputs of a trace, with every tensor inside it as an output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.port_inputs import MOST_NODES, TIME_LIMIT, fed, reason

MOST_BYTES = 256 * 2**20  # of an .xml file: it has no weights
FLOATS = ("f32", "f16", "f64")
STORED = ("Constant", "Parameter", "Result")


def run_openvino(path: Path, inputs: Mapping[str, Tensor], pad: int, *, limit: float = TIME_LIMIT) -> dict[str, Tensor]:
    """Runs a model on the CPU and gives every floating-point tensor that depends on its inputs.

    Args:
        path: The .xml file; its .bin file lies beside it.
        inputs: input_ids and attention_mask, (B, S).
        pad: The id of padding, which positions are counted from where the model asks for them.
        limit: Seconds after which the run is ended.

    Returns:
        The tensors by the names of their nodes, in the order of the graph.

    Raises:
        TraceError: openvino is not installed; the file is damaged; the model takes other inputs, or its run fails or
            takes too long.
    """
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        message = f"{path} is run by openvino, which is not installed: pip install 'xlmr-core[openvino]'"
        raise TraceError(message) from error
    vino: Any = openvino
    if not path.is_file():
        raise TraceError(f"there is no file {path}")
    if path.stat().st_size > MOST_BYTES:
        raise TraceError(f"{path} has {path.stat().st_size:,} bytes; expected at most {MOST_BYTES:,}")
    try:
        core = vino.Core()
        model = core.read_model(path)
        found = _inner(model)
        model.add_outputs([output for _, output in found])
        sources = [result.input(0).get_source_output() for result in model.get_results()]
        place = {_key(source): index for index, source in enumerate(sources)}  # what was an output is not added again
        # OpenVINO computes in bfloat16 where the processor can, unless it is asked for more.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    except TraceError:
        raise
    except Exception as error:  # openvino raises RuntimeError and others for a corrupt file
        raise TraceError(f"{path} is not an OpenVINO model, or it is damaged ({reason(error)})") from error
    asked = [(each.get_any_name(), each.get_element_type().get_type_name(), _shape(each)) for each in compiled.inputs]
    given = fed(path, asked, inputs, pad)
    try:
        request = compiled.create_infer_request()
        request.start_async({name: tensor.numpy() for name, tensor in given.items()})
        if not request.wait_for(int(limit * 1000)):
            request.cancel()
            raise TraceError(f"{path} was ended after {limit:g} seconds on the input of the trace")
        results = ((name, request.get_output_tensor(place[_key(output)]).data) for name, output in found)
        return {name: torch.from_numpy(array.copy()) for name, array in results}
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(f"{path} fails on the input of the trace: {reason(error)}") from error


def _inner(model: Any) -> list[tuple[str, Any]]:
    """Each floating-point output of a node that depends on the inputs of the model, by a name of its own."""
    nodes = model.get_ordered_ops()
    if len(nodes) > MOST_NODES:
        raise TraceError(f"the model has {len(nodes):,} nodes; expected at most {MOST_NODES:,}")
    known: set[str] = {node.get_name() for node in nodes if node.get_type_name() == "Parameter"}
    found: list[tuple[str, Any]] = []
    for node in nodes:
        sources = (source.get_source_output().get_node().get_name() for source in node.inputs())
        if node.get_type_name() in STORED or not known.intersection(sources):
            continue
        known.add(node.get_name())
        for index, output in enumerate(node.outputs()):
            if output.get_element_type().get_type_name() in FLOATS:
                found.append((f"{node.get_friendly_name()}:{index}", output))
    return found


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _shape(port: Any) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
