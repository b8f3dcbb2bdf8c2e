"""TOML is read by the library that this Python has, and whatever the text, it is read or refused."""

import pytest

from xlmr_core.checkpoint.toml import parse_toml


def test_a_table_is_read() -> None:
    assert parse_toml('[names]\na = { name = "b", axes = "N S D" }') == {"names": {"a": {"name": "b", "axes": "N S D"}}}


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "a = " + "[" * 10_000, "a = " + "{a = " * 10_000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_toml(text)
