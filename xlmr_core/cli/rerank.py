"""`xlmr rerank`"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.tasks import Ranked, Rerank
from xlmr_core.tasks.input_rows import InputRow


@click.command("rerank")
@click.argument("texts", metavar="[QUERY PASSAGE...]", nargs=-1)
@task_options(top_k=True)
@click.option("--query-field", default="query", show_default=True, help="The field that has the query.")
@click.option(
    "--passages-field",
    default="passages",
    show_default=True,
    help="The field that has the passages: a list; in csv and tsv a JSON list.",
)
def command(texts: tuple[str, ...], query_field: str, passages_field: str, **common: Any) -> None:
    """Order the PASSAGEs by their relevance to QUERY, or those of each row of the input.

    Standard input has one JSON object a line, with query and passages.

    \b
    xlmr rerank "capital of France" "Paris is large." "Bread is baked." --model BAAI/bge-reranker-v2-m3
    """
    columns = {"query": query_field, "passages": passages_field}
    results = ("index", "score", "logit", "text")
    run(Command("rerank", Rerank, columns, _record, _show, results, "ranking"), texts, common)


def _record(ranking: Sequence[Ranked]) -> dict[str, Any]:
    return {"ranking": [asdict(passage) for passage in ranking]}


def _show(row: InputRow, ranking: Sequence[Ranked]) -> list[str]:
    return [row.given["query"], *(f"  {passage.score:8.4f}  {passage.text}" for passage in ranking)]
