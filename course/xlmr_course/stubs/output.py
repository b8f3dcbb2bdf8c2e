"""Back into the stream: output, residual, norm: see the page of this step. `xlmr course check output` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def attention_output(context, x, weight, bias, norm_weight, norm_bias, eps: float):
    """context, x: (B, S, H); x is what the layer read; weight: (H, H) as (out, in); bias and those of the norm: (H,).
    Returns (B, S, H)."""
    raise NotImplementedError
