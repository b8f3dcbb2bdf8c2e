"""`xlmr answer`"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.tasks import Answer, Span
from xlmr_core.tasks.input_rows import InputRow


@click.command("answer")
@click.argument("texts", metavar="[QUESTION CONTEXT...]", nargs=-1)
@task_options(truncate=False, top_k=True)
@click.option("--question-field", default="question", show_default=True, help="The field that has the question.")
@click.option("--context-field", default="context", show_default=True, help="The field that has the text to look in.")
@click.option("--overlap", type=click.IntRange(min=0), help="Tokens that two windows share.")
@click.option("--no-answer", is_flag=True, help="Let the empty answer take part.")
def command(
    texts: tuple[str, ...], question_field: str, context_field: str, no_answer: bool, overlap: int | None, **common: Any
) -> None:
    """Find the answer to QUESTION in each CONTEXT, or to each question of the input. Long contexts are read in windows.

    Standard input has one JSON object a line, with question and context.

    \b
    xlmr answer "Who wrote it?" "Anna wrote the letter." --model deepset/xlm-roberta-base-squad2
    """
    columns = {"question": question_field, "context": context_field}
    options = {"no_answer": no_answer, "overlap": overlap}
    results = ("score", "start", "end", "answer")
    run(Command("answer", Answer, columns, _record, _show, results, "answers", options), texts, common)


def _record(answers: Sequence[Span]) -> dict[str, Any]:
    return {"answers": [asdict(answer) for answer in answers]}


def _show(row: InputRow, answers: Sequence[Span]) -> list[str]:
    return [row.given["question"], *(f"  {x.score:8.4f}  {x.answer}  ({x.start}-{x.end})" for x in answers)]
