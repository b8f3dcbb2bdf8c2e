"""All layers: see the page of this step. `xlmr course check stack` marks it."""

# Your own functions are at hand:
# from positions import position_ids
# from embeddings import embed
# from heads import project
# ...

ARRAYS = "torch"  # or "numpy": what you write in


def encode(input_ids, mask, parameters: dict, heads: int, eps: float):
    """input_ids, mask: (B, S); parameters: tensors by the names on the page. Returns (B, S, H)."""
    raise NotImplementedError
