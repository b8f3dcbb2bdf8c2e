"""`xlmr convert`"""

from pathlib import Path

import click
import torch

from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.layouts import FAMILIES
from xlmr_core.cli.options import hub_arguments, hub_options
from xlmr_core.spec import known_groups

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@click.command("convert")
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FAMILIES), required=True, help="Key layout to write.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="Cast the tensors to this dtype.  [default: keep the dtype of each tensor]",
)
@click.option(
    "--drop",
    type=click.Choice(list(known_groups())),
    multiple=True,
    help="Leave out this group of tensors. May be repeated.",
)
@click.option(
    "--fold-token-types", is_flag=True, help="Add the token-type vector to the position rows, because fairseq has none."
)
@click.option("--verbose", is_flag=True, help="Show the status of every key.")
@hub_options()
def command(
    source: str,
    destination: Path,
    to: str,
    dtype: str | None,
    drop: tuple[str, ...],
    fold_token_types: bool,
    verbose: bool,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
) -> None:
    """Write SOURCE to the new folder DESTINATION in another key layout, and account for every tensor.

    SOURCE is a hub id, a folder, a weights file, a fairseq model.pt or .tar.gz, or xlmr-tiny.

    \b
    xlmr convert xlmr.base.tar.gz xlmr-base-hf --to hf
    """
    report = convert(
        source,
        destination,
        to,
        dtype=DTYPES[dtype] if dtype else None,
        drop=drop,
        fold_token_types=fold_token_types,
        progress=True,
        **hub_arguments(revision, cache_dir, offline),
    )
    click.echo(report.details() if verbose else str(report))
