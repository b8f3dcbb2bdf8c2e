"""How the files of a tokenizer are opened and written. A reader of the tokenizer may skip this file."""

import json
from os import PathLike
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from xlmr_core.atomic import written_together
from xlmr_core.json_files import TOKENIZER_LIMIT, check_size


def open_sentencepiece(model_file: str | PathLike[str]) -> SentencePieceProcessor:
    """Opens a SentencePiece model (sentencepiece.bpe.model) whose pieces are numbered as XLM-R's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a SentencePiece model, its pieces are numbered in another way, or it has its spaces
            elsewhere than before a word.
    """
    if not Path(model_file).is_file():
        raise FileNotFoundError(f"there is no SentencePiece model file {model_file}")
    check_size(model_file, TOKENIZER_LIMIT)
    try:
        model = SentencePieceProcessor(model_file=str(model_file))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model_file} is not a SentencePiece model, or it is damaged: {error}") from error
    first_pieces = [model.id_to_piece(i) for i in range(min(3, len(model)))]
    own = [name for name in ("<pad>", "<mask>", "<0x00>") if model.piece_to_id(name) != model.unk_id()]
    if first_pieces != ["<unk>", "<s>", "</s>"] or own:
        raise ValueError(
            f"{model_file} is not numbered as XLM-R's vocabulary: its pieces must begin with <unk>, <s>, </s> and "
            f"hold no <pad>, <mask> or bytes, but they begin with {', '.join(first_pieces)}"
            + (f" and hold {', '.join(own)}" if own else "")
        )
    spaced: str = model.normalize("a  b")  # XLM-R's gives "▁a▁b"
    refused = {
        "treat_whitespace_as_suffix=true": spaced.endswith("▁"),
        "remove_extra_whitespaces=false": "▁▁" in spaced,
    }
    if any(refused.values()):
        raise ValueError(
            f"{model_file} was trained with {', '.join(name for name in refused if refused[name])}, but a "
            "vocabulary must have one space before each word, as XLM-R's has. Train it without that option"
        )
    return model


def write_tokenizer(model: SentencePieceProcessor, max_tokens: int, folder: str | PathLike[str]) -> None:
    """Writes sentencepiece.bpe.model and tokenizer_config.json, which transformers reads too.

    A process that is killed leaves both old files, both new ones, or a folder without sentencepiece.bpe.model.

    Args:
        model: the opened SentencePiece model.
        max_tokens: longest row of the tokenizer, in tokens with `<s>` and `</s>`.
        folder: where to write; it is made if it does not exist. Files of the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_tokens}
    with written_together(folder, "tokenizer_config.json", "sentencepiece.bpe.model") as (config, pieces):
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        pieces.write_bytes(model.serialized_model_proto())
