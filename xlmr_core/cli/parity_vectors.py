"""`xlmr parity diagnose-vectors` and what it shares with `xlmr parity probe`"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import Tensor

from xlmr_core.cli.options import Seconds
from xlmr_core.cli.progress import progress
from xlmr_core.served.faults import with_faults
from xlmr_core.served.files import read_inputs, read_values
from xlmr_core.served.ids import judge_ids
from xlmr_core.served.pipeline import Input, Pipeline
from xlmr_core.served.search import judge

Function = TypeVar("Function", bound=Callable[..., Any])


def pipeline_options(function: Function) -> Function:
    """A decorator: which pipeline is right, and how long to search."""
    options = (
        click.option("--model", required=True, help="The checkpoint that is served: a hub id or a folder."),
        click.option("--prompt", help="The prompt before each text: its name, or text.  [default: the checkpoint's]"),
        click.option(
            "--dimensions", type=click.IntRange(min=1), help="Numbers that are kept of a vector (Matryoshka)."
        ),
        click.option("--raw", is_flag=True, help="Right scores are logits, without sigmoid or softmax."),
        click.option(
            "--budget",
            type=Seconds(),
            default=300.0,
            show_default=True,
            help="Seconds for the search for pairs of faults.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The verdict as JSON."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def load_pipeline(model: str, prompt: str | None, dimensions: int | None, raw: bool, *, scores: bool) -> Pipeline:
    """The pipeline that the options describe."""
    kind = "score" if scores else "embedding"
    pipeline = Pipeline.from_pretrained(model, kind=kind, prompt=prompt, raw_scores=raw)
    width = pipeline.model.config.hidden_size
    if dimensions is not None and dimensions > width:
        raise click.UsageError(f"--dimensions {dimensions}: the vectors of {model} have {width} numbers")
    return pipeline.with_right(dimensions=dimensions)


def report(
    pipeline: Pipeline,
    inputs: Sequence[Input],
    values: Tensor,
    batches: Sequence[Sequence[int]],
    budget: float,
    as_json: bool,
    ids: Sequence[Sequence[int]] | None = None,
) -> None:
    """Prints the verdict. Exit status 1 where the numbers are not right.

    ids: what the server's tokenizer gives, where it was asked. They are judged first. Where a fault explains them, the
    values are judged as those of a pipeline with that fault, so that a second cause shows.
    """
    found = None if ids is None else judge_ids(pipeline, inputs, ids)
    if found is not None and not as_json:
        click.echo(str(found))
    if found is not None and not found.ok:
        if not found.candidates:
            if as_json:
                click.echo(json.dumps({"ok": False, "ids": found.as_dict()}, indent=1))
            else:
                click.echo("the values were not judged, because their ids are not known")
            raise SystemExit(1)
        pipeline = with_faults(pipeline, found.candidates[0])
    with progress("trying faults") as tick:
        verdict = judge(pipeline, inputs, values, batches=batches, budget=budget, tick=tick)
    if as_json:
        content = verdict.as_dict() | ({} if found is None else {"ids": found.as_dict()})
        content["ok"] = verdict.ok and (found is None or found.ok)
        click.echo(json.dumps(content, indent=1))
    else:
        click.echo(f"{'' if found is None else 'with these ids: '}{verdict}")
    if not verdict.ok or (found is not None and not found.ok):
        raise SystemExit(1)


@click.command("diagnose-vectors")
@click.argument("texts_file", metavar="TEXTS", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("values_file", metavar="VALUES", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pipeline_options
@click.option("--array", help="The name of the array in VALUES, or of the field of its lines.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts that ran together, in their order. It matters for faults that read padding.",
)
def command(
    texts_file: Path,
    values_file: Path,
    model: str,
    prompt: str | None,
    dimensions: int | None,
    raw: bool,
    budget: float,
    as_json: bool,
    array: str | None,
    batch_size: int,
) -> None:
    """Judge vectors or scores by the checkpoint's own files, and name the faults that give them.

    TEXTS is a file with a text a line, or .jsonl with texts or pairs; with pairs, VALUES holds scores. VALUES is
    .npy, .npz, .safetensors or .jsonl. Exit status 1 if the values are not right.

    \b
    xlmr parity diagnose-vectors texts.txt vectors.npy --model intfloat/multilingual-e5-large
    """
    inputs = read_inputs(texts_file)
    values = read_values(values_file, array)
    if len({len(one) for one in inputs}) > 1:
        raise click.UsageError(f"{texts_file} holds texts and pairs: judge them one after the other")
    pairs = bool(inputs) and len(inputs[0]) == 2
    pipeline = load_pipeline(model, prompt, dimensions, raw, scores=pairs or values.dim() == 1)
    batches = [range(start, min(start + batch_size, len(inputs))) for start in range(0, len(inputs), batch_size)]
    report(pipeline, inputs, values, batches, budget, as_json)
