"""Softmax and the weighted mean: a solution."""

ARRAYS = "torch"


def context(scores, v):
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    mixed = weights @ v  # (B, N, S, D)
    batch, heads, tokens, width = mixed.shape
    return mixed.transpose(1, 2).reshape(batch, tokens, heads * width)
