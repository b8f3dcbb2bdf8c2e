"""OpenVINO on the same ONNX file. The option is the precision: f32, or what it chooses for this processor."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from port import answer, layer_taps


def load(folder: Path, option: str) -> Any:
    settings = {} if option == "default" else {"INFERENCE_PRECISION_HINT": option}
    return openvino.Core().compile_model(str(folder / "onnx" / "model.onnx"), "CPU", settings)


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    found = port({"input_ids": input_ids, "attention_mask": mask})
    _, *states = (found[output] for output in port.outputs)
    return layer_taps(states)


answer(load, taps=taps)
