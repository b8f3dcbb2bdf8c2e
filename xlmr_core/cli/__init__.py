"""The command `xlmr`. Each subcommand is a module, which is imported when it is called."""

import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click

from xlmr_core import __version__
from xlmr_core.exit_status import INTERRUPTED, TERMINATED

COMMANDS = {
    "fill-mask": "Fill the masks in a text.",
    "embed": "Turn texts into vectors.",
    "classify": "Label texts, or pairs of texts.",
    "tag": "Find names and other labelled stretches in texts.",
    "answer": "Find the answers to questions in texts.",
    "rerank": "Order passages by their relevance to a query.",
    "score": "Score how likely a model finds texts.",
    "tokenize": "Show how a text becomes token ids.",
    "explore": "Show a model at work on a text, as a page for a browser.",
    "inspect": "Inspect a checkpoint: its config, its key layout and the status of every key.",
    "convert": "Convert a checkpoint to another key layout: Hugging Face, fairseq, torchtext, native.",
    "models": "List the published checkpoints, or show the entry of one.",
    "download": "Download a published checkpoint and verify it.",
    "trim": "Make a checkpoint smaller: keep only the vocabulary of some languages.",
    "parity": "Record what a checkpoint computes, and find where a port differs.",
    "finetune": "Train a checkpoint for a task on labelled rows.",
    "pretrain": "Train a vocabulary and a masked language model on text files.",
    "course": "Learn XLM-R by building it: steps that are marked at once.",
}


class Commands(click.Group):
    """A group whose error for an unknown command suggests the nearest name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            near = get_close_matches(args[0], known, n=1)
            ctx.fail(f"there is no command {args[0]!r}" + (f": did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)


class LazyCommands(Commands):
    """A group that finds `xlmr some-name` as `command` in the module `xlmr_core.cli.some_name`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"xlmr_core.cli.{cmd_name.replace('-', '_')}").command
        if not gc.isenabled():  # as __main__ leaves it during the imports
            gc.freeze()
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command. An error that the package raises on purpose is shown as one line, any other as a traceback.

        Ctrl-C and SIGTERM remove the temporary files.
        """
        try:
            with _exit_on_sigterm():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)  # ends the line that the terminal shows as ^C
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error


@contextmanager
def _exit_on_sigterm() -> Generator[None, None, None]:
    """Makes SIGTERM raise SystemExit: by default Python ends at once and leaves its temporary files."""
    if threading.current_thread() is not threading.main_thread():  # handlers can be set only there
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """XLM-RoBERTa: run it, inspect it, convert it, train it, and check a port against it."""
    if not debug:  # else the hub library logs each attempt to download; our error gives the result
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
