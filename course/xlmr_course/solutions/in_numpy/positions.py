"""Positions begin at 2: a solution in NumPy."""

import numpy as np

ARRAYS = "numpy"


def position_ids(input_ids, pad: int):
    real = input_ids != pad
    return np.cumsum(real, axis=1) * real + pad
