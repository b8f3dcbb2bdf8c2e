"""Text that a tokenizer cannot take: an error that names the argument and what to do instead."""

from collections.abc import Sequence


def checked_list(texts: str | Sequence[str], name: str) -> list[str]:
    """The texts as a list.

    Args:
        texts: one text, or a sequence of at least one.
        name: the argument, as messages call it.

    Raises:
        TypeError: it is not a string or a sequence of strings. The message names the first text that is not a string.
        ValueError: the sequence is empty, or a text is not Unicode text.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} must be a string or a sequence of strings, not {type(texts).__name__}")
    if not texts:
        raise ValueError(f"{name} is empty: expected at least one text (an empty text is one)")
    for index, text in enumerate(texts):
        check_text(text, f"{name}[{index}]")
    return list(texts)


def check_text(text: str, name: str) -> None:
    """Raises TypeError for what is not a string, and ValueError for one with half a surrogate pair."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half a surrogate pair, {text[error.start]!r}, at character {error.start}: it is not Unicode "
            "text. Replace it by '?' with text.encode(errors='replace').decode()"
        ) from None
