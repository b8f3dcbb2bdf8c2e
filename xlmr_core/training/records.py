"""Labelled rows of csv, tsv and jsonl files, of folders that `datasets` saved, or of any iterable of mappings.

The fields of a row are read with the type that the task needs. An error names the file, the row and the field.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from xlmr_core.errors import shortened
from xlmr_core.text_checks import check_text
from xlmr_core.text_files import DELIMITERS, json_object, read_lines, table_lines

Source = str | PathLike[str] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Record:
    """One labelled row."""

    place: str  # the name of the row in an error: "train.csv, line 3"
    values: Mapping[str, Any]  # as the file has them
    names: Mapping[str, str]  # the name in the file of a field of ours, where it is another
    is_of_table: bool = False  # whether a list is written as JSON in a cell

    def has(self, field: str) -> bool:
        """Whether the row has the field, and something in it.

        Args:
            field: Our name of the field.

        Returns:
            False for a missing field, null and an empty cell.
        """
        return self.values.get(self._name(field)) not in (None, "")

    def text(self, field: str) -> str:
        """The text in a field.

        Args:
            field: Our name of the field.

        Returns:
            The text, which may be empty.

        Raises:
            ValueError: The row has no such field, or something else in it.
        """
        value = self._value(field)
        if not isinstance(value, str):
            raise self.error(field, "a text")
        self._check(field, value)
        return value

    def texts(self, field: str) -> list[str]:
        """The list of texts in a field. One text is a list of one; in a cell of a table, "[" begins a JSON list.

        Args:
            field: Our name of the field.

        Returns:
            The texts.

        Raises:
            ValueError: The row has no such field, or something else in it.
        """
        return [self._name_in(field, value) for value in self._list(field)]

    def label(self, field: str = "label") -> str:
        """The name of the class in a field. A whole number is the name of a class, too.

        Args:
            field: Our name of the field.

        Returns:
            The name.

        Raises:
            ValueError: The row has no such field, or neither a text nor a whole number in it.
        """
        return self._name_in(field, self._value(field))

    def number(self, field: str) -> float:
        """The number in a field.

        Args:
            field: Our name of the field.

        Returns:
            The number, which is finite.

        Raises:
            ValueError: The row has no such field, or something else in it.
        """
        value = self._value(field)
        if isinstance(value, bool):
            raise self.error(field, "a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(field, "a number") from None
        if not math.isfinite(number):
            raise self.error(field, "a finite number")
        return number

    def error(self, field: str, expected: str) -> ValueError:
        """The error for a field with something else than was expected.

        Args:
            field: Our name of the field.
            expected: What was expected: "a number".

        Returns:
            The error, which names the place, the field and the value.
        """
        name = self._name(field)
        return ValueError(f"{self.place}: the field {name!r} is {shortened(self.values[name])}, expected {expected}")

    def _name(self, field: str) -> str:
        return self.names.get(field, field)

    def _value(self, field: str) -> Any:
        name = self._name(field)
        if name not in self.values:
            raise ValueError(
                f"{self.place}: there is no field {name!r}; the fields are {', '.join(map(str, self.values))}. "
                f"Name the right one with --field {field}=NAME (fields={{{field!r}: NAME}} in Python)"
            )
        return self.values[name]

    def _list(self, field: str) -> Sequence[Any]:
        value = self._value(field)
        if self.is_of_table and isinstance(value, str) and value.startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self.error(field, "a list of texts") from None
        elif isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            raise self.error(field, "a list of texts")
        return value

    def _name_in(self, field: str, value: Any) -> str:
        if type(value) is int:
            return str(value)
        if not isinstance(value, str) or value == "":
            raise self.error(field, "texts or whole numbers, none of them empty")
        self._check(field, value)
        return value

    def _check(self, field: str, value: str) -> None:
        try:
            check_text(value, f"the field {self._name(field)!r}")
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from None


def records_in(source: Source, fields: Mapping[str, str] | None = None) -> Iterator[Record]:
    """Reads labelled rows, one at a time.

    Args:
        source: A csv or tsv file with a header, a jsonl file with one object a line, a folder that `save_to_disk` of
            `datasets` wrote, or an iterable of mappings that can be read more than once.
        fields: The name in the source for each field that has another name there than here.

    Yields:
        The rows, in order.

    Raises:
        ValueError: The file has another ending, a row cannot be read, or the iterable can be read only once.
        OSError: The file cannot be read.
    """
    names = fields or {}
    if not isinstance(source, str | PathLike):
        yield from _records_of(source, "row", names)
        return
    path = Path(source)
    if path.is_dir():
        yield from _records_of(_saved_dataset(path), f"{path}, row", names)
    elif path.suffix.lower() == ".jsonl":
        yield from _records_of_lines(path, names)
    elif path.suffix.lower() in DELIMITERS:
        yield from _records_of_table(path, names)
    else:
        raise ValueError(
            f"{path} is not a csv, tsv or jsonl file, or a folder that save_to_disk of datasets wrote: "
            "rename it, or convert it to one of these"
        )


def identity_of(source: Source, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the record of a run says of a source: its name, the number of its rows, and the SHA-256 of their content.

    Args:
        source: As for `records_in`.
        fields: As for `records_in`.

    Returns:
        `name` (that of the file, or "rows"), `rows` and `sha256`.

    Raises:
        ValueError: There is no row, or one cannot be read.
    """
    digest = hashlib.sha256()
    count = 0
    for record in records_in(source, fields):
        digest.update(json.dumps(dict(record.values), sort_keys=True, default=str).encode() + b"\n")
        count += 1
    name = Path(source).name if isinstance(source, str | PathLike) else "rows"
    if not count:
        raise ValueError(f"{source if name != 'rows' else 'the iterable'} has no rows: expected at least one")
    return {"name": name, "rows": count, "sha256": digest.hexdigest()}


def _records_of(rows: Iterable[Mapping[str, Any]], what: str, names: Mapping[str, str]) -> Iterator[Record]:
    if isinstance(rows, Iterator):
        raise ValueError("the rows can be read only once, and training reads them more than once: pass a list of them")
    decode = _class_names(rows)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{what} {number}: expected a mapping of fields, got {shortened(row)}")
        values = {name: decode[name](value) if name in decode else value for name, value in row.items()}
        yield Record(f"{what} {number}", values, names)


def _records_of_lines(path: Path, names: Mapping[str, str]) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json_object(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        yield Record(place, values, names)


def _records_of_table(path: Path, names: Mapping[str, str]) -> Iterator[Record]:
    lines = table_lines(path)
    try:
        _, header = next(lines)
        for line, cells in lines:
            place = f"{path}, line {line}"
            if len(cells) != len(header):
                raise ValueError(f"{place}: expected {len(header)} cells, as in the header, got {len(cells)}")
            yield Record(place, dict(zip(header, cells, strict=True)), names, is_of_table=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it, for example with iconv") from error


def _saved_dataset(folder: Path) -> Iterable[Mapping[str, Any]]:
    try:
        from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{folder} is a folder: reading what save_to_disk wrote needs datasets (pip install datasets)"
        ) from error
    try:
        rows: Any = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a folder that save_to_disk of datasets wrote: {error}") from error
    if isinstance(rows, dict):
        raise ValueError(f"{folder} has the splits {', '.join(rows)}: give the folder of one, {folder}/NAME")
    return rows


def _class_names(rows: Any) -> dict[str, Any]:
    """By column of a dataset of `datasets`, the function from the numbers in it to the names of the classes."""
    decode: dict[str, Any] = {}
    for name, feature in (getattr(rows, "features", None) or {}).items():
        inner = getattr(feature, "feature", feature)  # of a column of lists
        if hasattr(inner, "int2str"):
            decode[name] = inner.int2str
    return decode
