"""Softmax and the weighted mean: a solution in NumPy."""

import numpy as np

ARRAYS = "numpy"


def context(scores, v):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    c = e / e.sum(-1, keepdims=True) @ v
    B, N, S, D = c.shape
    return c.transpose(0, 2, 1, 3).reshape(B, S, N * D)
