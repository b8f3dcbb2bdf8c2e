"""A file of results that survives a kill: the same command continues it, and no row is lost or doubled.

Results go to `FILE.partial`. From time to time that file is flushed to the disk, and then `FILE.partial.json` says how
many rows and bytes it has; what follows those bytes is cut off when the command continues. The file gets its own name
when it is complete.
"""

import csv
import io
import json
import os
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from xlmr_core.atomic import written_as
from xlmr_core.cli.rows import import_parquet

Record = Mapping[str, Any]  # one row of results: numbers, texts, and lists of them
HEADER = 128  # bytes before the vectors of npy and safetensors: room for any number of rows
PARQUET_ROWS = 1024  # of a row group


class Format(Protocol):
    """How records become bytes. Bytes are only ever added, but for the first `HEADER` at the end."""

    def head(self) -> bytes:
        """What the file begins with."""
        ...

    def encode(self, record: Record) -> bytes:
        """One record."""
        ...

    def finish(self, file: BinaryIO, rows: int, path: Path) -> None:
        """Completes the open file. `path` is its name."""
        ...


class JsonLines:
    """One JSON object a line."""

    def head(self) -> bytes:
        return b""

    def encode(self, record: Record) -> bytes:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()

    def finish(self, file: BinaryIO, rows: int, path: Path) -> None:
        pass


class Csv(JsonLines):
    """A line for each row, or for each of its items (labels, entities, answers, passages). A row may have none."""

    def __init__(self, columns: Sequence[str], items: str | None) -> None:
        self.columns = columns
        self.items = items

    def head(self) -> bytes:
        return self._line(self.columns)

    def encode(self, record: Record) -> bytes:
        items: Sequence[Record] = record.get(self.items, [{}]) if self.items else [{}]
        lines = [{**record, **item} for item in items]
        return b"".join(self._line([self._cell(line.get(name, "")) for name in self.columns]) for line in lines)

    def _cell(self, value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else value

    def _line(self, cells: Sequence[Any]) -> bytes:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        return buffer.getvalue().encode()


class Vectors:
    """The vectors of npy and safetensors: a header of fixed size, and float32 numbers. A row with an error has NaN."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.width = 0  # set when the model is there

    def head(self) -> bytes:
        return bytes(HEADER)

    def encode(self, record: Record) -> bytes:
        numbers = record.get("embedding", [float("nan")] * self.width)
        return struct.pack(f"<{self.width}f", *numbers)

    def finish(self, file: BinaryIO, rows: int, path: Path) -> None:
        if self.suffix == ".npy":  # numpy's format, version 1.0
            text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {self.width}), }}"
            begin = b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER - 10)
            header = begin + text.ljust(HEADER - len(begin) - 1).encode() + b"\n"
        else:
            place = {"dtype": "F32", "shape": [rows, self.width], "data_offsets": [0, 4 * rows * self.width]}
            text = json.dumps({"embeddings": place}, separators=(",", ":"))
            header = struct.pack("<Q", HEADER - 8) + text.ljust(HEADER - 8).encode()
        file.seek(0)
        file.write(header)
        file.seek(0, os.SEEK_END)


class Parquet(JsonLines):
    """Lines of JSON until the end, then one parquet file: a parquet file cannot be continued."""

    def finish(self, file: BinaryIO, rows: int, path: Path) -> None:
        import_parquet()
        import pyarrow as pa
        import pyarrow.parquet as pq

        partial = Path(file.name)
        file.flush()
        schemas = [pa.Table.from_pylist(records).schema for records in _records(partial)]
        schema = pa.unify_schemas(schemas or [pa.schema([])], promote_options="permissive")
        with written_as(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for records in _records(partial):
                writer.write_table(pa.Table.from_pylist(records, schema=schema))


class ResultFile:
    """The output of one command, begun or continued. Use it as a context."""

    def __init__(self, path: Path, format: Format, identity: Mapping[str, Any] | None) -> None:
        """Opens the file.

        Args:
            path: The file to write. It must not exist.
            format: How it is written.
            identity: What the results depend on: command, options, input. None where the input cannot be read again;
                the file is then begun anew.

        Raises:
            ValueError: The file exists, another process writes it, or it was begun with another identity.
            OSError: It cannot be written there.
        """
        self.path = path
        self.format = format
        self.identity = identity
        self.partial = path.with_name(f"{path.name}.partial")
        self.state = path.with_name(f"{path.name}.partial.json")
        self.rows = 0  # that are in the file for good
        self.way_out = f"remove {self.partial} and {self.state} to begin again"
        if path.exists() and not (isinstance(format, Parquet) and self.partial.exists()):
            if not self.partial.exists():
                self.state.unlink(missing_ok=True)  # of a process that was killed after the file got its name
            raise ValueError(f"{path} exists: remove it, or name another file")
        with self._explained():
            self.file = open(self.partial, "r+b" if self.partial.exists() else "w+b")  # noqa: SIM115 closed by __exit__
        try:
            self._lock()
            self._continue()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        with suppress(OSError):  # a full disk: the bytes that are not written are not counted either
            self.file.close()
        if kind is not None and not self.state.exists():  # nothing to continue from
            self.partial.unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        """Adds a record."""
        with self._explained():
            self.file.write(self.format.encode(record))

    def save(self, rows: int) -> None:
        """Makes sure that the file keeps its records, `rows` of the input. They are on the disk before the state is."""
        if self.identity is None:
            self.rows = rows
            return
        state = {"rows": rows, "bytes": self.file.tell(), "identity": self.identity}
        with self._explained():
            self.file.flush()
            os.fsync(self.file.fileno())
            with written_as(self.state) as temporary:
                temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        self.rows = rows

    def finish(self) -> None:
        """Completes the file and gives it its name."""
        with self._explained():
            self.format.finish(self.file, self.rows, self.path)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()  # Windows renames no open file
        if isinstance(self.format, Parquet):
            self.partial.unlink()
        else:
            os.replace(self.partial, self.path)
        self.state.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Generator[None, None, None]:
        """Names the file in an error of the system, and says what is kept."""
        try:
            yield
        except OSError as error:
            kept = f". The first {self.rows} rows are kept: the same command continues" if self.rows else ""
            raise ValueError(f"cannot write {self.partial}: {error.strerror}{kept}") from error

    def _continue(self) -> None:
        """Goes to the end of what is kept, or begins."""
        if self.identity is None or not self.state.exists():
            self.file.truncate(0)
            self.file.write(self.format.head())
            return
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            rows, size, identity = int(state["rows"]), int(state["bytes"]), dict(state["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.state} is damaged ({error!r}): {self.way_out}") from error
        for name in {**identity, **self.identity}:
            before, now = identity.get(name), self.identity.get(name)
            if before != now:
                raise ValueError(
                    f"{self.partial} was begun with {name} {before}, but now it is {now}: give the same options and "
                    f"the same input, or {self.way_out}"
                )
        if self.file.seek(0, os.SEEK_END) < size:
            raise ValueError(f"{self.partial} is shorter than the {size} bytes that {self.state} names: {self.way_out}")
        self.file.truncate(size)
        self.file.seek(size)
        self.rows = rows

    def _lock(self) -> None:
        """Holds the partial file for this process, where the system can."""
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process writes {self.partial}: wait for it, or name another output") from None
        except OSError:  # some network file systems lock nothing
            pass


def format_of(path: Path, columns: Sequence[str], items: str | None, *, vectors: bool) -> Format:
    """How a file with this suffix is written. Raises ValueError for a suffix that is not known."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return JsonLines()
    if suffix == ".csv":
        return Csv(columns, items)
    if suffix == ".parquet":
        import_parquet()
        return Parquet()
    if vectors and suffix in (".npy", ".safetensors"):
        return Vectors(suffix)
    known = ".jsonl, .csv, .parquet" + (", .npy, .safetensors" if vectors else "")
    raise ValueError(f"{path} does not end with {known}: name the output by one of these")


def is_complete(path: Path) -> bool:
    """Whether a result file was finished: a parquet file gets its name before what it was made from is removed."""
    return path.exists() and not path.with_name(f"{path.name}.partial").exists()


def _records(path: Path) -> Iterator[list[Record]]:
    with path.open(encoding="utf-8") as lines:
        while some := list(islice(lines, PARQUET_ROWS)):
            yield [json.loads(line) for line in some]
