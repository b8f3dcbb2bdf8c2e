"""`xlmr explore`"""

from pathlib import Path

import click

from xlmr_core.cli.options import source_arguments, source_options
from xlmr_core.cli.outputs import check_output, is_page
from xlmr_core.cli.progress import progress
from xlmr_core.explore import explore
from xlmr_core.explore.measure import runs
from xlmr_core.parity.recording import Checkpoint
from xlmr_core.paths import BUNDLED
from xlmr_core.tokenizer import XLMRobertaTokenizer


@click.command("explore")
@click.argument("text")
@source_options
@click.option("--beside", help="A second text, shown beside the first: a translation, for example.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("explore.html"),
    show_default=True,
    help="The page.",
)
@click.option("--plain", is_flag=True, help="Treat <mask>, </s> and the like as ordinary text.")
def command(
    text: str,
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    beside: str | None,
    output: Path,
    plain: bool,
) -> None:
    """Write a page that shows a model at work on TEXT: its attention, its vectors, its predictions by depth.

    The page needs no network. Predictions need a checkpoint with an LM head.

    \b
    xlmr explore "What are <mask> doing here?" --beside "Що ви <mask> робите?" -o page.html
    """
    check_output(output, [model or BUNDLED], is_page, "a page")
    source = source_arguments(model, revision, cache_dir, offline)
    loaded = Checkpoint.load(**source).model
    tokenizer = XLMRobertaTokenizer.from_pretrained(**source)
    texts = [text] if beside is None else [text, beside]
    with progress("exploring", total=runs(loaded, len(texts))) as tick:
        page = explore(loaded, tokenizer, texts, name=model or BUNDLED, specials_in_text=not plain, tick=tick)
    page.save(output)
    click.echo(f"wrote {output}: open it in a browser")
