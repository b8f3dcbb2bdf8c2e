"""A new vocabulary: a SentencePiece model trained with the settings XLM-R's was (Conneau et al. 2020, section 3)."""

import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from xlmr_core.text_files import read_lines

TOO_MANY = re.compile(r"Vocabulary size too high .* value <= (\d+)")  # SentencePiece, trainer_interface.cc
TOO_FEW = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


def train_vocabulary(corpus: Sequence[Path], size: int, *, lines_per_file: int = 20_000) -> bytes:
    """Trains a unigram SentencePiece model of `size` pieces: the content of its file.

    Each corpus file gives at most its first `lines_per_file` lines, so that a language with much text does not take
    the pieces of the others. The model's vocabulary is two longer than `size`: <pad> and <mask> are added by the ids.
    Raises ValueError, with the limit, where the text has too few words or too many characters for the size.
    """
    import sentencepiece

    def sentences() -> Iterator[str]:
        for path in corpus:
            yield from islice(read_lines(path), lines_per_file)

    model = io.BytesIO()  # not a file of the trainer's: it would write its name into the model
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
            num_threads=1,  # the same pieces each time
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a vocabulary of {size} pieces on this text: {_cause(error)}") from error
    return model.getvalue()


def _cause(error: RuntimeError) -> str:
    """What SentencePiece complains of, in our words where it is the size."""
    if limit := TOO_MANY.search(str(error)):
        return f"it is enough for {limit[1]} at most. Lower vocabulary_size, or give more text"
    if limit := TOO_FEW.search(str(error)):
        return f"its characters alone take {limit[1]}. Raise vocabulary_size"
    return str(error)
