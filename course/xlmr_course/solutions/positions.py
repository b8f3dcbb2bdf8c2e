"""Positions begin at 2: a solution."""

ARRAYS = "torch"


def position_ids(input_ids, pad: int):
    real = (input_ids != pad).long()
    return real.cumsum(dim=1) * real + pad
