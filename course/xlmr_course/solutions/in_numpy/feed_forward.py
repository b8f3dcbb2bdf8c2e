"""Each token by itself: a solution in NumPy."""

import math

import numpy as np
from embeddings import norm

ARRAYS = "numpy"

erf = np.vectorize(math.erf)


def activation(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def feed_forward(mid, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, eps: float):
    inner = activation(mid @ up_weight.T + up_bias)
    return norm(mid + inner @ down_weight.T + down_bias, norm_weight, norm_bias, eps)
