"""Who looks at whom: a solution in NumPy."""

import numpy as np

ARRAYS = "numpy"


def scores(q, k, mask):
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return np.where(mask[:, None, None, :], s, np.finfo(s.dtype).min)
