"""Softmax and the weighted mean: see the page of this step. `xlmr course check context` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def context(scores, v):
    """scores: (B, N, S, S); v: (B, N, S, D). Returns (B, S, H): the heads side by side."""
    raise NotImplementedError
