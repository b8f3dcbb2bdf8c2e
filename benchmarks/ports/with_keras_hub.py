"""keras-hub: its tokenizer, its backbone and its text embedder, from the folder. The option is the backend of Keras."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = sys.argv[4]

import keras
import keras_hub
import numpy as np
from port import Ids, Texts, answer, layer_taps


def load(folder: Path, _option: str) -> Any:
    return keras_hub.models.XLMRobertaTextEmbedder.from_preset(str(folder))


def ids(port: Any, texts: Texts) -> Ids:
    out = port.preprocessor(list(texts))
    rows = zip(np.array(out["token_ids"]), np.array(out["padding_mask"]).astype(bool), strict=True)
    return [row[real].tolist() for row, real in rows]


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    backbone = port.backbone
    layers = [f"transformer_layer_{i}" for i in range(backbone.num_layers)]
    names = ["embeddings_layer_norm", *layers]
    watched = keras.Model(backbone.input, [backbone.get_layer(name).output for name in names])
    return layer_taps([np.array(state) for state in watched.predict({"token_ids": input_ids, "padding_mask": mask})])


def vectors(port: Any, texts: Texts) -> Any:
    return port.predict(list(texts))


answer(load, ids=ids, taps=taps, vectors=vectors)
