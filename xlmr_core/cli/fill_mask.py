"""`xlmr fill-mask`"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import click

from xlmr_core.cli.options import source_arguments, source_options
from xlmr_core.cli.rows import rows_of_arguments
from xlmr_core.tasks import Filling, FillMask
from xlmr_core.tasks.input_rows import answers
from xlmr_core.tasks.rows import BATCH_TOKENS


@click.command("fill-mask")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@source_options
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many fillings a mask.")
@click.option("--target", "targets", multiple=True, help="Rank only this word; give the option again for more.")
@click.option("--joint", is_flag=True, help="Fill the masks of a text together, the most certain one first.")
@click.option("--truncate", is_flag=True, help="Cut a text that is too long instead of refusing it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a text: its fillings, a list for every mask.")
@click.option(
    "--plain", is_flag=True, help="Treat <s>, <pad>, </s> and <unk> as ordinary text; only <mask> is special."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=BATCH_TOKENS,
    show_default=True,
    help="Tokens that run together.",
)
def command(
    texts: tuple[str, ...],
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    top_k: int,
    targets: tuple[str, ...],
    joint: bool,
    truncate: bool,
    as_json: bool,
    plain: bool,
    device: str,
    batch_tokens: int,
) -> None:
    """Fill every <mask> in each TEXT, or in each line of standard input.

    \b
    xlmr fill-mask "The capital of France is <mask>." --model FacebookAI/xlm-roberta-base
    """
    fill = FillMask.from_pretrained(device=device, **source_arguments(model, revision, cache_dir, offline))
    stream = partial(
        fill.stream,
        top_k=top_k,
        targets=targets or None,
        joint=joint,
        truncation=truncate,
        specials_in_text=not plain,
        batch_tokens=batch_tokens,
    )
    failed = False
    for rows in rows_of_arguments(texts, ["text"]):
        for row, result in answers(stream, rows):
            if isinstance(result, ValueError):
                click.echo(f"Error: {row.place}: {result}", err=True)
                failed = True
            elif as_json:
                fillings = [[asdict(filling) for filling in mask] for mask in result]
                click.echo(json.dumps({"text": row.value, "fillings": fillings}, ensure_ascii=False))
            else:
                _show(row.value, result)
    if failed:
        raise SystemExit(1)


def _show(text: str, masks: Sequence[Sequence[Filling]]) -> None:
    click.echo(text)
    for number, fillings in enumerate(masks, start=1):
        if len(masks) > 1:
            click.echo(f"  mask {number}")
        for filling in fillings:
            click.echo(f"  {filling.score:6.1%}  {filling.sequence}")
