"""Arguments and options that several commands of `xlmr parity` have."""

from pathlib import Path

import click

TRACE = click.argument("trace_file", metavar="TRACE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
NAMES = click.option(
    "--names", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML or JSON map of names."
)
FLOORS = click.option(
    "--floors",
    "floors_file",
    type=click.Path(path_type=Path),
    help="Table of noise floors.  [default: the one beside TRACE]",
)
