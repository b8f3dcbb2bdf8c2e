"""Where a command may write: not over what it reads, and not over a file of another kind."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from xlmr_core.checkpoint.files import bundled
from xlmr_core.json_files import read_json_object
from xlmr_core.parity.floors import FORMAT
from xlmr_core.parity.formats import JSON_LIMIT
from xlmr_core.paths import ALL_BUNDLED

STARTS = {".svg": (b"<?xml", b"<svg"), ".png": (b"\x89PNG",), ".pdf": (b"%PDF",)}  # first bytes of a picture

PAGE_START = b"<!doctype html>"


def check_output(
    output: Path, inputs: Iterable[str | Path | None], is_replaceable: Callable[[Path], bool], kind: str
) -> None:
    """Checks that writing a file destroys nothing that was read, and nothing of another kind.

    Args:
        output: The file to write.
        inputs: What the command reads: files, folders of checkpoints, names that are neither, None for what was not
            given.
        is_replaceable: Whether an existing file is of the kind that is written.
        kind: That kind, for the message: "a trace".

    Raises:
        click.UsageError: The output is one of the inputs, also through links; it lies in a folder that is read; it is
            there and is not of the kind; or there is no folder for it.
    """
    check_folder(output)
    places = {output.resolve(), output.parent.resolve() / output.name}  # of a link: where it points, and where it is
    for name in inputs:
        is_bundled = name in ALL_BUNDLED and not os.path.exists(name)
        source = bundled(str(name)) if is_bundled else Path(name or "").expanduser()
        if not name or not os.path.exists(source):  # not given, or a hub id
            continue
        if source.is_dir() and any(place.is_relative_to(source.resolve()) for place in places):
            raise click.UsageError(f"{output} lies in {source}, which is read: name a file outside that folder")
        if output.exists() and os.path.samefile(output, source):
            raise click.UsageError(f"{output} is the same file as {source}, which is read: name another file")
    if output.exists() and output.stat().st_size and not is_replaceable(output):
        raise click.UsageError(f"{output} exists and is not {kind}: name another file, or remove it first")


def check_new(output: Path, use: str) -> None:
    """Raises click.UsageError if a file to write is there already, or has no folder.

    Args:
        output: The file.
        use: What somebody may have done with the file that is there: "edited".
    """
    if output.exists():
        raise click.UsageError(f"{output} is there already, and may have been {use}: name another file")
    check_folder(output)


def check_folder(output: Path) -> None:
    """Raises click.UsageError unless the folder of a file to write is there: before the work, not after it."""
    if not output.parent.is_dir():
        raise click.UsageError(f"{output.parent} is not a folder: make it first, or name another for {output.name}")


def is_floor_table(path: Path) -> bool:
    """Whether a file says that it is a table of floors, of whatever version."""
    try:
        return read_json_object(path, JSON_LIMIT).get("format") == FORMAT
    except ValueError:
        return False


def is_page(path: Path) -> bool:
    """Whether a file begins as a page of HTML does."""
    with path.open("rb") as file:
        return file.read(len(PAGE_START)).lower() == PAGE_START


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture of its suffix does."""
    with path.open("rb") as file:
        return file.read(8).startswith(STARTS[path.suffix])
