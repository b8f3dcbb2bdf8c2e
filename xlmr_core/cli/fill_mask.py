"""`xlmr fill-mask`"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

import click

from xlmr_core.cli.options import source_arguments, source_options, texts_from
from xlmr_core.tasks import Filling, FillMask


@click.command("fill-mask")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@source_options
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many fillings a mask.")
@click.option("--truncate", is_flag=True, help="Cut a text that is too long instead of refusing it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a text: its fillings, a list for every mask.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts at a time.")
def command(
    texts: tuple[str, ...],
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    top_k: int,
    truncate: bool,
    as_json: bool,
    device: str,
    batch_size: int,
) -> None:
    """Fill every <mask> in each TEXT, or in each line of standard input.

    \b
    xlmr fill-mask "The capital of France is <mask>." --model FacebookAI/xlm-roberta-base
    """
    fill = FillMask.from_pretrained(device=device, **source_arguments(model, revision, cache_dir, offline))
    failed = False
    for number, text, result in _answers(fill, texts_from(texts), top_k, truncate, batch_size):
        if isinstance(result, ValueError):
            click.echo(f"Error: text {number}: {result}", err=True)
            failed = True
        elif as_json:
            fillings = [[asdict(filling) for filling in mask] for mask in result]
            click.echo(json.dumps({"text": text, "fillings": fillings}, ensure_ascii=False))
        else:
            _show(text, result)
    if failed:
        raise SystemExit(1)


def _answers(
    fill: FillMask, texts: Iterable[str], top_k: int, truncate: bool, batch_size: int
) -> Iterator[tuple[int, str, list[list[Filling]] | ValueError]]:
    """Each text's number, itself, and its fillings or what is wrong with it. One bad text does not lose the others."""
    numbered = enumerate(texts, start=1)
    while batch := list(islice(numbered, batch_size)):
        try:
            results = fill.batch([text for _, text in batch], top_k=top_k, truncation=truncate)
            yield from ((number, text, result) for (number, text), result in zip(batch, results, strict=True))
        except ValueError:
            for number, text in batch:
                try:
                    yield number, text, fill(text, top_k=top_k, truncation=truncate)
                except ValueError as error:
                    yield number, text, error


def _show(text: str, masks: list[list[Filling]]) -> None:
    click.echo(text)
    for number, fillings in enumerate(masks, start=1):
        if len(masks) > 1:
            click.echo(f"  mask {number}")
        for filling in fillings:
            click.echo(f"  {filling.score:6.1%}  {filling.sequence}")
