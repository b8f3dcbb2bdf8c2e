"""`xlmr inspect`"""

import click

from xlmr_core.checkpoint import inspect_checkpoint


@click.command("inspect")
@click.argument("model", default="xlmr-tiny")
@click.option("--values", is_flag=True, help="Read every tensor: its norm, and whether it holds NaN or Inf.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--cache-dir", type=click.Path(file_okay=False), help="Where downloads are kept.")
@click.option("--offline", is_flag=True, help="Never ask the hub: use what is on this machine.")
def command(model: str, values: bool, revision: str | None, cache_dir: str | None, offline: bool) -> None:
    """Tell config, layout and the fate of every key of MODEL: a hub id, a folder, a weights file, or xlmr-tiny."""
    report = inspect_checkpoint(model, values=values, revision=revision, cache_dir=cache_dir, local_files_only=offline)
    click.echo(str(report))
