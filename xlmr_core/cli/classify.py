"""`xlmr classify`"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import click

from xlmr_core.cli.rows import Row
from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.tasks import Classify, LabelScore
from xlmr_core.tasks.classify import Activation


@click.command("classify")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@task_options(top_k=True)
@click.option("--field", default="text", show_default=True, help="The field of the input that has the text.")
@click.option("--pair-field", help="The field that has a second text, which is read together with the first.")
@click.option(
    "--activation",
    type=click.Choice(get_args(Activation)),
    help="From logits to scores.  [default: as the config's problem_type says]",
)
def command(
    texts: tuple[str, ...], field: str, pair_field: str | None, activation: Activation | None, **common: Any
) -> None:
    """Label each TEXT, or each row of the input.

    \b
    xlmr classify "What a fine day" --model cardiffnlp/twitter-xlm-roberta-base-sentiment
    """
    columns = {"text": field} if pair_field is None else {"text": field, "pair": pair_field}
    if pair_field is not None and common["input"] is None:
        raise click.UsageError("--pair-field names a field of --input, which is missing")
    run(
        Command(
            "classify", Classify, columns, _record, _show, ("label", "score"), "labels", {"activation": activation}
        ),
        texts,
        common,
    )


def _record(labels: Sequence[LabelScore]) -> dict[str, Any]:
    return {"labels": [asdict(label) for label in labels]}


def _show(row: Row, labels: Sequence[LabelScore]) -> list[str]:
    return [" / ".join(row.given.values()), *(f"  {label.score:8.4f}  {label.label}" for label in labels)]
