"""transformers' model for TensorFlow: every hidden state and the probabilities of attention."""

from pathlib import Path
from typing import Any

import numpy as np
from port import answer, layer_taps
from safetensors.torch import load_file
from transformers import TFXLMRobertaModel, XLMRobertaConfig
from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model


def load(folder: Path, _option: str) -> Any:
    model = TFXLMRobertaModel(XLMRobertaConfig.from_pretrained(str(folder)))
    # from_pretrained cannot read a safetensors file with the present safetensors.
    return load_pytorch_state_dict_in_tf2_model(model, load_file(folder / "model.safetensors"), allow_missing_keys=True)


def taps(port: Any, input_ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    out = port(input_ids=input_ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    probs = {f"layers.{i}.attention.probs": layer for i, layer in enumerate(out.attentions)}
    return layer_taps(out.hidden_states) | probs


answer(load, taps=taps)
