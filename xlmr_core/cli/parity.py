"""`xlmr parity`: record what a checkpoint computes, and compare another implementation with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click
import torch
from torch import Tensor

from xlmr_core.atomic import written_as
from xlmr_core.cli import Commands
from xlmr_core.cli.options import Seconds, hub_arguments, hub_options
from xlmr_core.cli.outputs import check_new, check_output, is_floor_table, is_picture
from xlmr_core.cli.parity_headroom import command as headroom
from xlmr_core.cli.parity_leaning import below_the_noise
from xlmr_core.cli.parity_match import command as match
from xlmr_core.cli.parity_options import FLOORS, NAMES, TRACE
from xlmr_core.cli.parity_probe import command as probe
from xlmr_core.cli.parity_shrink import command as shrink
from xlmr_core.cli.parity_vectors import command as diagnose_vectors
from xlmr_core.cli.progress import progress
from xlmr_core.formatting import dtype_name
from xlmr_core.parity.check import (
    check_trace,
    dump_from_transformers,
    floors_path,
    load_trace,
    measure_trace,
    read_floors,
)
from xlmr_core.parity.compare import Floors
from xlmr_core.parity.diagnose import SECONDS, diagnose
from xlmr_core.parity.dump_files import SUFFIXES, shapes_in
from xlmr_core.parity.faults import FAULTS, POOLING_FAULTS, TOKENIZER_FAULTS
from xlmr_core.parity.floors import devices_here, run_configurations
from xlmr_core.parity.foreign import narrower_dtype, read_names
from xlmr_core.parity.int8 import INT8
from xlmr_core.parity.matching import Matching
from xlmr_core.parity.name_map import summary
from xlmr_core.parity.naming import hints, template
from xlmr_core.parity.plot import FORMATS, plot_error_by_depth
from xlmr_core.parity.ports import is_port, open_port
from xlmr_core.parity.recording import TOP_K, Checkpoint, check_same_weights, record, rerun
from xlmr_core.parity.tap_values import narrowest
from xlmr_core.parity.trace import DTYPES, Trace, TraceError, is_trace
from xlmr_core.tokenizer import XLMRobertaTokenizer

PRECISIONS = (*list(DTYPES)[1:], *INT8)  # float64 is the truth


@click.group("parity", cls=Commands)
def command() -> None:
    """Is a port right, and if not, why? Record a trace, compare a dump with it, and find the fault."""


command.add_command(diagnose_vectors)
command.add_command(headroom)
command.add_command(match)
command.add_command(probe)
command.add_command(shrink)


@command.command("record")
@click.argument("model")
@click.option(
    "--text", "texts", multiple=True, required=True, help="A text to run the model on. Several texts make a batch."
)
@click.option("--pair", "pairs", multiple=True, help="The second text of a pair, for rerankers; as many as texts.")
@click.option("--taps", multiple=True, help="Pattern of taps to record: 'layers.*.output', '**.probs'.  [default: all]")
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=TOP_K,
    show_default=True,
    help="Largest logits kept per token; 0 keeps all.",
)
@click.option("--grad", is_flag=True, help="Also record the gradient by every parameter.")
@click.option(
    "--steps", type=click.IntRange(min=0), default=0, help="Number of training steps whose losses are recorded."
)
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Precision of the run."
)
@click.option(
    "--attention", type=click.Choice(["eager", "sdpa"]), default="eager", show_default=True, help="Attention kernel."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@hub_options()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The trace to write."
)
def record_command(
    model: str,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    taps: tuple[str, ...],
    top_k: int,
    grad: bool,
    steps: int,
    dtype: str,
    attention: Literal["eager", "sdpa"],
    device: str,
    revision: str | None,
    cache_dir: str | None,
    offline: bool,
    output: Path,
) -> None:
    """Record a trace of MODEL: the input ids of the texts, the tensor at every tap, and where they come from.

    \b
    xlmr parity record xlmr-tiny --text "Hello <mask>!" -o trace.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"a trace is a .safetensors file, not {output.name}")
    check_output(output, [model], is_trace, "a trace")
    trace = record(
        model,
        texts,
        pairs=pairs,
        taps=taps or ("**",),
        top_k=top_k,
        grad=grad,
        steps=steps,
        dtype=DTYPES[dtype],
        attention=attention,
        device=device,
        **hub_arguments(revision, cache_dir, offline),
    )
    trace.save(output)
    click.echo(f"{output}: {len(trace.tensors)} tensors, {output.stat().st_size:,} bytes")


@command.command("floor")
@click.argument("model")
@TRACE
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(PRECISIONS), help="Precision to measure.  [default: all]"
)
@click.option(
    "--compiled/--no-compiled",
    default=False,
    show_default=True,
    help="Also measure the model as torch.compile compiles it. Needs a C++ compiler and a minute or two.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The table to write.  [default: beside TRACE]",
)
def floor_command(model: str, trace_file: Path, dtypes: tuple[str, ...], compiled: bool, output: Path | None) -> None:
    """Measure the noise floor of MODEL: its rounding error against float64 at each tap, on the input of TRACE.

    Runs it in float32, bfloat16, float16 and int8 (one scale for a weight matrix, or one for each channel), with eager
    and fused attention, padded and packed, with features in two orders, on the CPU and on a GPU if there is one. `xlmr
    parity check` judges by the table that this writes.
    """
    output = output or floors_path(trace_file)
    check_output(output, [model, trace_file], is_floor_table, "a table of floors")
    trace = Trace.load(trace_file)
    chosen = dtypes or PRECISIONS
    runs = run_configurations(chosen, devices_here(), packed=True, compiled=compiled)
    with progress("measuring", total=len(runs)) as tick:
        table = measure_trace(trace, Checkpoint.load(model), dtypes=chosen, compiled=compiled, tick=tick)
    table.save(output)
    click.echo(str(table))
    click.echo(f"written to {output}")


@command.command("check")
@TRACE
@click.argument("other", required=False)
@click.option(
    "--reference", type=click.Choice(["transformers"]), help="Let transformers run OTHER, or the checkpoint of TRACE."
)
@NAMES
@click.option("--taps", multiple=True, help="Compare only these taps: 'layers.*.output', '**.probs', 'lm_head.logits'.")
@click.option("--partial", is_flag=True, help="Compare only the taps that OTHER has.")
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES, *INT8]),
    help="Precision of OTHER.  [default: the narrowest type that holds its numbers; of a checkpoint, TRACE's]",
)
@click.option("--device", default="cpu", show_default=True, help="Device that runs a checkpoint.")
@FLOORS
@click.option("--exact", is_flag=True, help="Pass only equal values.")
@click.option(
    "--leaning/--no-leaning",
    default=None,
    help="Where all taps of a dump agree, look for faults below the noise floors.  "
    "[default: of dumps in less than float32, for in float32 the floors are narrow enough]",
)
@click.option("--model", help="Checkpoint for that search.  [default: the one that TRACE names, if it is here]")
@click.option("--strict", is_flag=True, help="Exit status 1 also for a fault below the noise floors.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture of the error by depth: .svg, .png or .pdf.",
)
def check_command(
    trace_file: Path,
    other: str | None,
    reference: str | None,
    names: Path | None,
    taps: tuple[str, ...],
    partial: bool,
    dtype: str | None,
    device: str,
    floors_file: Path | None,
    exact: bool,
    leaning: bool | None,
    model: str | None,
    strict: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Compare OTHER with TRACE, tap by tap in reading order. Exit status 1 if they diverge.

    OTHER is another trace, an .npz or .safetensors dump of a port, an ONNX or OpenVINO model (.onnx, .xml) or a
    checkpoint, which are run here. Tensors with names of their own are recognised by their numbers.

    \b
    xlmr parity check trace.safetensors port.npz
    xlmr parity check trace.safetensors port.npz --names names.toml
    xlmr parity check trace.safetensors model.onnx
    xlmr parity check trace.safetensors --reference transformers
    """
    if plot is not None and plot.suffix not in FORMATS:
        raise click.UsageError(f"--plot writes {', '.join(FORMATS)}, not {plot.name}")
    if other is None and reference is None:
        raise click.UsageError("name what to compare: OTHER, or --reference transformers")
    if strict and (exact or leaning is False):
        raise click.UsageError(
            "--strict needs the search for faults below the noise: leave --exact and --no-leaning out"
        )
    floors_file = floors_file or floors_path(trace_file)
    if plot is not None:
        check_output(plot, [trace_file, other, names, floors_file], is_picture, "a picture of that type")
    trace = load_trace(trace_file, other)
    floors: Floors | None = None if exact else read_floors(trace, floors_file)
    actual, matching = _dump(trace, other or trace.provenance.checkpoint, reference, names, dtype, device)
    found = narrower_dtype(actual) if dtype is None and not exact else None
    if floors is not None:
        floors = replace(floors, computed_in=dtype or (dtype_name(found) if found else None))
    absent = matching.absent if matching else ()
    comparison = check_trace(trace, actual, floors=floors, taps=taps, partial=partial, absent=absent)
    is_foreign = reference is not None or Path(str(other)).is_file()
    kind = DTYPES.get(dtype or "") or found or narrowest(actual.values())
    if leaning is None:
        leaning = strict or kind != torch.float32
    if leaning and floors is not None and comparison.ok and is_foreign:
        ran = model or (other if reference else None)
        hidden = below_the_noise(trace, actual, comparison, kind, ran, must=strict)
        comparison = replace(comparison, leanings=hidden)
    if plot is not None:
        with written_as(plot) as temporary:
            plot_error_by_depth(comparison, temporary, format=plot.suffix[1:])
    click.echo(comparison.to_json() if as_json else str(comparison))
    notes = [_stored_wider(found)] if found else []
    if matching is not None:
        notes.append(summary(matching))
    elif other is not None and Path(other).suffix in SUFFIXES:
        notes += hints(trace, comparison, shapes_in(Path(other)), read_names(names) if names else {})
    for note in notes:
        click.echo(note, err=as_json)
    if not comparison.ok or (strict and comparison.leans):
        raise SystemExit(1)


@command.command("names")
@TRACE
@click.argument(
    "dump_file",
    metavar="[DUMP]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: stdout]")
def names_command(trace_file: Path, dump_file: Path | None, output: Path | None) -> None:
    """Write a map of names to fill in: each tap of TRACE, with the tensors of DUMP that it could be.

    Tensors are matched by their shapes only. Every entry is commented out; the likeliest name comes first.

    \b
    xlmr parity names trace.safetensors port.npz -o names.toml
    """
    if output is not None:
        check_new(output, "filled in")
    trace = load_trace(trace_file, dump_file)
    about = trace_file.name + (f" and {dump_file.name}" if dump_file else "")
    text = template(trace, shapes_in(dump_file) if dump_file else {}, about)
    if output is None:
        click.echo(text, nl=False)
    else:
        with written_as(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
        click.echo(f"{output}: {len(trace.taps)} taps")


@command.command("diagnose")
@TRACE
@click.argument("dump_file", metavar="DUMP", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Checkpoint that TRACE was recorded from.  [default: the one that TRACE names]")
@NAMES
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES, *INT8]),
    help="Precision of the port; int8 is not simulated.  [default: the narrowest type that holds its numbers]",
)
@click.option("--most", type=click.IntRange(min=1), default=3, show_default=True, help="Number of faults to look for.")
@click.option(
    "--seconds",
    type=Seconds(),
    default=SECONDS,
    show_default=True,
    help="Time for a fault; after it, only usual changes near the first wrong tap are tried.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
def diagnose_command(
    trace_file: Path,
    dump_file: Path,
    model: str | None,
    names: Path | None,
    dtype: str | None,
    most: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Find the faults that, made in our model, give the numbers of DUMP.

    The faults of the catalogue (`xlmr parity faults`) are tried first. Where none fits, small changes of the operations
    between the last right tap and the first wrong one are tried.

    DUMP is an .npz or .safetensors file of a port, another trace, or an ONNX or OpenVINO model (.onnx, .xml), which is
    run. Exit status 1 if anything differs from TRACE.

    \b
    xlmr parity diagnose trace.safetensors port.npz --names names.toml
    """
    if dtype in INT8:
        raise click.UsageError(
            f"diagnose does not simulate {dtype}. Diagnose a dump of the port before it was quantised, then judge the "
            f"quantised port with `xlmr parity check --dtype {dtype}`"
        )
    trace = load_trace(trace_file, dump_file)
    source = model or trace.provenance.checkpoint
    checkpoint = Checkpoint.load(source)
    check_same_weights(trace, checkpoint)
    dump, matching = open_port(trace, dump_file, names, keep_inputs=True)
    other_ids = "input_ids" in dump and not torch.equal(dump["input_ids"], trace.inputs["input_ids"])
    with progress("trying faults") as tick:
        found = diagnose(
            checkpoint.model,
            trace.inputs,
            dump,
            tokenizer=XLMRobertaTokenizer.from_pretrained(source) if other_ids else None,
            dtype=DTYPES[dtype] if dtype else narrower_dtype(dump),
            most=most,
            seconds=seconds,
            tick=tick,
        )
    click.echo(found.to_json() if as_json else str(found))
    if matching is not None:
        click.echo(summary(matching), err=as_json)
    if not found.ok:
        raise SystemExit(1)


@command.command("faults")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every field as JSON.")
def faults_command(name: str | None, as_json: bool) -> None:
    """List the faults that `xlmr parity diagnose` tries first, or describe the fault NAME."""
    faults = {
        fault.name: fault for fault in (*TOKENIZER_FAULTS, *FAULTS, *POOLING_FAULTS) if name in (None, fault.name)
    }
    if not faults:
        raise click.UsageError(f"no fault is called {name!r}: `xlmr parity faults` lists them")
    rows = [{key: getattr(fault, key) for key in ("name", "tap", "cause", "symptom")} for fault in faults.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif name is not None:
        click.echo("\n".join(f"{key:8}{value}" for key, value in rows[0].items()))
    else:
        width = max(len(row["name"]) for row in rows)
        click.echo("\n".join(f"{row['name']:{width}}  {row['cause']}" for row in rows))
        click.echo(f"{len(rows)} faults; `xlmr parity faults NAME` describes one")


def _dump(
    trace: Trace, other: str, reference: str | None, names: Path | None, dtype: str | None, device: str
) -> tuple[dict[str, Tensor], Matching | None]:
    """What OTHER computes, and how its tensors were recognised."""
    if reference is None and is_port(Path(other)):
        return open_port(trace, Path(other), names)
    if dtype in INT8:
        raise click.UsageError(f"--dtype {dtype} is for the dump of a port: {other} is a checkpoint")
    run_in = DTYPES[dtype or trace.provenance.dtype]
    if reference is not None:
        return dump_from_transformers(trace, other, dtype=run_in), None
    if Path(other).is_file():
        raise TraceError(f"{other} is not .npz, .safetensors, .onnx or .xml, nor a folder with a checkpoint")
    return rerun(trace, Checkpoint.load(other), dtype=run_in, device=device), None


def _stored_wider(dtype: torch.dtype) -> str:
    name = dtype_name(dtype)
    return f"every number is one of {name}, stored wider: judged by the floors of {name}; --dtype names another"
