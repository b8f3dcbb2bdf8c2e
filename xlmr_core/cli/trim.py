"""`xlmr trim`"""

from pathlib import Path

import click

from xlmr_core.checkpoint.trimming import trim
from xlmr_core.cli.options import hub_arguments, hub_options
from xlmr_core.text_files import read_lines

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("trim")
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--corpus",
    type=FILE,
    multiple=True,
    help="Text file, one text a line: keep the pieces that occur in it. May be repeated.",
)
@click.option("--keep", type=FILE, help="File of pieces to keep, one a line, as SentencePiece spells them (▁Hello).")
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Drop pieces that occur less often in the corpus.",
)
@click.option(
    "--max-pieces",
    type=click.IntRange(min=1),
    help="Keep at most this many pieces of the corpus, the most frequent ones.",
)
@hub_options()
def command(
    source: str,
    destination: Path,
    corpus: tuple[Path, ...],
    keep: Path | None,
    min_count: int,
    max_pieces: int | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
) -> None:
    """Write SOURCE to the new folder DESTINATION with a smaller vocabulary, and check that it gives the same numbers.

    SOURCE is a hub id, a folder or xlmr-tiny. Special tokens, ASCII and the characters of kept pieces are always kept.

    \b
    xlmr trim FacebookAI/xlm-roberta-base xlmr-fr --corpus fr.txt --corpus en.txt --min-count 3
    """
    if not corpus and keep is None:
        raise click.UsageError("no pieces to keep: give --corpus or --keep")
    pieces = [line for line in read_lines(keep) if line] if keep else []
    if keep is not None and not pieces and not corpus:
        raise click.UsageError(f"{keep} names no piece to keep: give one a line, as SentencePiece spells it")
    report = trim(
        source,
        destination,
        corpus=corpus,
        keep=pieces,
        min_count=min_count,
        max_pieces=max_pieces,
        **hub_arguments(revision, cache_dir, offline),
    )
    click.echo(str(report))
