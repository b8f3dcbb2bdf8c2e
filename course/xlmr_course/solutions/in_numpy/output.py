"""Back into the stream: a solution in NumPy."""

from embeddings import norm

ARRAYS = "numpy"


def attention_output(context, x, weight, bias, norm_weight, norm_bias, eps: float):
    return norm(x + context @ weight.T + bias, norm_weight, norm_bias, eps)
