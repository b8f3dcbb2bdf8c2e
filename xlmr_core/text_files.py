"""Text line by line: UTF-8 and of bounded length, or an error that names the place."""

from collections.abc import Iterator
from io import BufferedIOBase
from os import PathLike

WAY_OUT = "convert it to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"
LONGEST_LINE = 2**20  # bytes; an endless line would fill the memory
TOO_LONG = f"the line is longer than {LONGEST_LINE} bytes; split it"
READ_AT_ONCE = 2**16  # bytes; what a pipe holds


def read_lines(path: str | PathLike[str]) -> Iterator[str]:
    """The lines of a file without their ends.

    Raises:
        ValueError: a line is not UTF-8, or longer than LONGEST_LINE. The message names the file and the line.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 2):  # with its end
            number += 1
            if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
                raise ValueError(f"{path}, line {number}: {TOO_LONG}")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8; {WAY_OUT}"
                ) from None
            yield text.rstrip("\r\n")


def arriving_lines(stream: BufferedIOBase) -> Iterator[list[bytes]]:
    """The lines of a stream without their ends, each time those that are there: nothing waits for lines to come.

    Of a line longer than LONGEST_LINE, one byte more than that is given, as soon as it is there.
    """
    begun = b""  # the line whose end has not been read
    skipping = False  # whether that line has been given already, because it is too long
    while chunk := stream.read1(READ_AT_ONCE):
        *lines, begun = (begun + chunk).split(b"\n")
        if skipping:
            begun = begun if lines else b""
            skipping = not lines
            del lines[:1]
        if len(begun) > LONGEST_LINE:
            lines.append(begun)
            begun, skipping = b"", True
        yield [line.rstrip(b"\r")[: LONGEST_LINE + 1] for line in lines]
    if begun:
        yield [begun.rstrip(b"\r")]
