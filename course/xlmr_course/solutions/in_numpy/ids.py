"""Text becomes ids: a solution in NumPy."""

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3  # fairseq's special tokens; <mask> is the last id
SPM_UNKNOWN = 0
OFFSET = 1  # SentencePiece has three special ids of its own, fairseq four


def _shifted(spm_ids: list[int]) -> list[int]:
    return [UNKNOWN if number == SPM_UNKNOWN else number + OFFSET for number in spm_ids]


def model_ids(spm_ids: list[int]) -> list[int]:
    return [BEGIN, *_shifted(spm_ids), END]


def pair_ids(first: list[int], second: list[int]) -> list[int]:
    return [BEGIN, *_shifted(first), END, END, *_shifted(second), END]
