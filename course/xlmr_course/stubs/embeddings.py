"""Three tables and a norm: see the page of this step. `xlmr course check embeddings` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def norm(x, weight, bias, eps: float):
    """x: (B, S, H); weight, bias: (H,). Returns (B, S, H)."""
    raise NotImplementedError


def embed(input_ids, positions, word, position, token_type, weight, bias, eps: float):
    """input_ids, positions: (B, S); word: (V, H); position: (P, H); token_type: (1, H). Returns (B, S, H)."""
    raise NotImplementedError
