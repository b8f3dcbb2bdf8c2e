"""The time from the start of a process to the first answer, beside a bare `import torch` in the same run.

    python benchmarks/cold_start.py                     # the bundled checkpoint, and a full-size base one made here
    python benchmarks/cold_start.py --runs 21 -o cold_start.json

The full-size checkpoint has random weights under the published tensor names and sizes: the time does not depend on the
values. Its vocabulary is the published one of 250,000 pieces if XLMR_SHARED names a folder that contains it, and else
the bundled one, which loads 0.4 s faster. Before anything is timed, its answer is compared with that of transformers.
The memory is the private (not file-backed) memory of the process after the model is loaded.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TEXT = "The <mask> is open"
IMPORT_TORCH = "import torch"
ANSWER = "from xlmr_core import FillMask; print(FillMask.from_pretrained({source!r})({text!r})[0][0].token)"
MEMORY = (
    "from xlmr_core import FillMask\n"
    "fill = FillMask.from_pretrained({source!r})\n"
    "rows = open('/proc/self/smaps_rollup').read().splitlines()\n"
    "print(sum(int(r.split()[1]) for r in rows if r.startswith(('Private_Dirty', 'Anonymous'))) // 2)"
)


def run(script: str) -> tuple[float, str]:
    """The seconds that a new Python process takes for `script`, and what the script prints."""
    start = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, finished.stdout.strip()


def make_base_checkpoint(folder: Path) -> None:
    """xlm-roberta-base as transformers writes it, with random weights."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    from xlmr_core import XLMRobertaTokenizer

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_hidden_layers=12
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    shared = os.environ.get("XLMR_SHARED")
    vocabulary = Path(shared, "tokenizer", "xlm-roberta-base") if shared else "xlmr-tiny"
    XLMRobertaTokenizer.from_pretrained(vocabulary).save_pretrained(folder)


def transformers_answer(folder: Path) -> int:
    """The id that transformers ranks first for TEXT."""
    from transformers import XLMRobertaForMaskedLM

    from xlmr_core import XLMRobertaTokenizer

    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXT)
    model = XLMRobertaForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        logits = model(batch.input_ids, batch.attention_mask).logits
    return int(logits[batch.input_ids == tokenizer.mask_token_id].argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="number of runs of each script, in turn")
    parser.add_argument("-o", "--output", type=Path, help="also write the results to this file, as JSON")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        make_base_checkpoint(base)
        for source in ("xlmr-tiny", str(base)):
            answer = run(ANSWER.format(source=source, text=TEXT))[1]  # also warms the file cache
            if source != "xlmr-tiny" and int(answer) != (expected := transformers_answer(base)):
                raise SystemExit(f"not timed: {source} answers {answer}, transformers answers {expected}")
        scripts = {
            "import torch": IMPORT_TORCH,
            "bundled xlmr-tiny": ANSWER.format(source="xlmr-tiny", text=TEXT),
            "full-size base": ANSWER.format(source=str(base), text=TEXT),
        }
        seconds: dict[str, list[float]] = {label: [] for label in scripts}
        for _ in range(arguments.runs):
            for label, script in scripts.items():
                run(IMPORT_TORCH)  # so that the same files are in the system's cache before each
                seconds[label].append(run(script)[0])
        private_mib = int(run(MEMORY.format(source=str(base)))[1]) / 1024
        file_mib = (base / "model.safetensors").stat().st_size / 2**20
        torch_only_mib = int(run(MEMORY.replace("fill =", "# ").format(source=""))[1]) / 1024

    medians = {label: statistics.median(times) for label, times in seconds.items()}
    bare = medians["import torch"]
    report = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "runs": arguments.runs,
        "vocabulary": "real" if "XLMR_SHARED" in os.environ else "bundled",
        "median_s": medians,
        "over_import_torch_s": {label: value - bare for label, value in medians.items()},
        "private_memory_mib": {"with base loaded": private_mib, "without": torch_only_mib, "weights file": file_mib},
    }
    for label, value in medians.items():
        print(f"{label:20} {value:6.2f} s   {value - bare:+.2f} s over import torch")
    extra = private_mib - torch_only_mib
    print(f"private memory with the {file_mib:,.0f} MiB file loaded: {extra:,.0f} MiB more than without")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
