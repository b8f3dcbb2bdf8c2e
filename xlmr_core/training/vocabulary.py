"""A new vocabulary: a SentencePiece model trained with the settings of XLM-R (Conneau et al. 2020, section 3)."""

import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from xlmr_core.text_files import read_lines

TOO_MANY = re.compile(r"Vocabulary size too high .* value <= (\d+)")  # SentencePiece, trainer_interface.cc
TOO_FEW = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


def train_vocabulary(corpus: Sequence[Path], size: int, *, lines_per_file: int = 20_000) -> bytes:
    """Trains a unigram SentencePiece model.

    Args:
        corpus: Text files, UTF-8.
        size: The number of pieces. The vocabulary of the tokenizer has two more: `<pad>` and `<mask>`.
        lines_per_file: The number of lines of a file that are used, from the first one on. The limit keeps a language
            with much text from taking most of the pieces.

    Returns:
        The content of the SentencePiece model file.

    Raises:
        ValueError: The text has too few words or too many characters for the size; the error gives the limit.
    """
    import sentencepiece

    def sentences() -> Iterator[str]:
        for path in corpus:
            yield from islice(read_lines(path), lines_per_file)

    model = io.BytesIO()  # given a file, the trainer would write its name into the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            normalization_rule_name="nmt_nfkc",
            character_coverage=0.9995,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # with more, the pieces differ from run to run
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a vocabulary of {size} pieces on this text: {_cause(error)}") from error
    return model.getvalue()


def _cause(error: RuntimeError) -> str:
    """The cause of an error of SentencePiece, with the option to change where it is the size."""
    if limit := TOO_MANY.search(str(error)):
        return f"it is enough for {limit[1]} at most. Lower vocabulary_size, or give more text"
    if limit := TOO_FEW.search(str(error)):
        return f"its characters need {limit[1]}. Raise vocabulary_size"
    return str(error)
