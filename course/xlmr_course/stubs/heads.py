"""Queries, keys and values, in heads: see the page of this step. `xlmr course check heads` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def project(x, weight, bias, heads: int):
    """x: (B, S, H); weight: (H, H) as (out, in); bias: (H,). Returns (B, N, S, D) with N = heads and D = H / N."""
    raise NotImplementedError
