"""Three tables and a norm: a solution in NumPy."""

import numpy as np

ARRAYS = "numpy"


def norm(x, weight, bias, eps: float):
    m = x.mean(-1, keepdims=True)
    v = ((x - m) ** 2).mean(-1, keepdims=True)
    return (x - m) / np.sqrt(v + eps) * weight + bias


def embed(input_ids, positions, word, position, token_type, weight, bias, eps: float):
    return norm(word[input_ids] + position[positions] + token_type[0], weight, bias, eps)
