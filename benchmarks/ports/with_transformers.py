"""transformers: every tap, and the ids of its tokenizer. The option is the attention kernel."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from port import Ids, Texts, answer
from transformers import AutoModel, AutoTokenizer

from xlmr_core.parity.adapters import dump_of


def load(folder: Path, option: str) -> Any:
    model = AutoModel.from_pretrained(folder, attn_implementation=option, add_pooling_layer=False)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def ids(port: Any, texts: Texts) -> Ids:
    return port[1](list(texts))["input_ids"]


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    return dump_of(port[0], batch)


answer(load, ids=ids, taps=taps)
