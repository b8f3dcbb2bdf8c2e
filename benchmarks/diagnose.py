"""Time and memory of diagnosing a dump: one case a process, because the peak of memory is that of the process.

    python benchmarks/diagnose.py                       # the geometry of xlm-roberta-base, random weights, CPU
    python benchmarks/diagnose.py --case "unlisted, outputs of layers"

The dump is of our own model with a fault made in it, in float32. A fault that no list has is found by the grammar.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from forward import GEOMETRY, make_batch

from xlmr_core import XLMRobertaConfig, XLMRobertaModel
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.faults import Fault, find_fault
from xlmr_core.parity.grammar.carry import Change, fault_of
from xlmr_core.parity.grammar.terms import add, scaled, tap

ALL, OUTPUTS, LAST = ("**",), ("embeddings.output", "layers.*.output"), ("layers.-1.output",)
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # faults, taps of the dump
    "right": ((), ALL),
    "listed": (("gelu_tanh",), ALL),
    "unlisted": (("residual",), ALL),
    "two, one unlisted": (("q_bias_missing", "residual"), ALL),
    "unlisted, outputs of layers": (("residual",), OUTPUTS),
    "unlisted, last hidden state only": (("residual",), LAST),
}


def fault(name: str, layers: int) -> Fault:
    """A fault of the catalogue; or "residual", in which 0.9 of the attention is added in every layer."""
    if name != "residual":
        return find_fault(name)
    at = [f"layers.{i}." for i in range(layers)]
    terms = {f"{i}attention.residual": add(tap(f"{i}input"), scaled(tap(f"{i}attention.output"), 0.9)) for i in at}
    made = fault_of(Change(terms, "0.9 times the attention is added", "", 1.0))
    assert isinstance(made, Fault)
    return made


def measure(case: str, size: str, seconds: float) -> dict[str, object]:
    names, taps = CASES[case]
    torch.manual_seed(0)
    model = XLMRobertaModel(XLMRobertaConfig(**GEOMETRY[size])).eval()
    with torch.no_grad():  # every vector of a fresh model is 0 or 1: such a one hides which of them is used
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.02)
            else:
                parameter.mul_(2)
    ids, mask = make_batch([12, 9, 5], model.config.vocab_size, "cpu")
    batch = {"input_ids": ids, "attention_mask": mask}
    with ExitStack() as made:
        for name in names:
            made.enter_context(fault(name, model.config.num_hidden_layers).applied(model))
        dump = dump_of(model, batch, taps=taps)
    begin = time.perf_counter()
    diagnosis = diagnose(model, batch, dump, seconds=seconds)
    return {
        "case": case,
        "seconds": time.perf_counter() - begin,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "explained": diagnosis.explained,
        "faults": diagnosis.faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=GEOMETRY, default="base", help="sizes of the model")
    parser.add_argument("--case", choices=CASES, help="only this case, in this process; prints JSON")
    parser.add_argument("--seconds", type=float, default=60.0, help="as for diagnose")
    parser.add_argument("-o", "--output", type=Path, help="also write the results to this file, as JSON")
    arguments = parser.parse_args()

    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.size, arguments.seconds)))
        return
    rows: list[dict[str, object]] = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--size", arguments.size]
        command += ["--seconds", str(arguments.seconds)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{case:33} {rows[-1]['seconds']:6.1f} s  {rows[-1]['peak_gb']:.1f} GB  {rows[-1]['faults']}", flush=True)
    if arguments.output:
        report = {"size": arguments.size, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
