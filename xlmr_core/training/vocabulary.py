"""A new vocabulary: a SentencePiece model trained with the settings XLM-R's was (Conneau et al. 2020, section 3)."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def train_vocabulary(corpus: Sequence[Path], model_file: Path, size: int, *, lines_per_file: int = 20_000) -> None:
    """Trains a unigram SentencePiece model of `size` pieces and writes it to `model_file`.

    Each corpus file gives at most its first `lines_per_file` lines, so that a language with much text does not take
    the pieces of the others. The model's vocabulary is two longer than `size`: <pad> and <mask> are added by the ids.
    Raises ValueError where the text is too small for the size.
    """
    import sentencepiece

    def sentences() -> Iterator[str]:
        for path in corpus:
            with path.open(encoding="utf-8") as lines:
                for line, _ in zip(lines, range(lines_per_file), strict=False):
                    yield line.rstrip("\n")

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
        raise ValueError(f"cannot train a vocabulary of {size} pieces on this text: {error}") from error
    model_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = model_file.with_suffix(".tmp")
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, model_file)
