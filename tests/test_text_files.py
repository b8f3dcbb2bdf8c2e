"""The lines of a text file or of a stream, or what is wrong with them and where."""

from io import BytesIO
from pathlib import Path

import pytest

from xlmr_core.text_files import LONGEST_LINE, arriving_lines, json_object, read_lines


def test_lines_come_without_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("кіт\r\n\n a\u2028b \nlast".encode())
    assert list(read_lines(tmp_path / "a.txt")) == ["кіт", "", " a\u2028b ", "last"]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert list(read_lines(str(tmp_path / "empty.txt"))) == []


@pytest.mark.parametrize("line", [b"caf\xe9", b"\xff\xfea\x00", "пес".encode("cp1251"), "犬".encode()[:2]])
def test_the_error_for_another_encoding_names_the_line(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\n" + line + b"\n")
    lines = read_lines(tmp_path / "a.txt")
    assert [next(lines), next(lines)] == ["good", ""]
    with pytest.raises(ValueError, match=r"a\.txt, line 3: byte 0x[0-9a-f]{2} is not UTF-8; convert it .*iconv"):
        next(lines)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_lines(tmp_path / "nothing"))


def test_a_line_has_a_limit(tmp_path: Path) -> None:
    longest = b"x" * LONGEST_LINE
    (tmp_path / "a.txt").write_bytes(b"short\r\n" + longest + b"\r\n" + longest + b"\nlast")
    assert [len(line) for line in read_lines(tmp_path / "a.txt")] == [5, LONGEST_LINE, LONGEST_LINE, 4]
    (tmp_path / "a.txt").write_bytes(b"short\n" + longest + b"x\n")
    with pytest.raises(ValueError, match=rf"a\.txt, line 2: the line is longer than {LONGEST_LINE} bytes; split it"):
        list(read_lines(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[1]", r"expected a JSON object, got \[1\]"),
        ('{"text": ', "expected a JSON object: Expecting value"),
        pytest.param("[" * 100_000, "expected a JSON object: ", id="nested too deeply"),
    ],
)
def test_a_line_without_a_json_object(line: str, fault: str) -> None:
    assert json_object('{"text": "кіт"}') == {"text": "кіт"}
    with pytest.raises(ValueError, match=fault):
        json_object(line)


class Slow(BytesIO):
    """A stream that gives these chunks, one a read."""

    def __init__(self, *chunks: bytes) -> None:
        super().__init__()
        self.chunks = list(chunks)

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""


def test_lines_of_a_stream_are_given_as_they_arrive() -> None:
    stream = Slow(b"a\nb\r", b"\n\nc", b"d", b"e\n", b"\r\nlast\r")
    assert list(arriving_lines(stream)) == [[b"a"], [b"b", b""], [], [b"cde"], [b""], [b"last"]]
    assert list(arriving_lines(Slow())) == []
    lines = arriving_lines(Slow(b"first\n", b"second\n"))
    assert next(lines) == [b"first"]  # the second has not been read yet


def test_a_line_of_a_stream_that_is_too_long_is_given_at_once_and_cut() -> None:
    chunk = b"x" * 2**16
    stream = Slow(b"a\n", *[chunk] * 17, chunk, b"x\nb\n" + chunk, b"\nc\r\n")
    lines = arriving_lines(stream)
    long = b"x" * (LONGEST_LINE + 1)
    given = [next(lines) for _ in range(18)]
    assert [line for group in given for line in group] == [b"a", long]
    assert len(stream.chunks) == 3  # the rest of the line has not been read
    assert list(lines) == [[], [b"b"], [chunk, b"c"]]
