"""The lines of a text file, or what is wrong with it and where."""

from pathlib import Path

import pytest

from xlmr_core.lines import read_lines


def test_lines_come_without_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("кіт\r\n\n a\u2028b \nlast".encode())
    assert list(read_lines(tmp_path / "a.txt")) == ["кіт", "", " a\u2028b ", "last"]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert list(read_lines(str(tmp_path / "empty.txt"))) == []


@pytest.mark.parametrize("line", [b"caf\xe9", b"\xff\xfea\x00", "пес".encode("cp1251"), "犬".encode()[:2]])
def test_another_encoding_is_told_with_its_place(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\n" + line + b"\n")
    lines = read_lines(tmp_path / "a.txt")
    assert [next(lines), next(lines)] == ["good", ""]
    with pytest.raises(ValueError, match=r"a\.txt, line 3: byte 0x[0-9a-f]{2} is not UTF-8; convert it .*iconv"):
        next(lines)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_lines(tmp_path / "nothing"))
