"""Back into the stream: a solution."""

from embeddings import norm

ARRAYS = "torch"


def attention_output(context, x, weight, bias, norm_weight, norm_bias, eps: float):
    return norm(x + context @ weight.T + bias, norm_weight, norm_bias, eps)
