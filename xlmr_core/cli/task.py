"""What the commands of the tasks share: their options, and the way from rows of input to results."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from xlmr_core.cli.options import source_arguments, source_options
from xlmr_core.cli.progress import progress
from xlmr_core.cli.result_file import Format, ResultFile, Vectors, format_of
from xlmr_core.cli.rows import in_chunks, rows_of_arguments, rows_of_file
from xlmr_core.paths import BUNDLED
from xlmr_core.tasks.input_rows import InputRow, answers
from xlmr_core.tasks.rows import BATCH_TOKENS
from xlmr_core.tasks.task import Task

Function = TypeVar("Function", bound=Callable[..., Any])

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def task_options(
    *, truncate: bool = True, top_k: bool = False, default: str = BUNDLED
) -> Callable[[Function], Function]:
    """A decorator: the options that the commands of the tasks share.

    Args:
        truncate: Whether --truncate is one of them; not where long texts are read in windows.
        top_k: Whether --top-k is one of them.
        default: The bundled checkpoint that is used without --model.
    """
    existing = click.Path(exists=True, dir_okay=False, path_type=Path)
    options: list[Callable[[Function], Function]] = [
        partial(source_options, default=default),
        click.option("--input", "-i", type=existing, help="Read the rows of a txt, jsonl, csv, tsv or parquet file."),
        click.option(
            "--output",
            "-o",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the results to a file. After a kill, the same command continues it if --input was given.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row."),
        click.option(
            "--errors",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="At a row that cannot be used: stop, or report it and write its error in the place of its result.",
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
        click.option(
            "--dtype",
            type=click.Choice(list(DTYPES)),
            default="float32",
            show_default=True,
            help="Precision to run in; auto is that of the checkpoint.",
        ),
        click.option(
            "--batch-tokens",
            type=click.IntRange(min=1),
            default=BATCH_TOKENS,
            show_default=True,
            help="Tokens that run together.",
        ),
    ]
    if top_k:
        options.append(click.option("--top-k", type=click.IntRange(min=1), help="Results for each row."))
    if truncate:
        options.append(
            click.option("--truncate", is_flag=True, help="Cut a text that is too long. Otherwise it is an error.")
        )

    def decorate(function: Function) -> Function:
        for option in reversed(options):  # click shows the last one first
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True)
class Command:
    """What differs between the commands of the tasks."""

    name: str
    task: type[Task[Any]]
    columns: Mapping[str, str]  # the name in the input for each field that the task reads
    record: Callable[[Any], dict[str, Any]]  # a result as numbers, texts and lists
    show: Callable[[InputRow, Any], Sequence[str]]  # a result as lines for people
    results: Sequence[str]  # columns of a csv file beside those of the input
    items: str | None = None  # the key of `record` whose list gives a csv file several lines for a row
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of `stream`
    stream: str = "stream"  # the method of the task
    default: str = BUNDLED  # the checkpoint without --model


def run(command: Command, texts: tuple[str, ...], common: Mapping[str, Any]) -> None:
    """Runs a task over its input.

    Args:
        command: Which task, and how its results are shown.
        texts: The arguments of the command line.
        common: The values of `task_options`.

    Raises:
        ValueError: The input or the output cannot be used, or a row is bad and --errors is fail.
    """
    source, output = common["input"], common["output"]
    if source is not None and texts:
        raise click.UsageError("texts are given as arguments and by --input: give one of them")
    if output is not None and common["as_json"]:
        raise click.UsageError("--json is for standard output; the suffix of --output names its format")
    options = {**command.options, "batch_tokens": common["batch_tokens"]}
    for name, option in (("truncate", "truncation"), ("top_k", "top_k")):
        if common.get(name) is not None:
            options[option] = common[name]

    writer = None
    if output is not None:
        columns = ("row", *command.columns, *command.results, "error")
        format = format_of(output, columns, command.items, vectors="embedding" in command.results)
        identity = None if source is None else _identity(command, common, options)
        writer = ResultFile(output, format, identity)
    with writer or nullcontext():
        chunks = (
            rows_of_arguments(texts, list(command.columns))
            if source is None
            else in_chunks(islice(rows_of_file(source, command.columns), writer.rows if writer else 0, None))
        )
        first = next(chunks, [])  # before the model is loaded: the file may not have the columns
        given = (common["model"], common["revision"], common["cache_dir"], common["offline"])
        hub = source_arguments(*given, default=command.default)
        task: Any = command.task.from_pretrained(device=common["device"], dtype=DTYPES[common["dtype"]], **hub)
        if writer:
            _set_width(writer.format, task, options)
        _run_chunks(command, task, options, first, chunks, common, writer)


def _run_chunks(
    command: Command,
    task: Any,
    options: Mapping[str, Any],
    first: list[InputRow],
    chunks: Iterator[list[InputRow]],
    common: Mapping[str, Any],
    writer: ResultFile | None,
) -> None:
    skipped = 0
    rows = writer.rows if writer else 0
    shows_progress = writer is not None or not sys.stdout.isatty()
    with progress(command.name, unit="row") if shows_progress else nullcontext(_silent) as tick:
        chunk: list[InputRow] | None = first
        while chunk is not None:
            for row, result in answers(partial(getattr(task, command.stream), **options), chunk):
                record: dict[str, Any] = {"row": row.number}
                if isinstance(result, ValueError):
                    if common["errors"] == "fail":
                        raise ValueError(f"{row.place}: {result}" + _way_on(writer))
                    click.echo(f"Error: {row.place}: {result}", err=True)
                    skipped += 1
                    record["error"] = str(result)
                else:
                    record |= {**row.given, **command.record(result)}
                if writer:
                    writer.write(record)
                elif common["as_json"]:
                    click.echo(json.dumps(record, ensure_ascii=False))
                elif not isinstance(result, ValueError):
                    click.echo("\n".join(command.show(row, result)))
                tick(1)
            rows += len(chunk)
            if writer:
                writer.save(rows)
            chunk = next(chunks, None)
    if writer:
        writer.finish()
    if skipped:
        click.echo(f"{skipped} of {rows} rows were skipped", err=True)


def _silent(count: int) -> None:
    """Shows no progress."""


def _way_on(writer: ResultFile | None) -> str:
    way = ". --errors skip reports such a row and goes on"
    return f"{way}; the same command with it continues after row {writer.rows}" if writer and writer.rows else way


def _identity(command: Command, common: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the results depend on. Not --errors: the rows that are done had none, or were meant to be skipped."""
    with common["input"].open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    names = ("model", "revision", "device", "dtype")
    identity = {
        "command": command.name,
        **{name: common[name] for name in names},
        **options,
        "columns": dict(command.columns),
        "SHA-256 of the input": digest.hexdigest(),
    }
    return json.loads(json.dumps(identity))  # as it is read back


def _set_width(format: Format, task: Any, options: Mapping[str, Any]) -> None:
    if isinstance(format, Vectors):
        format.width = len(task("", **{**options, "truncation": True}))
