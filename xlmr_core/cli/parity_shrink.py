"""`xlmr parity shrink`"""

import math
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import click
from torch import Tensor

from xlmr_core.checkpoint import inspect_checkpoint
from xlmr_core.cli.outputs import check_output
from xlmr_core.cli.parity_options import FLOORS, NAMES, TRACE
from xlmr_core.cli.progress import progress
from xlmr_core.parity.adapters import transformers_model
from xlmr_core.parity.check import floors_path, load_trace, read_floors, run_transformers
from xlmr_core.parity.compare import Floors
from xlmr_core.parity.dump_files import shapes_in, tensors_in
from xlmr_core.parity.foreign import read_names
from xlmr_core.parity.formats import TraceError
from xlmr_core.parity.int8 import INT8
from xlmr_core.parity.ports import MODELS, is_port, open_port, run_port
from xlmr_core.parity.recording import Checkpoint
from xlmr_core.parity.shrink import MOST_RUNS, Port, Shrunk, cut, shrink
from xlmr_core.parity.trace import DTYPES, Trace, is_trace

RUN_LIMIT = 900  # seconds for the user's command


@click.command("shrink")
@TRACE
@click.argument("port", metavar="[PORT]", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--run", "command_line", help="Command that writes a dump: 'python dump.py {trace} {dump}'.")
@click.option("--reference", type=click.Choice(["transformers"]), help="The port is transformers' model of --model.")
@click.option("--model", help="Checkpoint that TRACE was recorded from.  [default: the one that TRACE names]")
@NAMES
@click.option("--dtype", type=click.Choice([*DTYPES, *INT8]), help="Precision of the port.  [default: as for check]")
@FLOORS
@click.option("--exact", is_flag=True, help="Count every difference, however small.")
@click.option(
    "--most", type=click.IntRange(min=1), default=MOST_RUNS, show_default=True, help="Runs of the port, at most."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The trace to write."
)
def command(
    trace_file: Path,
    port: Path | None,
    command_line: str | None,
    reference: str | None,
    model: str | None,
    names: Path | None,
    dtype: str | None,
    floors_file: Path | None,
    exact: bool,
    most: int,
    output: Path,
) -> None:
    """Write the smallest part of TRACE on which a port first goes wrong at the same tap, for a bug report.

    PORT is an ONNX or OpenVINO model (.onnx, .xml), which is run again on fewer rows and tokens; so is the port of
    --run or --reference. Of a dump (.npz, .safetensors) only rows are removed. In the command of --run, {trace} stands
    for a trace whose input_ids and attention_mask are to be run, and {dump} for the .npz file to write.

    \b
    xlmr parity shrink trace.safetensors model.onnx -o small.safetensors
    xlmr parity shrink trace.safetensors --run "python dump.py {trace} {dump}" -o small.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"a trace is a .safetensors file, not {output.name}")
    if sum(each is not None for each in (port, command_line, reference)) != 1:
        raise click.UsageError("name one port: PORT, --run or --reference")
    if port is not None and not is_port(port):
        raise click.UsageError(
            f"{port} is not .npz, .safetensors, .onnx or .xml; --run takes a command that writes a dump"
        )
    floors_file = floors_file or floors_path(trace_file)
    check_output(output, [trace_file, port, names, floors_file, model], is_trace, "a trace")
    trace = load_trace(trace_file, port)
    floors = None if exact else replace(read_floors(trace, floors_file), computed_in=dtype)
    if port is not None and port.suffix not in MODELS:
        dump, _ = open_port(trace, port, names)
        found = cut(trace, dump, floors=floors)
    else:
        found = _rerun(trace, port, command_line, model, names, floors, most)
    found.trace.save(output)
    click.echo(str(found))
    click.echo(f"{output}: {output.stat().st_size:,} bytes")


def _rerun(
    trace: Trace,
    port: Path | None,
    command_line: str | None,
    model: str | None,
    names: Path | None,
    floors: Floors | None,
    most: int,
) -> Shrunk:
    """Shrinks the trace for a port that can be run; neither a file nor a command: transformers."""
    source = model or trace.provenance.checkpoint
    run: Port
    if port is not None:
        run = lambda small: run_port(small, port)  # noqa: E731
    elif command_line is not None:
        run = lambda small: _run_command(command_line, small)  # noqa: E731
    else:
        folder = str(inspect_checkpoint(source).weights_file.parent)
        config, provenance = trace.config, trace.provenance
        theirs = transformers_model(folder, provenance.model, config.norm_first, "eager", DTYPES[provenance.dtype])
        run = lambda small: run_transformers(small, theirs)  # noqa: E731
    with progress("running the port") as tick:
        table = read_names(names) if names else None
        return shrink(trace, run, Checkpoint.load(source), floors=floors, names=table, most=most, tick=tick)


def _run_command(command_line: str, trace: Trace) -> dict[str, Tensor]:
    """The dump that the user's command writes for a trace."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"{trace}": str(Path(folder) / "trace.safetensors"), "{dump}": str(Path(folder) / "dump.npz")}
        trace.save(Path(files["{trace}"]))
        words = shlex.split(command_line)
        for name, file in files.items():
            words = [word.replace(name, file) for word in words]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=RUN_LIMIT, check=False, errors="replace"
            )
        except subprocess.TimeoutExpired as error:
            raise TraceError(f"{command_line!r} did not end within {RUN_LIMIT} seconds") from error
        except (OSError, IndexError) as error:
            raise TraceError(f"{command_line!r} cannot be run: {error}") from error
        dump = Path(files["{dump}"])
        if done.returncode or not dump.is_file():
            said = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
            raise TraceError(
                f"{command_line!r} wrote no dump to {{dump}} (exit status {done.returncode}; {said[0][:300]})"
            )
        sizes = {name: math.prod(shape) for name, shape in shapes_in(dump).items()}
        return dict(tensors_in(dump, sizes))
