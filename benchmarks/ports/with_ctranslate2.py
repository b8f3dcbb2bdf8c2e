"""CTranslate2: the last hidden state, with its own converter. The option is the type that it computes in."""

import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from port import answer


def load(folder: Path, option: str) -> Any:
    converted = folder / "ctranslate2"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return ctranslate2.Encoder(str(converted), compute_type=option, intra_threads=1), layers


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    encoder, layers = port
    rows = [row[real == 1].tolist() for row, real in zip(input_ids, mask, strict=True)]
    return {f"layers.{layers - 1}.output": np.array(encoder.forward_batch(rows).last_hidden_state)}


answer(load, taps=taps)
