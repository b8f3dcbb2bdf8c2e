"""fastembed: a model of our own, from the same ONNX file."""

import json
from pathlib import Path
from typing import Any

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from port import Ids, Texts, answer


def load(folder: Path, _option: str) -> Any:
    TextEmbedding.add_custom_model(
        model="local/xlmr",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/xlmr"),
        dim=json.loads((folder / "config.json").read_text())["hidden_size"],
        model_file="onnx/model.onnx",
    )
    return TextEmbedding("local/xlmr", specific_model_path=str(folder))


def ids(port: Any, texts: Texts) -> Ids:
    rows = [port.model.tokenizer.encode(text) for text in texts]
    return [[id for id, real in zip(row.ids, row.attention_mask, strict=True) if real] for row in rows]


def vectors(port: Any, texts: Texts) -> Any:
    return list(port.embed(list(texts)))


answer(load, ids=ids, vectors=vectors)
