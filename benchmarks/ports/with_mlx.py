"""mlx-embeddings, on the CPU: its own model and pooling."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_embeddings.utils import load as load_folder
from port import Ids, Texts, answer, layer_taps, padded


def load(folder: Path, _option: str) -> Any:
    mx.set_default_device(mx.cpu)
    return load_folder(str(folder), model_config={"add_pooling_layer": False})


def ids(port: Any, texts: Texts) -> Ids:
    return [port[1].encode(text) for text in texts]


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    out = port[0](mx.array(input_ids), mx.array(mask), output_hidden_states=True)
    return layer_taps([np.array(state) for state in out.hidden_states[0]])


def vectors(port: Any, texts: Texts) -> Any:
    limit = port[0].config.max_position_embeddings - 2
    input_ids, mask = padded([[*row[: limit - 1], 2] if len(row) > limit else row for row in ids(port, texts)])
    return np.array(port[0](mx.array(input_ids), mx.array(mask)).text_embeds)


answer(load, ids=ids, taps=taps, vectors=vectors)
