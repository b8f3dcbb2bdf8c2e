"""Options that `xlmr pretrain` and `xlmr finetune` share: where a run writes, and how it is computed and saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from xlmr_core.training import FinetuneSettings, PretrainSettings

Function = TypeVar("Function", bound=Callable[..., Any])

OUTPUT = click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the checkpoint to.",
)


def run_options(defaults: PretrainSettings | FinetuneSettings) -> Callable[[Function], Function]:
    """Makes a decorator that adds --precision, --seed, --device, --save-every and --save-dtype to a command.

    Args:
        defaults: Of the precision and the seed.

    Returns:
        The decorator.
    """
    options: tuple[Callable[[Function], Function], ...] = (
        click.option(
            "--precision",
            type=click.Choice(["float32", "bfloat16"]),
            default=defaults.precision,
            help="Precision of matrix products; the weights are float32.",
        ),
        click.option("--seed", default=defaults.seed, help="Seed of all random numbers."),
        click.option("--device", help="Device: cpu, cuda, ...  [default: cuda if there is one, else cpu]"),
        click.option(
            "--save-every", type=click.IntRange(min=1), default=500, help="Number of steps between two saved states."
        ),
        click.option(
            "--save-dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            default="float32",
            help="Dtype of the weights file.",
        ),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):  # click shows the last one first
            function = option(function)
        return function

    return decorate
