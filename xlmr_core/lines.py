"""Text files, line by line: UTF-8, or an error that names the file and the line."""

from collections.abc import Iterator
from os import PathLike

WAY_OUT = "convert it to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"


def read_lines(path: str | PathLike[str]) -> Iterator[str]:
    """The lines of a file without their ends. Raises ValueError at the first that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8; {WAY_OUT}"
                ) from None
            yield text.rstrip("\r\n")
