"""adapters: its own classes over those of transformers 4, with no adapter switched on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import AutoAdapterModel
from port import answer

from xlmr_core.parity.adapters import dump_of, transformers_places


def load(folder: Path, option: str) -> Any:
    return AutoAdapterModel.from_pretrained(str(folder), attn_implementation=option).eval()


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    places = {tap: place for tap, place in transformers_places(port).items() if not tap.startswith("pooler.")}
    return dump_of(port, batch, places=places)


answer(load, taps=taps)
