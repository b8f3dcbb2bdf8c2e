"""Vectors to words: a solution in NumPy."""

from embeddings import norm
from feed_forward import activation

ARRAYS = "numpy"


def logits(hidden, dense_weight, dense_bias, norm_weight, norm_bias, word, bias, eps: float):
    inner = norm(activation(hidden @ dense_weight.T + dense_bias), norm_weight, norm_bias, eps)
    return inner @ word.T + bias
