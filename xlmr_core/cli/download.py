"""`xlmr download`"""

import click

from xlmr_core.checkpoint.download import download
from xlmr_core.cli.options import hub_arguments, hub_options


@click.command("download")
@click.argument("name")
@hub_options(
    revision="Branch, tag or commit.  [default: the one in the catalogue, else main]",
    offline="Do not use the network: verify the files in the cache.",
)
def command(name: str, revision: str | None, cache_dir: str | None, offline: bool) -> None:
    """Fetch model and tokenizer of NAME, a name in `xlmr models` or a hub id, verify them, and show their paths.

    Run the same command again to continue a download that was interrupted.
    """
    for file in download(name, **hub_arguments(revision, cache_dir, offline)):
        click.echo(f"{file.path}  {file.path.stat().st_size:,} bytes, {file.verified}")
