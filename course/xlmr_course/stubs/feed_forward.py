"""Each token by itself: see the page of this step. `xlmr course check feed-forward` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def activation(x):
    """Returns GELU of every number, in the shape of x."""
    raise NotImplementedError


def feed_forward(mid, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, eps: float):
    """mid: (B, S, H); up_weight: (F, H); down_weight: (H, F); up_bias: (F,); the others: (H,). Returns (B, S, H)."""
    raise NotImplementedError
