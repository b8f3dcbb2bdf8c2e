"""tokenizers: the ids that it gives with the tokenizer.json that transformers writes."""

from pathlib import Path
from typing import Any

from port import Ids, Texts, answer
from tokenizers import Tokenizer


def load(folder: Path, _option: str) -> Any:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids(port: Any, texts: Texts) -> Ids:
    return [encoding.ids for encoding in port.encode_batch(list(texts))]


answer(load, ids=ids)
