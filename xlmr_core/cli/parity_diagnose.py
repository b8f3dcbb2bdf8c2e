"""`xlmr parity diagnose`"""

from pathlib import Path

import click
import torch
from torch import Tensor

from xlmr_core.cli.progress import progress
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.foreign import fitted, read_dump, read_names
from xlmr_core.parity.trace import DTYPES, INPUTS, Checkpoint, Trace, TraceError, check_same_weights, is_trace
from xlmr_core.tokenizer import XLMRobertaTokenizer


@click.command("diagnose")
@click.argument("trace_file", metavar="TRACE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("dump_file", metavar="DUMP", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="The checkpoint that TRACE was recorded from.  [default: as TRACE says]")
@click.option(
    "--names", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML or JSON map of names."
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="What the port computes in.  [default: as stored]")
@click.option("--most", type=click.IntRange(min=1), default=3, show_default=True, help="How many mistakes to look for.")
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
    """Tell why DUMP differs from TRACE: find the mistakes that, made in our model, give the numbers of DUMP.

    DUMP is an .npz or .safetensors file of a port, or another trace. Exit status 1 if anything differs.

    \b
    xlmr parity diagnose trace.safetensors port.npz --names names.toml
    """
    trace = Trace.load(trace_file)
    source = model or trace.provenance.checkpoint
    checkpoint = Checkpoint.load(source)
    check_same_weights(trace, checkpoint)
    dump = _dump(trace, dump_file, names)
    other_ids = "input_ids" in dump and not torch.equal(dump["input_ids"], trace.inputs["input_ids"])
    with progress("trying mistakes") as tick:
        found = diagnose(
            checkpoint.model,
            trace.inputs,
            dump,
            tokenizer=XLMRobertaTokenizer.from_pretrained(source) if other_ids else None,
            dtype=DTYPES[dtype] if dtype else None,
            most=most,
            tick=tick,
        )
    click.echo(found.to_json() if as_json else str(found))
    if not found.ok:
        raise SystemExit(1)


def _dump(trace: Trace, path: Path, names: Path | None) -> dict[str, Tensor]:
    """The file under our names and in our shapes; other ids than those of the trace are kept, to be explained."""
    if path.suffix == ".safetensors" and is_trace(path):
        other = Trace.load(path)
        return {**other.inputs, **other.sites}
    dump = read_dump(path, trace, read_names(names) if names is not None else None)
    rows = len(trace.inputs["input_ids"])
    inputs = {name: dump.pop(name) for name in INPUTS if name in dump}
    for name, tensor in inputs.items():
        if tensor.numel() % rows:
            raise TraceError(f"{path}: {name} has shape {tuple(tensor.shape)}; expected {rows} rows of one length")
        inputs[name] = tensor.reshape(rows, -1)
    return fitted(dump, trace.sites, trace.config, trace.real) | inputs
