"""transformers' model for Flax: every hidden state and the probabilities of attention."""

from pathlib import Path
from typing import Any

import numpy as np
from port import answer, layer_taps
from transformers import FlaxXLMRobertaModel


def load(folder: Path, _option: str) -> Any:
    return FlaxXLMRobertaModel.from_pretrained(str(folder), from_pt=True, add_pooling_layer=False)


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    out = port(input_ids=input_ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    probs = {f"layers.{i}.attention.probs": layer for i, layer in enumerate(out.attentions)}
    return layer_taps(out.hidden_states) | probs


answer(load, taps=taps)
