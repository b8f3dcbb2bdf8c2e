"""Text line by line and tables row by row: UTF-8, or an error that names the place."""

import csv
import json
from collections.abc import Iterator
from io import BufferedIOBase
from os import PathLike
from pathlib import Path
from typing import Any

WAY_OUT = "convert it to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"
LONGEST_LINE = 2**20  # bytes; an endless line would fill the memory
TOO_LONG = f"the line is longer than {LONGEST_LINE} bytes; split it"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
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


def table_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """The cells of each row of a csv or tsv file: the header first, then the rows that are not empty.

    Args:
        path: A file that ends with .csv or .tsv, UTF-8.
        errors: What `open` does with bytes that are not UTF-8.

    Yields:
        The number of the line where the row ends, and its cells. Of an empty file, a header without cells.

    Raises:
        ValueError: The quotes of the file are wrong.
        UnicodeDecodeError: The file is not UTF-8, and `errors` is "strict".
    """
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        table = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
        try:
            yield 1, next(table, [])
            for cells in table:
                if cells:
                    yield table.line_num, cells
        except csv.Error as error:
            raise ValueError(f"{path}, line {table.line_num}: {error}") from error


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line of a jsonl file holds.

    Args:
        line: The line.

    Raises:
        ValueError: It holds something else. The message does not name the place.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {line[:40]}")
    return values


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
