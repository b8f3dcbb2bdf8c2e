"""Queries, keys and values, in heads: a solution."""

ARRAYS = "torch"


def project(x, weight, bias, heads: int):
    batch, tokens, width = x.shape
    projected = x @ weight.T + bias  # (B, S, H)
    return projected.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
