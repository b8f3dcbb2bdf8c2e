"""Rows of input for the commands of the tasks: arguments, lines of standard input, or a file."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from xlmr_core.cli.options import encoding_fault, given_line, texts_from
from xlmr_core.tasks.input_rows import InputRow
from xlmr_core.text_files import DELIMITERS, arriving_lines, json_object, table_lines

LISTS = ("passages",)  # fields that are lists of texts; every other is one text
CHUNK_ROWS = 4096  # rows between two states of an output file
CHUNK_CHARACTERS = 2**20
SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


def rows_of_arguments(arguments: tuple[str, ...], fields: Sequence[str]) -> Iterator[list[InputRow]]:
    """A row for each argument. With two fields the first argument is the first field of all rows.

    Without arguments, the rows come from the lines of standard input, as they arrive: texts, or JSON objects where
    there are two fields.
    """
    if len(fields) == 1 or not arguments:
        number = 0
        for texts in texts_from(arguments):
            yield [
                _row_of_line(given.text, n, given.place, given.fault, fields)
                for n, given in enumerate(texts, number + 1)
            ]
            number += len(texts)
        return
    first, *others = arguments
    if not others:
        raise click.UsageError(f"expected {fields[0]} and {fields[1]}, got only {fields[0]}")
    values: list[Any] = [others] if fields[1] in LISTS else others
    yield [
        _row_of_record({fields[0]: first, fields[1]: value}, {name: name for name in fields}, number, f"text {number}")
        for number, value in enumerate(values, start=1)
    ]


def rows_of_file(path: Path, columns: Mapping[str, str]) -> Iterator[InputRow]:
    """The rows of a file.

    Args:
        path: txt (one text a line), jsonl, csv or tsv with a header, or parquet.
        columns: The name in the file for each of our fields.

    Raises:
        ValueError: The file has another suffix, or lacks a column.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        if len(columns) > 1:
            raise ValueError(f"{path} has one text a line, but {' and '.join(columns)} are needed: give a jsonl file")
        return _rows_of_lines(path, lambda text, n, place, fault: _row_of_line(text, n, place, fault, list(columns)))
    if suffix == ".jsonl":
        return _rows_of_lines(path, lambda text, n, place, fault: _row_of_json(text, n, place, fault, columns))
    if suffix in DELIMITERS:
        return _rows_of_table(path, columns)
    if suffix == ".parquet":
        return _rows_of_parquet(path, columns)
    raise ValueError(f"{path} does not end with {', '.join(SUFFIXES)}: rename it, or convert it to one of these")


def in_chunks(rows: Iterable[InputRow]) -> Iterator[list[InputRow]]:
    """The rows in lists of bounded size. Where a list ends depends only on the rows since the one before."""
    chunk: list[InputRow] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(
            len(text) for value in row.given.values() for text in ([value] if isinstance(value, str) else value)
        )
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _rows_of_lines(path: Path, row: Callable[[str, int, str, str | None], InputRow | None]) -> Iterator[InputRow]:
    number = 0
    with path.open("rb") as file:
        lines = (line for arrived in arriving_lines(file) for line in arrived)
        for line_number, line in enumerate(lines, start=1):
            given = given_line(line, f"{path}, line {line_number}")
            found = row(given.text, number + 1, given.place, given.fault)
            if found is not None:
                number += 1
                yield found


def _row_of_line(text: str, number: int, place: str, fault: str | None, fields: Sequence[str]) -> InputRow:
    if len(fields) > 1:
        return _row_of_json(text, number, place, fault, {name: name for name in fields}) or InputRow(
            number, place, {}, "the line is empty, expected a JSON object"
        )
    return InputRow(number, place, {fields[0]: text}, fault)


def _row_of_json(text: str, number: int, place: str, fault: str | None, columns: Mapping[str, str]) -> InputRow | None:
    """None for an empty line."""
    if fault is not None:
        return InputRow(number, place, {}, fault)
    if not text.strip():
        return None
    try:
        record = json_object(text)
    except ValueError as error:
        return InputRow(number, place, {}, str(error))
    return _row_of_record(record, columns, number, place)


def _row_of_record(record: Mapping[str, Any], columns: Mapping[str, str], number: int, place: str) -> InputRow:
    given: dict[str, Any] = {}
    for name, column in columns.items():
        if column not in record:
            names = ", ".join(map(str, record))
            return InputRow(number, place, {}, f"there is no field {column!r}; the fields are {names}")
        value = record[column]
        if name in LISTS and isinstance(value, str):  # a cell of a table
            try:
                value = json.loads(value)
            except ValueError as error:
                return InputRow(number, place, {}, f"the field {column!r} is not a JSON list of texts: {error}")
        texts = value if name in LISTS and isinstance(value, list) else [value]
        if (name in LISTS) != isinstance(value, list) or not all(isinstance(text, str) for text in texts):
            wanted = "a list of texts" if name in LISTS else "a text"
            return InputRow(number, place, {}, f"the field {column!r} is {type(value).__name__}, expected {wanted}")
        fault = next(filter(None, map(encoding_fault, texts)), None)
        if fault is not None:
            return InputRow(number, place, {}, f"the field {column!r}: {fault}")
        given[name] = value
    return InputRow(number, place, given)


def _rows_of_table(path: Path, columns: Mapping[str, str]) -> Iterator[InputRow]:
    lines = table_lines(path, errors="surrogateescape")
    _, header = next(lines)
    _check_columns(path, header, columns)
    for number, (line, cells) in enumerate(lines, start=1):
        place = f"{path}, line {line}"
        if len(cells) != len(header):
            yield InputRow(number, place, {}, f"expected {len(header)} cells, as in the header, got {len(cells)}")
        else:
            yield _row_of_record(dict(zip(header, cells, strict=True)), columns, number, place)


def _rows_of_parquet(path: Path, columns: Mapping[str, str]) -> Iterator[InputRow]:
    parquet = import_parquet()
    with path.open("rb") as source:
        try:
            file = parquet.ParquetFile(source)
        except ValueError as error:  # pyarrow's ArrowInvalid is one
            raise ValueError(f"{path} is not a parquet file: {error}") from error
        _check_columns(path, file.schema_arrow.names, columns)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(columns.values())):
            for record in batch.to_pylist():
                number += 1
                yield _row_of_record(record, columns, number, f"{path}, row {number}")


def import_parquet() -> Any:
    """The module pyarrow.parquet. Raises ValueError with the way to install it where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: pip install 'xlmr-core[parquet]'") from error
    return pyarrow.parquet


def _check_columns(path: Path, found: Sequence[str], columns: Mapping[str, str]) -> None:
    for name, column in columns.items():
        if column not in found:
            option = {"text": "--field", "pair": "--pair-field"}.get(name, f"--{name}-field")
            raise ValueError(
                f"{path} has no column {column!r}; its columns are {', '.join(found)}: name one by {option}"
            )
