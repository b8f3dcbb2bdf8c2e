"""The published names: see the page of this step. `xlmr course check loading` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def load(published: dict) -> dict:
    """published: tensors by the names of the file. Returns tensors by the names of the course."""
    raise NotImplementedError
