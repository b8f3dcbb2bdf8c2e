"""Text becomes ids: see the page of this step. `xlmr course check ids` marks it."""

ARRAYS = "torch"  # or "numpy": what you write in


def model_ids(spm_ids: list[int]) -> list[int]:
    """The ids of one text as the model wants them, from those that SentencePiece gives."""
    raise NotImplementedError


def pair_ids(first: list[int], second: list[int]) -> list[int]:
    """The ids of two texts in one row, from those that SentencePiece gives for each."""
    raise NotImplementedError
