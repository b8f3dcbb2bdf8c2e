"""`xlmr tag`"""

from collections.abc import Sequence
from typing import Any, get_args

import click

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.tasks import Entity, Tag
from xlmr_core.tasks.input_rows import InputRow
from xlmr_core.tasks.tag import Aggregation


@click.command("tag")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@task_options(truncate=False)
@click.option("--field", default="text", show_default=True, help="The field of the input that has the text.")
@click.option(
    "--aggregation",
    type=click.Choice(get_args(Aggregation)),
    default="simple",
    show_default=True,
    help="How the labels of tokens become those of words and names.",
)
def command(texts: tuple[str, ...], field: str, aggregation: Aggregation, **common: Any) -> None:
    """Find names and other labelled stretches in each TEXT, or in each row of the input.

    Long texts are read in windows.

    \b
    xlmr tag "Angela Merkel was born in Hamburg." --model Davlan/xlm-roberta-base-ner-hrl
    """
    results = ("label", "score", "word", "start", "end")
    options = {"aggregation": aggregation}
    run(Command("tag", Tag, {"text": field}, _record, _show, results, "entities", options), texts, common)


def _record(entities: Sequence[Entity]) -> dict[str, Any]:
    return {
        "entities": [
            {"label": x.label, "score": x.score, "word": x.word, "start": x.start, "end": x.end} for x in entities
        ]
    }


def _show(row: InputRow, entities: Sequence[Entity]) -> list[str]:
    return [row.value, *(f"  {x.score:8.4f}  {x.label}  {x.word}  ({x.start}-{x.end})" for x in entities)]
