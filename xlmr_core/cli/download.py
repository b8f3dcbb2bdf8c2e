"""`xlmr download`"""

import click

from xlmr_core.checkpoint.catalogue import download


@click.command("download")
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit.  [default: the one in the catalogue, else main]")
@click.option("--cache-dir", type=click.Path(file_okay=False), help="Where downloads are kept.")
@click.option("--offline", is_flag=True, help="Never ask the hub: verify what is on this machine.")
def command(name: str, revision: str | None, cache_dir: str | None, offline: bool) -> None:
    """Fetch model and tokenizer of NAME, a name in `xlmr models` or a hub id, verify them, and tell where they lie.

    A download that was stopped goes on where it stopped when the same command is given again.
    """
    for file in download(name, revision=revision, cache_dir=cache_dir, local_files_only=offline):
        click.echo(f"{file.path}  {file.path.stat().st_size:,} bytes, {file.verified}")
