"""Small files that are read whole, most of them JSON: their size is bounded, and every error names the file."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

TOKENIZER_LIMIT = 100 * 2**20  # bytes of a tokenizer's file; the largest of XLM-R, tokenizer.json, has 17 MB
JSON_LIMIT = 4 * 2**20  # bytes; the largest published config.json, with the names of 10,000 classes, has under 1 MB


def read_text(path: str | PathLike[str], limit: int = JSON_LIMIT) -> str:
    """The text of a small file.

    Args:
        path: the file.
        limit: the most bytes it may have; no more are read.

    Raises:
        ValueError: the file is larger, or not UTF-8. The message names the file.
        OSError: it cannot be read.
    """
    check_size(path, limit)
    with open(path, "rb") as file:
        content = file.read(limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start}, {content[error.start]:#04x}, is not UTF-8") from None


def check_size(path: str | PathLike[str], limit: int) -> None:
    """Raises ValueError, naming the file, if it has more than `limit` bytes."""
    size = Path(path).stat().st_size
    if size > limit:
        raise ValueError(f"{path}: it has {size} bytes, at most {limit} are read")


def read_json_object(path: str | PathLike[str], limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a small file.

    Args:
        path: the file.
        limit: the most bytes it may have; no more are read.

    Raises:
        ValueError: the file is larger, not UTF-8, not JSON, nested too deeply, or holds something that is not an
            object. The message names the file.
        OSError: it cannot be read.
    """
    text = read_text(path, limit)
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: it is not JSON ({error})" if text.strip() else f"{path}: it is empty") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, but it holds {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    """What JSON calls it."""
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), "a number")
