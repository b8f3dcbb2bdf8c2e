"""`xlmr parity probe`"""

import os

import click
from torch import Tensor

from xlmr_core.cli.parity_vectors import load_pipeline, pipeline_options, report
from xlmr_core.served.client import APIS, Client
from xlmr_core.served.files import as_rows
from xlmr_core.served.pipeline import Input
from xlmr_core.served.probe import probe_pairs, probe_texts


@click.command("probe")
@click.argument("url", metavar="URL")
@pipeline_options
@click.option("--api", type=click.Choice(list(APIS)), default="openai", show_default=True, help="What URL speaks.")
@click.option("--scores", is_flag=True, help="Ask for the scores of a reranker, not for vectors.")
@click.option("--served-name", help="The server's name for the model.  [default: as --model]")
@click.option("--key-from", metavar="VARIABLE", help="The environment variable that holds the key of the server.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds for one request."
)
def command(
    url: str,
    model: str,
    prompt: str | None,
    dimensions: int | None,
    raw: bool,
    budget: float,
    as_json: bool,
    api: str,
    scores: bool,
    served_name: str | None,
    key_from: str | None,
    timeout: float,
) -> None:
    """Ask the server at URL for the vectors of texts at which faults show, and judge them as diagnose-vectors does.

    Some ten requests are made, to URL only; of TEI and llama.cpp, also one for the ids of each text, which are then
    judged first. URL is the address in front of the route: https://host/path, without
    /v1/embeddings, /embed, /embedding or /api/embed. Exit status 1 if the values are not right.

    \b
    xlmr parity probe http://localhost:8080 --api tei --model BAAI/bge-m3
    """
    key = None
    if key_from is not None:
        key = os.environ.get(key_from)
        if not key:
            raise click.UsageError(f"the environment variable {key_from} is not set")
    client = Client(url, api, served_name or model, key, timeout)
    inputs, values, batches = ask_scores(client, raw=raw) if scores else ask_vectors(client)
    ids = None if scores else client.ids([text for [text] in inputs])
    pipeline = load_pipeline(model, prompt, dimensions, raw, scores=scores)
    report(pipeline, inputs, values, batches, budget, as_json, ids)


def ask_vectors(client: Client) -> tuple[list[Input], Tensor, list[range]]:
    """The texts of the probe, their vectors, and which were sent together."""
    inputs: list[Input] = []
    rows: list[list[float]] = []
    batches: list[range] = []
    for texts in probe_texts():
        rows += client.vectors(texts)
        batches.append(range(len(inputs), len(inputs) + len(texts)))
        inputs += [(text,) for text in texts]
    return inputs, as_rows(rows, client.url), batches


def ask_scores(client: Client, *, raw: bool) -> tuple[list[Input], Tensor, list[range]]:
    """The pairs of the probe, their scores, and which were sent together."""
    inputs: list[Input] = []
    rows: list[list[float]] = []
    batches: list[range] = []
    for query, passages in probe_pairs():
        rows += client.scores(query, passages, raw=raw)
        batches.append(range(len(inputs), len(inputs) + len(passages)))
        inputs += [(query, passage) for passage in passages]
    return inputs, as_rows(rows, client.url), batches
