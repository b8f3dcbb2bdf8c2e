"""Vectors to words: see the page of this step. `xlmr course check lm-head` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def logits(hidden, dense_weight, dense_bias, norm_weight, norm_bias, word, bias, eps: float):
    """hidden: (B, S, H); dense_weight: (H, H); word: (V, H), the word table; bias: (V,); the others: (H,).
    Returns (B, S, V)."""
    raise NotImplementedError
