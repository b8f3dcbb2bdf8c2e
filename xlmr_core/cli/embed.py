"""`xlmr embed`"""

from typing import Any

import click
from torch import Tensor

from xlmr_core.cli.task import Command, run, task_options
from xlmr_core.paths import BUNDLED_EMBEDDER
from xlmr_core.tasks import Embed
from xlmr_core.tasks.input_rows import InputRow

SHOWN = 6  # numbers of a vector


@click.command("embed")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@task_options(default=BUNDLED_EMBEDDER)
@click.option("--field", default="text", show_default=True, help="The field of the input that has the text.")
@click.option("--prompt", help="The name of a prompt of the checkpoint (query), or text to put before each text.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep so many leading numbers of each vector.")
def command(texts: tuple[str, ...], field: str, prompt: str | None, dimensions: int | None, **common: Any) -> None:
    """Turn each TEXT, or each row of the input, into a vector. --output also takes npy and safetensors files.

    \b
    xlmr embed "Good morning" "Guten Morgen"
    xlmr embed --input texts.txt --output vectors.npy --model BAAI/bge-m3
    """
    options = {"prompt": prompt, "dimensions": dimensions}
    columns = ("embedding",)
    command = Command(
        "embed", Embed, {"text": field}, _record, _show, columns, options=options, default=BUNDLED_EMBEDDER
    )
    run(command, texts, common)


def _record(vector: Tensor) -> dict[str, Any]:
    return {"embedding": vector.tolist()}


def _show(row: InputRow, vector: Tensor) -> list[str]:
    numbers = " ".join(f"{number:.4f}" for number in vector[:SHOWN].tolist())
    rest = " ..." if len(vector) > SHOWN else ""
    return [row.value, f"  {len(vector)} numbers: {numbers}{rest}"]
