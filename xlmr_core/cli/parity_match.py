"""`xlmr parity match`"""

from pathlib import Path

import click

from xlmr_core.atomic import written_as
from xlmr_core.cli.outputs import check_new
from xlmr_core.cli.parity_options import TRACE
from xlmr_core.parity.check import load_trace
from xlmr_core.parity.name_map import summary, to_toml
from xlmr_core.parity.ports import match_port
from xlmr_core.parity.trace import TraceError


@click.command("match")
@TRACE
@click.argument("dump_file", metavar="DUMP", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: stdout]")
def command(trace_file: Path, dump_file: Path, output: Path | None) -> None:
    """Write the map of names of DUMP: which of its tensors is which tap of TRACE, found from the numbers.

    Any order of axes is recognised, heads apart or side by side, queries, keys and values in one tensor, all layers in
    one tensor, and packed batches. Where the port is wrong, its tensors are recognised by their shapes, names and
    order; the map says so. `check` and `diagnose` do the same without a map. DUMP may be an ONNX or OpenVINO model
    (.onnx, .xml), which is run on the input of TRACE.

    \b
    xlmr parity match trace.safetensors port.npz -o names.toml
    """
    if output is not None:
        check_new(output, "edited")
    matching = match_port(load_trace(trace_file, dump_file), dump_file)
    if not matching.matches:
        raise TraceError(
            f"no tensor of {dump_file} was recognised as a tap of {trace_file}. `xlmr parity names TRACE DUMP` lists "
            "what could be what by its shape"
        )
    text = to_toml(matching, f"{trace_file.name} and {dump_file.name}")
    if output is None:
        click.echo(text, nl=False)
    else:
        with written_as(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    click.echo(summary(matching), err=output is None)
