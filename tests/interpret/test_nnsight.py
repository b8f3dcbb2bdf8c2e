"""nnsight on transformers' model gives the same tensors as `capture`, and the same logits as `intervene`."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.paths import package_data

pytestmark = [
    pytest.mark.skipif(not find_spec("nnsight"), reason="nnsight is not installed: pip install nnsight"),
    # transformers' modules with the name `output` are called `E_output` there.
    pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output':UserWarning"),
]
LAYERS = 4


def models() -> tuple[Any, Any, Any]:
    """Ours, transformers' in nnsight, and a batch: the bundled checkpoint, two texts of different lengths."""
    import nnsight

    theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(package_data("xlmr-tiny"), dtype=torch.float32)
    theirs.set_attn_implementation("eager")
    batch = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")(["They <mask> very happy.", "Bonjour <mask> !"])
    return XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny"), nnsight.NNsight(theirs.eval()), dict(**batch)


def test_the_same_tensors() -> None:
    import nnsight

    ours, traced, batch = models()
    with torch.no_grad(), ours.capture("**") as acts:
        ours(**batch)
    with torch.no_grad(), traced.trace(**batch):
        seen = nnsight.save({})
        seen["embeddings.output"] = traced.roberta.embeddings.output
        for i in range(LAYERS):
            layer = traced.roberta.encoder.layer[i]
            seen[f"layers.{i}.attention.q"] = layer.attention.self.query.output
            seen[f"layers.{i}.attention.k"] = layer.attention.self.key.output
            seen[f"layers.{i}.attention.v"] = layer.attention.self.value.output
            seen[f"layers.{i}.attention.context"] = layer.attention.E_output.dense.input
            seen[f"layers.{i}.attention.output"] = layer.attention.E_output.dense.output
            seen[f"layers.{i}.mid"] = layer.attention.E_output.LayerNorm.output
            seen[f"layers.{i}.feed_forward.pre"] = layer.intermediate.dense.output
            seen[f"layers.{i}.feed_forward.post"] = layer.E_output.dense.input
            seen[f"layers.{i}.feed_forward.output"] = layer.E_output.dense.output
            seen[f"layers.{i}.output"] = layer.E_output.LayerNorm.output
        seen["lm_head.dense"] = traced.lm_head.dense.output
        seen["lm_head.norm"] = traced.lm_head.layer_norm.output
        seen["lm_head.logits"] = traced.lm_head.output
    assert len(seen) == 4 + 10 * LAYERS
    real = batch["attention_mask"].bool()
    for name, tensor in seen.items():
        assert torch.equal(tensor[real], acts[name][real]), name


def test_the_same_intervention() -> None:
    ours, traced, batch = models()
    with torch.no_grad():
        intact = ours(**batch).logits
        with ours.intervene({"layers.1.attention.context": lambda old: old.index_fill(-1, torch.arange(192, 256), 0)}):
            expected = ours(**batch).logits
    with torch.no_grad(), traced.trace(**batch):
        dense = traced.roberta.encoder.layer[1].attention.E_output.dense
        dense.input = dense.input.index_fill(-1, torch.arange(192, 256), 0)
        logits = traced.lm_head.output.save()
    real = batch["attention_mask"].bool()
    assert torch.equal(logits[real], expected[real])
    assert not torch.equal(intact[real], expected[real])
