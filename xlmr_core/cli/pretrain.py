"""`xlmr pretrain`: train a vocabulary and a masked language model."""

from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from xlmr_core.cli.run_options import OUTPUT, run_options
from xlmr_core.training import PretrainSettings, pretrain
from xlmr_core.training.distributed import rank
from xlmr_core.training.evaluation import table

DEFAULTS = PretrainSettings()
SIZES = ("vocabulary_size", "hidden_size", "layers", "heads", "intermediate_size")
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("pretrain", context_settings={"show_default": True})
@click.argument("corpus", nargs=-1, required=True, type=EXISTING)
@OUTPUT
@click.option(
    "--held-out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with text to evaluate on: a file of the same name for each corpus file.",
)
@click.option(
    "--model",
    help="Checkpoint to train further: a hub id, a name in `xlmr models`, a folder or a weights file. It gives the "
    "vocabulary and the sizes.  [default: fresh weights]",
)
@click.option("--vocabulary-size", default=DEFAULTS.vocabulary_size, help="Number of SentencePiece pieces.")
@click.option("--hidden-size", default=DEFAULTS.hidden_size, help="Features of a hidden state.")
@click.option("--layers", default=DEFAULTS.layers, help="Number of layers.")
@click.option("--heads", default=DEFAULTS.heads, help="Number of attention heads in a layer.")
@click.option(
    "--intermediate-size", default=DEFAULTS.intermediate_size, help="Features between the two maps of the feed-forward."
)
@click.option(
    "--dropout", default=DEFAULTS.dropout, help="Dropout probability of hidden states and attention probabilities."
)
@click.option("--max-tokens", default=DEFAULTS.max_tokens, help="Tokens in a row, special tokens included.")
@click.option("--short-tokens", default=DEFAULTS.short_tokens, help="Tokens in a row of the first steps.")
@click.option("--short-share", default=DEFAULTS.short_share, help="Share of the steps that use short rows.")
@click.option(
    "--batch-size",
    default=DEFAULTS.batch_size,
    help="Rows in a step with long rows; a step with short ones has as many tokens.",
)
@click.option("--steps", default=DEFAULTS.steps, help="Number of training steps.")
@click.option(
    "--warmup-steps",
    type=int,
    default=DEFAULTS.warmup_steps,
    show_default="a twentieth of the steps, at most 500",
    help="Number of steps over which the learning rate rises.",
)
@click.option("--learning-rate", default=DEFAULTS.learning_rate, help="Highest learning rate.")
@click.option("--weight-decay", default=DEFAULTS.weight_decay, help="Weight decay of matrices.")
@click.option("--mask-probability", default=DEFAULTS.mask_probability, help="Share of the tokens to predict.")
@click.option(
    "--language-exponent",
    default=DEFAULTS.language_exponent,
    help="Languages are drawn in proportion to their size to this power; below 1, small ones more often.",
)
@run_options(DEFAULTS)
@click.option(
    "--shard",
    is_flag=True,
    help="Under torchrun, share out the weights among the processes, too: for models that fill a GPU.",
)
def command(
    corpus: tuple[Path, ...],
    output: Path,
    held_out: Path | None,
    model: str | None,
    device: str | None,
    save_every: int,
    save_dtype: str,
    shard: bool,
    **settings: Any,
) -> None:
    """Train a vocabulary and a masked language model on text files.

    Each CORPUS file is one language, UTF-8, one sentence a line. To continue a run that was stopped, give the same
    command again: it continues from the last saved step.
    """
    given = [
        name for name in SIZES if click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if model and given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} does not go with --model: the sizes are those of {model}"
        )
    held_out_files = [held_out / path.name for path in corpus] if held_out else []
    missing = [str(path) for path in held_out_files if not path.is_file()]
    if missing:
        raise click.UsageError(f"no held-out file {', '.join(missing)}: each corpus file needs one of its name")
    results = pretrain(
        corpus,
        output,
        PretrainSettings(**settings),
        model=model,
        held_out_files=held_out_files,
        device=device,
        save_every=save_every,
        save_dtype=getattr(torch, save_dtype),
        shard=shard,
    )
    if rank() > 0:
        return
    click.echo(f"wrote {output}")
    if results:
        click.echo(table(results))
