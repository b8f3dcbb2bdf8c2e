"""Options that several commands share."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click

from xlmr_core.lines import WAY_OUT

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


def hub_arguments(revision: str | None, cache_dir: str | None, offline: bool) -> dict[str, Any]:
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

    text: str  # bytes that are not UTF-8 stand in it as half surrogate pairs, as Python has it for arguments
    place: str

    @property
    def fault(self) -> str | None:
        """What is wrong with it, if it is not UTF-8."""
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            return f"byte {ord(self.text[error.start]) & 0xFF:#04x} is not UTF-8; {WAY_OUT}"
        return None


def texts_from(arguments: tuple[str, ...]) -> Iterator[Given]:
    """The texts given as arguments, else the lines of standard input without their line ends."""
    if arguments:
        yield from (Given(text, f"text {number}") for number, text in enumerate(arguments, start=1))
        return
    if sys.stdin.isatty():
        click.echo("reading from standard input, one text a line; end with Ctrl-D", err=True)
    number = 0
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = line.decode("utf-8", errors="surrogateescape")  # one bad line must not lose the others
        yield Given(text.rstrip("\r\n"), f"line {number} of standard input")
    if number == 0:
        click.echo("no text was given", err=True)
