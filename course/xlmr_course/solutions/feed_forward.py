"""Each token by itself: a solution."""

import torch
from embeddings import norm

ARRAYS = "torch"


def activation(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def feed_forward(mid, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, eps: float):
    inner = activation(mid @ up_weight.T + up_bias)  # (B, S, F)
    return norm(mid + inner @ down_weight.T + down_bias, norm_weight, norm_bias, eps)
