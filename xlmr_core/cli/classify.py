"""`xlmr classify`"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import click

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.paths import BUNDLED_LANGUAGE
from xlmr_core.tasks import Classify, LabelScore
from xlmr_core.tasks.classify import Activation, ZeroShot
from xlmr_core.tasks.input_rows import InputRow


@click.command("classify")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@task_options(top_k=True, default=BUNDLED_LANGUAGE)
@click.option("--field", default="text", show_default=True, help="The field of the input that has the text.")
@click.option("--pair-field", help="The field that has a second text, which is read together with the first.")
@click.option(
    "--activation",
    type=click.Choice(get_args(Activation)),
    help="From logits to scores.  [default: as the config's problem_type says]",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    help="A label of your own; may be repeated. Needs a checkpoint trained on natural language inference.",
)
@click.option("--template", help="The sentence that {} in it makes of a candidate.  [default: This example is {}.]")
@click.option("--multi-label", is_flag=True, help="Judge each candidate on its own.")
def command(
    texts: tuple[str, ...],
    field: str,
    pair_field: str | None,
    activation: Activation | None,
    candidates: tuple[str, ...],
    template: str | None,
    multi_label: bool,
    **common: Any,
) -> None:
    """Label each TEXT, or each row of the input. The bundled classifier names the language.

    \b
    xlmr classify "Guten Morgen, wie geht es Ihnen?" --top-k 3
    xlmr classify "What a fine day" --model cardiffnlp/twitter-xlm-roberta-base-sentiment
    xlmr classify "It was a draw" --candidate sports --candidate politics --model joeddav/xlm-roberta-large-xnli
    """
    columns = {"text": field} if pair_field is None else {"text": field, "pair": pair_field}
    if pair_field is not None and common["input"] is None:
        raise click.UsageError("--pair-field names a field of --input, which is missing")
    if candidates:
        options = _zero_shot_options(candidates, template, multi_label, pair_field, activation, common)
        stream, record, show = "zero_shot_stream", _zero_shot_record, _show_zero_shot
    else:
        if template is not None or multi_label:
            raise click.UsageError("--template and --multi-label are for --candidate, which is missing")
        options: dict[str, Any] = {"activation": activation}
        stream, record, show = "stream", _record, _show
    columns_of_results = ("label", "score")
    command = Command(
        "classify", Classify, columns, record, show, columns_of_results, "labels", options, stream, BUNDLED_LANGUAGE
    )
    run(command, texts, common)


def _zero_shot_options(
    candidates: Sequence[str],
    template: str | None,
    multi_label: bool,
    pair_field: str | None,
    activation: Activation | None,
    common: dict[str, Any],
) -> dict[str, Any]:
    for option, value in (("--pair-field", pair_field), ("--activation", activation), ("--top-k", common["top_k"])):
        if value is not None:
            raise click.UsageError(f"{option} does not go with --candidate")
    options: dict[str, Any] = {"labels": list(candidates), "multi_label": multi_label}
    return options if template is None else options | {"template": template}


def _zero_shot_record(result: ZeroShot) -> dict[str, Any]:
    return _record(_ranked(result))


def _show_zero_shot(row: InputRow, result: ZeroShot) -> list[str]:
    return _show(row, _ranked(result))


def _ranked(result: ZeroShot) -> list[LabelScore]:
    return list(map(LabelScore, result.labels, result.scores))


def _record(labels: Sequence[LabelScore]) -> dict[str, Any]:
    return {"labels": [asdict(label) for label in labels]}


def _show(row: InputRow, labels: Sequence[LabelScore]) -> list[str]:
    return [" / ".join(row.given.values()), *(f"  {label.score:8.4f}  {label.label}" for label in labels)]
