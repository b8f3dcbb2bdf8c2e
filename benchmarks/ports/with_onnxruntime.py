"""onnxruntime on the ONNX file of export.py. The option: float32, int8, or int8 of matrix products only."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from port import answer, layer_taps

OPERATIONS = {"int8": None, "int8 products": ["MatMul", "Gemm"]}


def load(folder: Path, option: str) -> Any:
    file = folder / "onnx" / "model.onnx"
    if option in OPERATIONS:
        quantised = file.with_name(f"{option}.onnx")
        if not quantised.exists():
            quantize_dynamic(file, quantised, op_types_to_quantize=OPERATIONS[option], weight_type=QuantType.QInt8)
        file = quantised
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    _, *states = port.run(None, {"input_ids": input_ids, "attention_mask": mask})
    return layer_taps(states)


answer(load, taps=taps)
