"""`xlmr tokenize`"""

from itertools import chain

import click

from xlmr_core.cli.options import source_arguments, source_options, texts_from
from xlmr_core.tokenizer import XLMRobertaTokenizer


@click.command("tokenize")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@source_options
@click.option("--plain", is_flag=True, help="Treat <mask>, </s> and the like as ordinary text.")
def command(
    texts: tuple[str, ...],
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    plain: bool,
) -> None:
    """Show each step from TEXT, or from each line of standard input, to token ids."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(**source_arguments(model, revision, cache_dir, offline))
    for number, given in enumerate(chain.from_iterable(texts_from(texts))):
        if given.fault:
            raise ValueError(f"{given.place}: {given.fault}")
        click.echo("\n" * (number > 0) + str(tokenizer.explain(given.text, specials_in_text=not plain)))
