"""Errors that callers may want to catch by name, and how a message shows a value."""

LONGEST_VALUE = 80  # characters of a value in a message


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or accounted for. The message says why, and what to do next."""


def shortened(value: object) -> str:
    """The value as a message shows it, on one line and not longer than LONGEST_VALUE."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested too deeply
        text = f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
