"""Writes FOLDER/tokenizer.json and FOLDER/onnx/model.onnx from transformers' tokenizer and model. run.py runs it."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModel, AutoTokenizer

folder = Path(sys.argv[1])
with TemporaryDirectory() as temporary:  # the other files that it writes stay out of the checkpoint
    AutoTokenizer.from_pretrained(folder).save_pretrained(temporary)
    (folder / "tokenizer.json").write_bytes((Path(temporary) / "tokenizer.json").read_bytes())

model = AutoModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()
count = model.config.num_hidden_layers + 1


class Encoder(torch.nn.Module):
    """The hidden states as outputs, for a mask is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.model(input_ids, attention_mask, output_hidden_states=True)
        return out.last_hidden_state, *out.hidden_states


(folder / "onnx").mkdir(exist_ok=True)
ids = torch.randint(4, 1000, (2, 9))
axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
torch.onnx.export(
    Encoder().eval(),
    (ids, torch.ones_like(ids)),
    folder / "onnx" / "model.onnx",
    input_names=["input_ids", "attention_mask"],
    output_names=["last_hidden_state", *(f"hidden_states.{i}" for i in range(count))],
    dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    external_data=False,
)
