"""`xlmr parity headroom`"""

from pathlib import Path

import click

from xlmr_core.cli.options import hub_arguments, hub_options
from xlmr_core.cli.progress import progress
from xlmr_core.parity.headroom import measure_headroom
from xlmr_core.parity.recording import Checkpoint
from xlmr_core.text_files import read_lines
from xlmr_core.tokenizer import XLMRobertaTokenizer


@click.command("headroom")
@click.argument("model")
@click.option(
    "--texts",
    "texts_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a text a line. It is read line by line.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Where longer texts are cut. The memory for attention grows with its square.",
)
@hub_options()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model: str,
    texts_file: Path,
    max_tokens: int,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Measure how far the numbers of MODEL are below 65504, the largest of float16, on the texts of a file.

    Prints the largest absolute value at every tap, with the text and the token that give it, and the first tap that is
    not finite in float16, with the reason. Exit status 1 if there is one.

    \b
    xlmr parity headroom BAAI/bge-m3 --texts texts.txt
    """
    hub = hub_arguments(revision, cache_dir, offline)
    checkpoint = Checkpoint.load(model, **hub)
    tokenizer = XLMRobertaTokenizer.from_pretrained(model, **hub)
    with progress("measuring", unit="text") as tick:
        report = measure_headroom(
            checkpoint.model,
            tokenizer,
            read_lines(texts_file),
            max_tokens=min(max_tokens, tokenizer.max_tokens),
            tick=tick,
        )
    click.echo(report.to_json() if as_json else str(report))
    if not report.ok:
        raise SystemExit(1)
