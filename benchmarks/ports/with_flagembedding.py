"""FlagEmbedding: its tokenizer and its vectors. The way of pooling is an argument there."""

from pathlib import Path
from typing import Any

import numpy as np
from FlagEmbedding import FlagModel
from port import Ids, Texts, answer


def load(folder: Path, _option: str) -> Any:
    return FlagModel(str(folder), pooling_method="mean", use_fp16=False, devices="cpu")


def ids(port: Any, texts: Texts) -> Ids:
    return [port.tokenizer(text)["input_ids"] for text in texts]


def vectors(port: Any, texts: Texts) -> Any:
    limit = port.model.config.max_position_embeddings - 2
    return np.asarray(port.encode(list(texts), max_length=limit))


answer(load, ids=ids, vectors=vectors)
