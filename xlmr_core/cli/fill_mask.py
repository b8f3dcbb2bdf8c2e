"""`xlmr fill-mask`"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import click

from xlmr_core.cli.options import Given, source_arguments, source_options, texts_from
from xlmr_core.tasks import Filling, FillMask
from xlmr_core.tokenizer import XLMRobertaTokenizer


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
    for (text, place), result in _answers(fill, texts_from(texts), top_k, truncate, batch_size):
        if isinstance(result, ValueError):
            click.echo(f"Error: {place}: {result}", err=True)
            failed = True
        elif as_json:
            fillings = [[asdict(filling) for filling in mask] for mask in result]
            click.echo(json.dumps({"text": text, "fillings": fillings}, ensure_ascii=False))
        else:
            _show(text, result)
    if failed:
        raise SystemExit(1)


def _answers(
    fill: FillMask, texts: Iterator[Given], top_k: int, truncate: bool, batch_size: int
) -> Iterator[tuple[Given, list[list[Filling]] | ValueError]]:
    """Each text, and its fillings or what is wrong with it. One bad text does not lose the others."""
    while batch := list(islice(texts, batch_size)):
        try:
            results = fill.batch([given.text for given in batch], top_k=top_k, truncation=truncate)
            yield from zip(batch, results, strict=True)
        except ValueError:
            for given in batch:
                try:
                    _check(given, fill.tokenizer, truncate)
                    yield given, fill(given.text, top_k=top_k, truncation=truncate)
                except ValueError as error:
                    yield given, error


def _check(given: Given, tokenizer: XLMRobertaTokenizer, truncate: bool) -> None:
    """Raises ValueError for what has another way out here than in Python."""
    if given.fault:
        raise ValueError(given.fault)
    count = len(tokenizer.tokenize(given.text)) + 2  # <s> and </s>
    if count > tokenizer.max_tokens and not truncate:
        raise ValueError(
            f"it has {count} tokens, <s> and </s> included; at most {tokenizer.max_tokens} fit: "
            "cut it with --truncate, or split it"
        )


def _show(text: str, masks: list[list[Filling]]) -> None:
    click.echo(text)
    for number, fillings in enumerate(masks, start=1):
        if len(masks) > 1:
            click.echo(f"  mask {number}")
        for filling in fillings:
            click.echo(f"  {filling.score:6.1%}  {filling.sequence}")
