"""Who looks at whom: see the page of this step. `xlmr course check scores` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def scores(q, k, mask):
    """q, k: (B, N, S, D); mask: (B, S), True for a real token. Returns (B, N, S, S): query, then key."""
    raise NotImplementedError
