"""`xlmr pretrain`"""

from pathlib import Path
from typing import Any

import click
import torch

from xlmr_core.training import PretrainSettings, pretrain
from xlmr_core.training.evaluation import table

DEFAULTS = PretrainSettings()
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("pretrain", context_settings={"show_default": True})
@click.argument("corpus", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--output", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option(
    "--held-out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to evaluate on: files of the same names as the corpus files.",
)
@click.option("--vocabulary-size", default=DEFAULTS.vocabulary_size, help="SentencePiece pieces.")
@click.option("--hidden-size", default=DEFAULTS.hidden_size)
@click.option("--layers", default=DEFAULTS.layers)
@click.option("--heads", default=DEFAULTS.heads)
@click.option("--intermediate-size", default=DEFAULTS.intermediate_size)
@click.option("--dropout", default=DEFAULTS.dropout)
@click.option("--max-tokens", default=DEFAULTS.max_tokens, help="Longest sequence, <s> and </s> included.")
@click.option("--short-tokens", default=DEFAULTS.short_tokens, help="Longest sequence of the first steps.")
@click.option("--short-share", default=DEFAULTS.short_share, help="Share of the steps with short sequences.")
@click.option("--batch-size", default=DEFAULTS.batch_size, help="Sequences a step; of short ones, more.")
@click.option("--steps", default=DEFAULTS.steps)
@click.option(
    "--warmup-steps",
    type=int,
    default=DEFAULTS.warmup_steps,
    show_default="a twentieth of the steps, at most 500",
    help="Steps over which the learning rate rises.",
)
@click.option("--learning-rate", default=DEFAULTS.learning_rate)
@click.option("--weight-decay", default=DEFAULTS.weight_decay)
@click.option("--mask-probability", default=DEFAULTS.mask_probability)
@click.option("--language-exponent", default=DEFAULTS.language_exponent, help="Below 1, small languages are seen more.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=DEFAULTS.precision)
@click.option("--seed", default=DEFAULTS.seed)
@click.option("--device", default=None, help="cpu, cuda, ...  [default: cuda where there is one]")
@click.option("--save-every", type=click.IntRange(min=1), default=500, help="Steps between saved states.")
@click.option(
    "--save-dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    help="Of the weights file.",
)
def command(
    corpus: tuple[Path, ...],
    output: Path,
    held_out: Path | None,
    device: str | None,
    save_every: int,
    save_dtype: str,
    **settings: Any,
) -> None:
    """Train a vocabulary and a masked language model on CORPUS files: one language a file, one sentence a line.

    A run that was stopped goes on from its last saved step when the same command is given again.
    """
    held_out_files = [held_out / path.name for path in corpus] if held_out else []
    missing = [str(path) for path in held_out_files if not path.is_file()]
    if missing:
        raise click.UsageError(f"no held-out file {', '.join(missing)}")
    results = pretrain(
        corpus,
        output,
        PretrainSettings(**settings),
        held_out_files=held_out_files,
        device=device,
        save_every=save_every,
        save_dtype=getattr(torch, save_dtype),
    )
    click.echo(f"wrote {output}")
    if results:
        click.echo(table(results))
