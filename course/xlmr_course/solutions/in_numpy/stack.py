"""All layers: a solution in NumPy."""

from context import context
from embeddings import embed
from feed_forward import feed_forward
from heads import project
from output import attention_output
from positions import position_ids
from scores import scores

ARRAYS = "numpy"
PAD = 1


def encode(input_ids, mask, parameters: dict, heads: int, eps: float):
    def pair(name: str) -> tuple:
        return parameters[name + ".weight"], parameters[name + ".bias"]

    tables = (parameters[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    hidden = embed(input_ids, position_ids(input_ids, PAD), *tables, *pair("embeddings.norm"), eps)
    count = 1 + max(int(name.split(".")[1]) for name in parameters if name.startswith("layers."))
    for i in range(count):
        layer = f"layers.{i}."
        q, k, v = (project(hidden, *pair(f"{layer}attention.{name}_proj"), heads) for name in "qkv")
        mixed = context(scores(q, k, mask), v)
        mid = attention_output(mixed, hidden, *pair(layer + "attention.out_proj"), *pair(layer + "attention_norm"), eps)
        up, down = pair(layer + "feed_forward.up_proj"), pair(layer + "feed_forward.down_proj")
        hidden = feed_forward(mid, *up, *down, *pair(layer + "feed_forward_norm"), eps)
    return hidden
