"""Options that several commands share."""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click

from xlmr_core.hub_options import HubOptions
from xlmr_core.paths import BUNDLED
from xlmr_core.text_files import LONGEST_LINE, TOO_LONG, WAY_OUT, arriving_lines

Function = TypeVar("Function", bound=Callable[..., Any])

REVISION = "Branch, tag or commit of the repository on the hub."
OFFLINE = "Use only files on this machine; never connect to the hub."


class Seconds(click.FloatRange):
    """A time: not negative, and not NaN, which no clock reaches."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds: expected 0 or more.", param, ctx)
        return seconds


def hub_options(*, revision: str = REVISION, offline: str = OFFLINE) -> Callable[[Function], Function]:
    """Makes a decorator that adds --revision, --cache-dir and --offline to a command.

    Args:
        revision: The help text of --revision.
        offline: The help text of --offline.

    Returns:
        The decorator.
    """
    options: tuple[Callable[[Function], Function], ...] = (
        click.option("--revision", help=revision),
        click.option(
            "--cache-dir",
            type=click.Path(file_okay=False),
            help="Folder for downloads.  [default: that of huggingface_hub]",
        ),
        click.option("--offline", is_flag=True, help=offline),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):  # click shows the last one first
            function = option(function)
        return function

    return decorate


def hub_arguments(revision: str | None, cache_dir: str | None, offline: bool) -> HubOptions:
    """Turns the values of `hub_options` into keyword arguments of the functions that take a hub id.

    Args:
        revision: The value of --revision.
        cache_dir: The value of --cache-dir.
        offline: Whether --offline was given.

    Returns:
        The keyword arguments.
    """
    return {"revision": revision, "cache_dir": cache_dir, "local_files_only": offline}


def source_options(function: Function, *, default: str = BUNDLED) -> Function:
    """A decorator that adds --model and the options of `hub_options` to a command.

    Args:
        function: The command.
        default: The bundled checkpoint that is used without --model.

    Returns:
        The command with the options.
    """
    model = click.option(
        "--model",
        help="Checkpoint: a hub id, a name in `xlmr models`, a folder or a weights file.  "
        f"[default: the bundled {default}]",
    )
    return model(hub_options()(function))


def source_arguments(
    model: str | None, revision: str | None, cache_dir: str | None, offline: bool, *, default: str = BUNDLED
) -> dict[str, Any]:
    """Turns the values of `source_options` into keyword arguments of `from_pretrained`.

    A message on standard error says when the default model is used.

    Args:
        model: The value of --model.
        revision: The value of --revision.
        cache_dir: The value of --cache-dir.
        offline: Whether --offline was given.
        default: The bundled checkpoint that is used without --model.

    Returns:
        The keyword arguments.
    """
    if model is None:
        click.echo(
            f"using the bundled {default}, a small model for demonstration; choose another with --model", err=True
        )
    return {"source": model or default, **hub_arguments(revision, cache_dir, offline)}


class Given(NamedTuple):
    """A text from the command line or from standard input."""

    text: str
    place: str  # the name of the text in an error: "line 3 of standard input"
    fault: str | None  # what is wrong with the text, if anything: the other texts are still answered


def texts_from(arguments: tuple[str, ...]) -> Iterator[list[Given]]:
    """Reads the texts given as arguments, or else the lines of standard input.

    Args:
        arguments: The texts on the command line.

    Yields:
        The texts; from standard input, the lines that have arrived since the last time.

    Raises:
        ValueError: There are no arguments and standard input is closed.
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
