"""`xlmr fill-mask`"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from xlmr_core.cli.options import Given, source_arguments, source_options, texts_from
from xlmr_core.tasks import Filling, FillMask
from xlmr_core.tokenizer import MASK, XLMRobertaTokenizer


@click.command("fill-mask")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@source_options
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many fillings a mask.")
@click.option("--truncate", is_flag=True, help="Cut a text that is too long instead of refusing it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a text: its fillings, a list for every mask.")
@click.option(
    "--plain", is_flag=True, help="Treat <s>, <pad>, </s> and <unk> as ordinary text; only <mask> is special."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts at a time, at most."
)
def command(
    texts: tuple[str, ...],
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    top_k: int,
    truncate: bool,
    as_json: bool,
    plain: bool,
    device: str,
    batch_size: int,
) -> None:
    """Fill every <mask> in each TEXT, or in each line of standard input.

    \b
    xlmr fill-mask "The capital of France is <mask>." --model FacebookAI/xlm-roberta-base
    """
    fill = FillMask.from_pretrained(device=device, **source_arguments(model, revision, cache_dir, offline))
    failed = False
    options = {"top_k": top_k, "truncation": truncate, "specials_in_text": not plain}
    for given, result in _answers(fill, texts_from(texts), batch_size, options):
        if isinstance(result, ValueError):
            click.echo(f"Error: {given.place}: {result}", err=True)
            failed = True
        elif as_json:
            fillings = [[asdict(filling) for filling in mask] for mask in result]
            click.echo(json.dumps({"text": given.text, "fillings": fillings}, ensure_ascii=False))
        else:
            _show(given.text, result)
    if failed:
        raise SystemExit(1)


def _answers(
    fill: FillMask, arrived: Iterator[list[Given]], batch_size: int, options: dict[str, Any]
) -> Iterator[tuple[Given, list[list[Filling]] | ValueError]]:
    """Each text, and its fillings or what is wrong with it. One bad text does not lose the others."""
    for texts in arrived:
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            try:
                _raise_fault(batch)
                results = fill.batch([given.text for given in batch], **options)
                yield from zip(batch, results, strict=True)
            except ValueError:
                for given in batch:
                    yield given, _answer(fill, given, options)


def _answer(fill: FillMask, given: Given, options: dict[str, Any]) -> list[list[Filling]] | ValueError:
    try:
        _raise_fault([given])
        _check_length(given, fill.tokenizer, options)
        return fill(given.text, **options)
    except ValueError as error:
        return error


def _raise_fault(batch: list[Given]) -> None:
    """Raises ValueError for the first text that cannot be tokenized."""
    for given in batch:
        if given.fault:
            raise ValueError(given.fault)


def _check_length(given: Given, tokenizer: XLMRobertaTokenizer, options: dict[str, Any]) -> None:
    """Raises ValueError for a text that is too long, with the way out that the command line has."""
    tokens = tokenizer.tokenize(given.text, specials_in_text=options["specials_in_text"] or (MASK,))
    count = len(tokens) + 2  # <s> and </s>
    if count > tokenizer.max_tokens and not options["truncation"]:
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
