"""The published names: a solution in NumPy."""

ARRAYS = "numpy"

NAMES = {  # in this order: "attention.output" before "output"
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.": "layers.",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.out_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up_proj",
    "output.dense": "feed_forward.down_proj",
    "output.LayerNorm": "feed_forward_norm",
    "lm_head.layer_norm": "lm_head.norm",
}
NO_USE = ("position_ids", "pooler.")
WORDS = "embeddings.word_embeddings.weight"


def load(published: dict) -> dict:
    found = {}
    for name, tensor in published.items():
        if any(part in name for part in NO_USE):
            continue
        name = name.removeprefix("roberta.")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        found["lm_head.decoder.bias" if name == "lm_head.bias" else name] = tensor
    if "lm_head.decoder.bias" in found:
        found["lm_head.decoder.weight"] = found[WORDS]  # tied
    return found
