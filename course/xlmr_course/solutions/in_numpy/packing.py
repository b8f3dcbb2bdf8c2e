"""Batches without padding: a solution in NumPy."""

import numpy as np
from context import context

ARRAYS = "numpy"


def pack(input_ids, mask):
    return input_ids[mask], mask.sum(1)


def packed_positions(lengths, pad: int):
    return np.concatenate([np.arange(n) + pad + 1 for n in lengths])


def packed_context(q, k, v, lengths, heads: int):
    out, start = [], 0
    for n in lengths:
        a, b, c = (x[start : start + n].reshape(1, n, heads, -1).swapaxes(1, 2) for x in (q, k, v))
        out.append(context(a @ b.swapaxes(-1, -2) / np.sqrt(a.shape[-1]), c)[0])
        start += n
    return np.concatenate(out)
