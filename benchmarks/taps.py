"""The cost of capturing tensors: nothing while no capture is open. One process, in turn, medians.

    python benchmarks/taps.py                     # the geometry of xlm-roberta-base, random weights, CPU
    python benchmarks/taps.py --size tiny

Three forward passes on the same batch: of a model that never had a capture, of one on which a capture of all taps was
opened and closed, and of one with a capture of all taps open. They are timed only if all three give the same bits and
no hook is left on the second.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch
from forward import GEOMETRY, make_batch, seconds
from torch import nn

from xlmr_core import XLMRobertaConfig, XLMRobertaModel


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@torch.inference_mode()
def measure(size: str, lengths: list[int], runs: int, device: str) -> dict[str, object]:
    """The milliseconds of each, and their ratio to those of the model without a capture: medians over the runs."""
    model = XLMRobertaModel(XLMRobertaConfig(**GEOMETRY[size])).to(device).eval()
    ids, mask = make_batch(lengths, model.config.vocab_size, device)

    def plain() -> torch.Tensor:
        return model(ids, mask).last_hidden_state

    def captured() -> torch.Tensor:
        with model.capture("**"):
            return plain()

    results = [plain(), captured(), plain()]
    if hooks_on(model) or not all(torch.equal(result, results[0]) for result in results):
        raise SystemExit("not timed: a hook was left on the model, or the capture changed the result")
    never = XLMRobertaModel(model.config).to(device).eval()
    never.load_state_dict(model.state_dict(), assign=True)  # the same memory, so that only the earlier capture differs
    times = [
        (seconds(lambda: never(ids, mask), device), seconds(plain, device), seconds(captured, device))
        for _ in range(runs + 1)
    ][1:]
    columns = {"no capture": 0, "capture closed": 1, "capture open": 2}
    return {
        name: {
            "ms": 1000 * statistics.median(row[column] for row in times),
            "times": statistics.median(row[column] / row[0] for row in times),
        }
        for name, column in columns.items()
    } | {"taps": len(model.taps())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=GEOMETRY, default="base", help="sizes of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--runs", type=int, default=21, help="number of runs of each pass, in turn")
    parser.add_argument("-o", "--output", type=Path, help="also write the results to this file, as JSON")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    figures = measure(arguments.size, [32], arguments.runs, arguments.device)
    for name, row in figures.items():
        if isinstance(row, dict):
            print(f"{name:15}  {row['ms']:8.2f} ms  {row['times']:.3f} times")
    print(f"{figures['taps']} taps")
    if arguments.output:
        report = {
            "device": platform.processor() if arguments.device == "cpu" else torch.cuda.get_device_name(),
            "size": arguments.size,
            "torch": torch.__version__,
            "runs": arguments.runs,
            "rows": figures,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
