"""curated-transformers: its own encoder and its own tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from curated_transformers.layers import AttentionMask
from curated_transformers.models import XLMREncoder
from curated_transformers.tokenizers.legacy import XLMRTokenizer
from fsspec.implementations.local import LocalFileSystem
from port import Ids, Texts, answer, layer_taps


def load(folder: Path, _option: str) -> Any:
    place = {"fs": LocalFileSystem(), "model_path": str(folder)}
    return XLMREncoder.from_fsspec(**place).eval(), XLMRTokenizer.from_fsspec(**place)


def ids(port: Any, texts: Texts) -> Ids:
    return port[1](list(texts)).ids


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    with torch.no_grad():
        out = port[0](torch.from_numpy(input_ids), AttentionMask(torch.from_numpy(mask).bool()))
    return layer_taps(out.all_outputs)


answer(load, ids=ids, taps=taps)
