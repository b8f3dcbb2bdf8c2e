"""`xlmr score`"""

from typing import Any

import click

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.tasks import Score, TextScore
from xlmr_core.tasks.input_rows import InputRow


@click.command("score")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@task_options()
@click.option("--field", default="text", show_default=True, help="The field of the input that has the text.")
def command(texts: tuple[str, ...], field: str, **common: Any) -> None:
    """Score how likely a masked language model finds each TEXT, or each row of the input.

    A text of n tokens takes n runs of n tokens.

    \b
    xlmr score "I do not know what to do." "what not to know I do do."
    """
    results = ("pseudo_log_likelihood", "pseudo_perplexity", "tokens", "log_probabilities")
    run(Command("score", Score, {"text": field}, _record, _show, results), texts, common)


def _record(score: TextScore) -> dict[str, Any]:
    return {
        "pseudo_log_likelihood": score.pseudo_log_likelihood,
        "pseudo_perplexity": score.pseudo_perplexity if score.tokens else None,  # NaN is not JSON
        "tokens": list(score.tokens),
        "log_probabilities": list(score.log_probabilities),
    }


def _show(row: InputRow, score: TextScore) -> list[str]:
    return [row.value, f"  log-likelihood {score.pseudo_log_likelihood:.4f}  perplexity {score.pseudo_perplexity:.4f}"]
