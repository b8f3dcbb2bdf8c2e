"""sentence-transformers: ids, every tap of its encoder, and vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from port import Ids, Texts, answer
from sentence_transformers import SentenceTransformer

from xlmr_core.parity.adapters import dump_of


def load(folder: Path, _option: str) -> Any:
    return SentenceTransformer(str(folder), device="cpu").eval()


def ids(port: Any, texts: Texts) -> Ids:
    return [port.tokenizer(text)["input_ids"] for text in texts]


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    return dump_of(port[0].auto_model, batch)


def vectors(port: Any, texts: Texts) -> Any:
    return port.encode(list(texts))


answer(load, ids=ids, taps=taps, vectors=vectors)
