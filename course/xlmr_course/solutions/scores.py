"""Who looks at whom: a solution."""

import torch

ARRAYS = "torch"


def scores(q, k, mask):
    products = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, N, S, S)
    return products.masked_fill(~mask[:, None, None, :], torch.finfo(products.dtype).min)
