"""How long work reports its progress."""

from collections.abc import Callable
from typing import Any

Tick = Callable[[int], Any]  # called with the amount of work that was just done, such as bytes written


def no_tick(count: int) -> None:
    """The default: progress is not shown."""
