"""`xlmr parity diagnose`"""

from pathlib import Path

import click
import torch

from xlmr_core.cli.progress import progress
from xlmr_core.parity.check import dump_from_file, load_trace
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.foreign import narrower_dtype
from xlmr_core.parity.trace import DTYPES, Checkpoint, check_same_weights
from xlmr_core.tokenizer import XLMRobertaTokenizer


@click.command("diagnose")
@click.argument("trace_file", metavar="TRACE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("dump_file", metavar="DUMP", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="The checkpoint that TRACE was recorded from.  [default: as TRACE says]")
@click.option(
    "--names", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML or JSON map of names."
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="What the port computes in.  [default: the narrowest type that holds its numbers]",
)
@click.option("--most", type=click.IntRange(min=1), default=3, show_default=True, help="How many faults to look for.")
@click.option("--json", "as_json", is_flag=True, help="The diagnosis as JSON.")
def command(
    trace_file: Path,
    dump_file: Path,
    model: str | None,
    names: Path | None,
    dtype: str | None,
    most: int,
    as_json: bool,
) -> None:
    """Tell why DUMP differs from TRACE: find the faults that, made in our model, give the numbers of DUMP.

    DUMP is an .npz or .safetensors file of a port, or another trace. Exit status 1 if anything differs.

    \b
    xlmr parity diagnose trace.safetensors port.npz --names names.toml
    """
    trace = load_trace(trace_file, dump_file)
    source = model or trace.provenance.checkpoint
    checkpoint = Checkpoint.load(source)
    check_same_weights(trace, checkpoint)
    dump = dump_from_file(trace, dump_file, names, keep_inputs=True)
    other_ids = "input_ids" in dump and not torch.equal(dump["input_ids"], trace.inputs["input_ids"])
    with progress("trying faults") as tick:
        found = diagnose(
            checkpoint.model,
            trace.inputs,
            dump,
            tokenizer=XLMRobertaTokenizer.from_pretrained(source) if other_ids else None,
            dtype=DTYPES[dtype] if dtype else narrower_dtype(dump),
            most=most,
            tick=tick,
        )
    click.echo(found.to_json() if as_json else str(found))
    if not found.ok:
        raise SystemExit(1)
