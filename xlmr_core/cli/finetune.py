"""`xlmr finetune`: train a checkpoint for a task on labelled rows."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import torch

from xlmr_core.cli.options import source_arguments, source_options
from xlmr_core.cli.run_options import OUTPUT, run_options
from xlmr_core.config import PROBLEM_TYPES
from xlmr_core.tasks.embed import POOLINGS
from xlmr_core.training import FinetuneSettings, finetune
from xlmr_core.training.distributed import rank

TASKS = get_args(get_type_hints(FinetuneSettings)["task"])
DEFAULTS = FinetuneSettings(task="classify")
SOURCE = click.Path(exists=True, path_type=Path)


@click.command("finetune", context_settings={"show_default": True})
@click.option("--task", required=True, type=click.Choice(TASKS), help="What the model learns.")
@click.option("--train", required=True, type=SOURCE, help="Labelled rows: csv, tsv, jsonl, or a saved dataset.")
@click.option("--eval", "held_out", type=SOURCE, help="Rows to evaluate on; the best weights are kept.")
@OUTPUT
@source_options
@click.option(
    "--field", "fields", multiple=True, metavar="FIELD=NAME", help="A field that has another name in the rows."
)
@click.option(
    "--problem-type",
    type=click.Choice(PROBLEM_TYPES),
    default=DEFAULTS.problem_type,
    help="Of classify: one class, several classes, or a number for each text.",
)
@click.option("--epochs", default=DEFAULTS.epochs, help="How often each row is seen.")
@click.option("--batch-tokens", default=DEFAULTS.batch_tokens, help="Most tokens in a batch.")
@click.option("--batches-per-step", default=DEFAULTS.batches_per_step, help="Batches whose gradients are added up.")
@click.option("--learning-rate", default=DEFAULTS.learning_rate, help="Highest learning rate.")
@click.option("--warmup-share", default=DEFAULTS.warmup_share, help="Share of the steps in which it rises.")
@click.option(
    "--layer-decay",
    default=DEFAULTS.layer_decay,
    help="The learning rate of a layer is that of the layer above it times this number.",
)
@click.option("--weight-decay", default=DEFAULTS.weight_decay, help="Weight decay of matrices.")
@click.option("--max-norm", default=DEFAULTS.max_norm, help="Largest norm of the gradients of a step.")
@click.option("--dropout", type=float, help="Dropout probability.  [default: that of the checkpoint]")
@click.option("--freeze", type=int, help="Do not train the embeddings and this many of the first layers.")
@click.option(
    "--max-tokens",
    type=int,
    help="Longest sequence, <s> and </s> included.  [default: what the model takes; answer: 384]",
)
@click.option("--truncate", "truncation", is_flag=True, help="Cut a text that is too long. Otherwise it is an error.")
@click.option(
    "--overlap",
    type=int,
    help="Of answer: tokens that two windows of a context share.  [default: 128, or half a window]",
)
@click.option(
    "--class-weight",
    "class_weights",
    multiple=True,
    metavar="CLASS=WEIGHT",
    help="Weight of a class in the loss; `balanced` gives rare classes more.",
)
@click.option("--temperature", default=DEFAULTS.temperature, help="Of embed: temperature of the contrastive loss.")
@click.option("--pooling", type=click.Choice(list(POOLINGS)), default=DEFAULTS.pooling, help="Of embed.")
@click.option(
    "--normalize/--no-normalize", default=DEFAULTS.normalize, help="Of embed: whether vectors have the length 1."
)
@click.option("--evaluate-every", type=int, help="Steps between two evaluations.  [default: an epoch]")
@click.option("--metric", help="The score whose best weights are kept.  [default: the usual one of the task]")
@click.option("--patience", type=int, help="End after this many evaluations without a better score.")
@run_options(DEFAULTS)
def command(
    train: Path,
    held_out: Path | None,
    output: Path,
    model: str | None,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    fields: tuple[str, ...],
    class_weights: tuple[str, ...],
    device: str | None,
    save_every: int,
    save_dtype: str,
    **settings: Any,
) -> None:
    """Train a checkpoint for a task on labelled rows.

    The fields of a row, by task (those in brackets may be missing):

    \b
    classify  text, [pair], label; labels with several classes for each text
    tag       words, labels
    answer    question, context, [answer, start], or answers as in SQuAD
    embed     anchor, positive, [negative]
    rerank    query, passage, label; or query, positive, negative

    A field `language` gives scores for each language. To continue a run that was stopped, give the same command again:
    it continues from the last saved step.

    \b
    xlmr finetune --task classify --train train.csv --eval eval.csv --output my-classifier
    """
    source = source_arguments(model, revision, cache_dir, offline)
    evaluation = finetune(
        train,
        output,
        FinetuneSettings(**settings, class_weights=_class_weights(class_weights)),
        held_out=held_out,
        model=source.pop("source"),
        fields=dict(_part(pair, "--field", "FIELD=NAME") for pair in fields),
        device=device,
        save_every=save_every,
        save_dtype=getattr(torch, save_dtype),
        **source,
    )
    if rank() > 0:
        return
    click.echo(f"wrote {output}")
    if evaluation is not None:
        click.echo(str(evaluation))


def _class_weights(given: tuple[str, ...]) -> Any:
    if given == ("balanced",):
        return "balanced"
    weights: dict[str, float] = {}
    for pair in given:
        label, number = _part(pair, "--class-weight", "CLASS=WEIGHT or balanced")
        try:
            weights[label] = float(number)
        except ValueError:
            raise click.UsageError(f"--class-weight {pair}: expected a number after the last =") from None
    return weights or None


def _part(pair: str, option: str, form: str) -> tuple[str, str]:
    before, equals, after = pair.rpartition("=")
    if not equals or not before:
        raise click.UsageError(f"{option} {pair}: expected {form}")
    return before, after
