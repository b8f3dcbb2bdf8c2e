"""`xlmr inspect`"""

import click

from xlmr_core.checkpoint import inspect_checkpoint
from xlmr_core.cli.options import hub_arguments, hub_options


@click.command("inspect")
@click.argument("model", default="xlmr-tiny")
@click.option("--values", is_flag=True, help="Read every tensor, and show its norm and whether it contains NaN or Inf.")
@hub_options()
def command(model: str, values: bool, revision: str | None, cache_dir: str | None, offline: bool) -> None:
    """Show the config, key layout and status of every key of MODEL: a hub id, a folder, a weights file, or xlmr-tiny.

    Exit status 1 if MODEL would not load, or, with --values, if it contains NaN or Inf.
    """
    report = inspect_checkpoint(model, values=values, **hub_arguments(revision, cache_dir, offline))
    click.echo(str(report))
    if report.problems or report.not_finite:
        raise SystemExit(1)
