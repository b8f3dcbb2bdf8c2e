"""Options that several commands share."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click

from xlmr_core.hub_options import HubOptions
from xlmr_core.text_files import LONGEST_LINE, TOO_LONG, WAY_OUT, arriving_lines

Function = TypeVar("Function", bound=Callable[..., Any])

BUNDLED = "xlmr-tiny"
REVISION = "Branch, tag or commit on the hub."
OFFLINE = "Never ask the hub: use what is on this machine."


def hub_options(*, revision: str = REVISION, offline: str = OFFLINE) -> Callable[[Function], Function]:
    """A decorator: how the hub is reached, as --revision, --cache-dir and --offline, with these help texts."""
    options: tuple[Callable[[Function], Function], ...] = (
        click.option("--revision", help=revision),
        click.option("--cache-dir", type=click.Path(file_okay=False), help="Where downloads are kept."),
        click.option("--offline", is_flag=True, help=offline),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):  # click shows the last one first
            function = option(function)
        return function

    return decorate


def hub_arguments(revision: str | None, cache_dir: str | None, offline: bool) -> HubOptions:
    """The same as keyword arguments of every function that takes a hub id."""
    return {"revision": revision, "cache_dir": cache_dir, "local_files_only": offline}


def source_options(function: Function) -> Function:
    """A decorator: where a checkpoint comes from, as --model and `hub_options`."""
    model = click.option(
        "--model",
        help="A hub id, a name in `xlmr models`, a folder or a weights file.  [default: the bundled xlmr-tiny]",
    )
    return model(hub_options()(function))


def source_arguments(model: str | None, revision: str | None, cache_dir: str | None, offline: bool) -> dict[str, Any]:
    """The same as keyword arguments of every `from_pretrained`; says on standard error when the default was taken."""
    if model is None:
        click.echo(f"using the bundled {BUNDLED}, a small model for demonstration; --model takes another", err=True)
    return {"source": model or BUNDLED, **hub_arguments(revision, cache_dir, offline)}


class Given(NamedTuple):
    """A text that was given, and what an error calls it."""

    text: str
    place: str
    fault: str | None  # what is wrong with the text: one bad line must not lose the others


def texts_from(arguments: tuple[str, ...]) -> Iterator[list[Given]]:
    """The texts given as arguments, else the lines of standard input, each time those that have arrived.

    Raises ValueError where there are no arguments and standard input is closed.
    """
    if arguments:
        yield [Given(text, f"text {number}", encoding_fault(text)) for number, text in enumerate(arguments, start=1)]
        return
    stdin: Any = sys.stdin  # None where it is closed
    if stdin is None:
        raise ValueError("standard input is closed: give the texts as arguments, or as the lines of a file (< FILE)")
    if stdin.isatty():
        click.echo("reading from standard input, one text a line; end with Ctrl-D", err=True)
    number = 0
    for lines in arriving_lines(stdin.buffer):
        yield [given_line(line, f"line {n} of standard input") for n, line in enumerate(lines, start=number + 1)]
        number += len(lines)
    if number == 0:
        click.echo("no text was given", err=True)


def given_line(line: bytes, place: str) -> Given:
    """One line as a text, with what is wrong with it."""
    text = line.decode("utf-8", errors="surrogateescape")  # as Python decodes arguments
    fault = TOO_LONG if len(line) > LONGEST_LINE else encoding_fault(text)
    return Given(text, place, fault)


def encoding_fault(text: str) -> str | None:
    """What is wrong with a text that is not UTF-8: the bytes that are not stand in it as half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"byte {ord(text[error.start]) & 0xFF:#04x} is not UTF-8; {WAY_OUT}"
    return None
