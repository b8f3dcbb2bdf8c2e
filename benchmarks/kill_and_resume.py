"""A file of a million lines through `xlmr embed`, once in one go and once with kills: the same bytes, and flat memory.

    python benchmarks/kill_and_resume.py
    python benchmarks/kill_and_resume.py --lines 100000 --kills 5 --suffix jsonl -o build/kill_and_resume.json

The lines are random words of the bundled vocabulary; the model has one narrow layer with random weights. The kills
(SIGKILL) come when the output has reached random sizes: every second one as soon as there are bytes that the saved
state does not count, the others after a random time. The memory of the run without kills is read at each tenth of its
rows: none may exceed the first one by more than a tenth. It is read from /proc, so on Linux only.
"""

import argparse
import filecmp
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from xlmr_core import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

LONGEST = 12  # words in a line
HIDDEN = 16  # numbers of a vector
GROWTH = 1.1  # of the memory, from the first tenth of the rows on
LATEST = 0.95  # share of the output after which no kill comes
PAUSE = 0.5  # longest time from a size of the output to the kill, in seconds: one chunk of rows takes about as long
POLL = 0.02  # seconds


def write_model(folder: Path, tokenizer: XLMRobertaTokenizer) -> None:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=HIDDEN,
        max_position_embeddings=tokenizer.max_tokens + 2,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_lines(path: Path, count: int, tokenizer: XLMRobertaTokenizer, chance: random.Random) -> None:
    pieces = (tokenizer.id_to_token(number) for number in range(4, tokenizer.vocab_size - 1))
    words = [piece[1:] for piece in pieces if piece.startswith("\u2581") and len(piece) > 1]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(" ".join(chance.choices(words, k=chance.randint(1, LONGEST))) + "\n")


class Run:
    """One `xlmr embed` from in.txt to an output, which may take several processes."""

    def __init__(self, folder: Path, output: str) -> None:
        self.output = folder / output
        self.partial = folder / f"{output}.partial"
        self.state = folder / f"{output}.partial.json"
        options = ["--model", folder / "model", "--input", folder / "in.txt", "--output", self.output]
        self.command = [sys.executable, "-m", "xlmr_core", "embed", *map(str, options)]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def finish(self) -> None:
        check(self.process.wait() == 0, f"failed: {' '.join(self.command)}")

    def runs(self) -> bool:
        time.sleep(POLL)
        return self.process.poll() is None

    def size(self) -> int:
        """Bytes of the output so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def saved(self, what: str) -> int:
        """The rows or the bytes that a kill does not take."""
        return json.loads(self.state.read_text())[what] if self.state.exists() else 0

    def memory(self) -> int:
        """MiB of the process that belong to no file."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) // 1024


def run_in_one_go(run: Run, lines: int) -> list[int]:
    """The memory at each tenth of the rows."""
    memory: list[int] = []
    run.start()
    while run.runs():
        if len(memory) < 9 and run.saved("rows") * 10 >= lines * (len(memory) + 1):
            memory.append(run.memory())
            print(f"{run.saved('rows'):,} rows, {memory[-1]} MiB", flush=True)
    run.finish()
    return memory


def run_with_kills(run: Run, points: list[int], chance: random.Random) -> list[int]:
    """The bytes that each kill took: they were written, and are written again."""
    lost: list[int] = []
    for number, point in enumerate(points):
        run.start()
        while run.runs() and run.size() < point:
            pass
        if number % 2:
            time.sleep(chance.uniform(0, PAUSE))
        else:
            while run.process.poll() is None and run.size() == run.saved("bytes"):
                time.sleep(POLL / 20)
        check(run.process.poll() is None, "the run ended before the kill: give more --lines")
        run.process.kill()
        run.process.wait()
        lost.append(run.size() - run.saved("bytes"))
        print(f"killed at {run.size():,} bytes, of which {run.saved('bytes'):,} are kept", flush=True)
    run.start()
    run.finish()
    return lost


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(otherwise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--suffix", choices=["npy", "safetensors", "jsonl", "csv"], default="npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "kill_and_resume.json")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", tokenizer)
        write_lines(folder / "in.txt", arguments.lines, tokenizer, chance)
        whole, killed = Run(folder, f"whole.{arguments.suffix}"), Run(folder, f"killed.{arguments.suffix}")
        begin = time.perf_counter()
        memory = run_in_one_go(whole, arguments.lines)
        middle = time.perf_counter()
        size = whole.output.stat().st_size
        points = sorted(chance.randrange(int(LATEST * size)) for _ in range(arguments.kills))
        lost = run_with_kills(killed, points, chance)
        end = time.perf_counter()
        check(filecmp.cmp(whole.output, killed.output, shallow=False), "the outputs differ")
        check(len(memory) == 9 and max(memory) <= GROWTH * memory[0], f"the memory grows: {memory} MiB")
        report: dict[str, Any] = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("torch", "sentencepiece")},
            "lines": arguments.lines,
            "input_bytes": (folder / "in.txt").stat().st_size,
            "output_bytes": size,
            "suffix": arguments.suffix,
            "seed": arguments.seed,
            "seconds_in_one_go": round(middle - begin),
            "memory_mib_at_each_tenth": memory,
            "kills": len(lost),
            "bytes_written_again": lost,
            "seconds_with_kills": round(end - middle),
        }
    print(f"{arguments.lines:,} lines, {len(lost)} kills: the outputs are equal, {size:,} bytes")
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
