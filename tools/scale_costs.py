"""What many rows cost: from the measured rates of benchmarks/results to the tables of docs/scale.md.

python tools/scale_costs.py --core-price 0.03 --gpu-price 2 --gpu-rate 1e6   # print the tables for your prices
python tools/scale_costs.py --page                                           # write them into the page
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATES = ROOT / "benchmarks" / "results" / "stages-base-cpu.json"
PAGE = ROOT / "docs" / "scale.md"
MARK = "<!-- written by tools/scale_costs.py -->\n"
CORE_PRICE = 0.04  # dollars an hour of one core of a server: an assumption
GPU_PRICE = 3.0  # dollars an hour of a GPU of the class of an H100: an assumption
GPU_RATE = 500_000  # tokens a second of such a GPU in bfloat16: an assumption, not measured
DOCUMENT = 512  # tokens of a web document, cut
CHUNK = 4096  # rows between two saved states
SHARD = 1_000_000  # rows of an input file

PART = """\
## What it costs

Measured are the rates of one core: computing time of `benchmarks/stages.py`, {date}, base size, one thread of an
x86-64 machine with AVX-512. Other programs ran on it, so an idle one is faster. Not measured, but assumed: a GPU of
the class of an H100 takes {gpu_rate:,.0f} tokens a second in bfloat16, its hour costs {gpu_price:.2f} dollars and that
of a core {core_price:.2f} dollars. A short text has {tokens:.0f} tokens. `tools/scale_costs.py` writes these tables;
with `--core-price`, `--gpu-price` and `--gpu-rate` it prints yours.

{costs}

Four billion documents are about the rows of
[FineWeb2-embedded](https://huggingface.co/datasets/epfml/FineWeb2-embedded), vectors of XLM-R; 300 billion pages are
what [Common Crawl](https://commoncrawl.org) has gathered by its own account.

## What becomes the limit

On cores it is the model. On a GPU it is the rest: at the assumed rate, one core does not keep up.

{limits}

"All but the model" is what a process does with a text from tokenizing to the vector, tokenizing in its own thread.
Several processes can share a GPU. Vectors as text cost more time and space than any other stage: write npy, or parquet
from an engine.

{sizes}

These are the bytes of 768 numbers. `--dimensions` keeps fewer, of checkpoints that were trained for it.

{restarts}
"""


@dataclass(frozen=True)
class Machine:
    """What runs the model."""

    name: str
    rate: float  # tokens a second
    price: float  # dollars an hour


@dataclass(frozen=True)
class Work:
    """Some rows."""

    name: str
    rows: float
    tokens: float  # of a row


def machines(rates: dict[str, Any], core_price: float, gpu_price: float, gpu_rate: float) -> list[Machine]:
    return [
        Machine("core, float32", rates["tokens_per_second_float32"], core_price),
        Machine("core, bfloat16", rates["tokens_per_second_bfloat16"], core_price),
        Machine("GPU, bfloat16 (assumed)", gpu_rate, gpu_price),
    ]


def works(rates: dict[str, Any]) -> list[Work]:
    return [
        Work("a billion short texts", 1e9, rates["tokens_per_row"]),
        Work("4 billion web documents, cut at 512 tokens", 4e9, DOCUMENT),
        Work("300 billion web pages, cut at 512 tokens", 3e11, DOCUMENT),
    ]


def costs(rates: dict[str, Any], found: Sequence[Machine]) -> list[str]:
    """Hours and dollars of each work on each machine."""
    lines = ["| rows | tokens | on | hours of one | dollars | days of 1,000 |", "|---|---:|---|---:|---:|---:|"]
    for work in works(rates):
        for machine in found:
            hours = work.rows * work.tokens / machine.rate / 3600
            amounts = [short(hours), short(hours * machine.price), short(hours / 24 / 1000)]
            lines.append(f"| {work.name} | {short(work.rows * work.tokens)} | {machine.name} | {' | '.join(amounts)} |")
    return lines


def limits(rates: dict[str, Any], gpu_rate: float) -> list[str]:
    """What one core does in each stage, beside what a GPU needs."""
    needed = gpu_rate / rates["tokens_per_row"]
    stages = {
        "read txt": rates["rows_per_second_read"]["txt"],
        "read jsonl": rates["rows_per_second_read"]["jsonl"],
        "tokenize": rates["tokens_per_second_tokenizer"] / rates["tokens_per_row"],
        "all but the model, reading and writing": rates["rows_per_second_without_the_model"],
        "write vectors as npy": rates["write"]["npy"]["rows_per_second"],
        "write vectors as jsonl": rates["write"]["jsonl"]["rows_per_second"],
    }
    lines = [f"| stage | rows a second of a core | cores for {short(needed)} rows a second |", "|---|---:|---:|"]
    lines += [f"| {name} | {short(rate)} | {needed / rate:.1f} |" for name, rate in stages.items()]
    return lines


def sizes(rates: dict[str, Any]) -> list[str]:
    """The bytes of the vectors."""
    lines = ["| output | bytes a row | of a billion | of 300 billion |", "|---|---:|---:|---:|"]
    for name, found in rates["write"].items():
        size = found["bytes_per_row"]
        lines.append(f"| {name} | {short(size)} | {short(size / 1e3)} TB | {short(size * 0.3)} TB |")
    return lines


def restarts(rates: dict[str, Any], found: Sequence[Machine]) -> list[str]:
    """What a kill costs: the rows since the last saved state, and finding the place in the file again."""
    skip = SHARD / rates["rows_per_second_read"]["jsonl"]
    lines = [
        "A kill takes at most 4,096 rows. Then the file is hashed and read again up to the place: "
        f"{skip:.0f} seconds for",
        "a million rows of jsonl.",
        "",
        "| on | seconds for 4,096 short texts | hours for a file of a million |",
        "|---|---:|---:|",
    ]
    for machine in found:
        seconds = rates["tokens_per_row"] / machine.rate
        lines.append(f"| {machine.name} | {short(CHUNK * seconds)} | {short(SHARD * seconds / 3600)} |")
    return lines


def short(number: float) -> str:
    """A number as the tables show it, with two digits that count."""
    for name, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{float(f'{number / size:.2g}'):,.6g} {name}"
    return f"{float(f'{number:.2g}'):,.6g}"


def tables(core_price: float = CORE_PRICE, gpu_price: float = GPU_PRICE, gpu_rate: float = GPU_RATE) -> str:
    """The part of the page that is computed."""
    rates = json.loads(RATES.read_text(encoding="utf-8"))
    found = machines(rates, core_price, gpu_price, gpu_rate)
    return PART.format(
        date=rates["date"],
        tokens=rates["tokens_per_row"],
        core_price=core_price,
        gpu_price=gpu_price,
        gpu_rate=gpu_rate,
        costs="\n".join(costs(rates, found)),
        limits="\n".join(limits(rates, gpu_rate)),
        sizes="\n".join(sizes(rates)),
        restarts="\n".join(restarts(rates, found)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core-price", type=float, default=CORE_PRICE, help="dollars for the hour of a core")
    parser.add_argument("--gpu-price", type=float, default=GPU_PRICE, help="dollars for the hour of a GPU")
    parser.add_argument("--gpu-rate", type=float, default=GPU_RATE, help="tokens a second of a GPU")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/scale.md")
    arguments = parser.parse_args()
    text = tables(arguments.core_price, arguments.gpu_price, arguments.gpu_rate)
    if arguments.page:
        before, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
        PAGE.write_text(f"{before}{MARK}\n{text}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
