"""What each stage of `xlmr embed` costs one core: reading, tokenizing, the model, writing. Rates for docs/scale.md.

    python benchmarks/stages.py                          # texts and vocabulary of XLMR_SHARED
    python benchmarks/stages.py en.txt de.txt --vocabulary FOLDER

Seconds are those in which the process computes (`time.process_time`, one thread), so other programs disturb little; of
several runs the shortest counts. The texts are those of encode.py; the model has random weights in the geometry of
xlm-roberta-base.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from encode import make_texts
from forward import GEOMETRY

from xlmr_core import Embed, XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.cli.result_file import ResultFile, format_of
from xlmr_core.cli.rows import rows_of_file

ROWS = 20_000  # that are read
VECTORS = 2_000  # that are written
MODEL_TEXTS = 64  # through the model of base size; a narrow one takes ROWS
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def seconds(work: Callable[[], Any], runs: int) -> float:
    """The least computing time of some runs."""
    times: list[float] = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def embed_with(geometry: dict[str, int], tokenizer: XLMRobertaTokenizer, dtype: torch.dtype) -> Embed:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=tokenizer.max_tokens + 2, **geometry
    )
    return Embed(XLMRobertaModel(config, attention="sdpa").to(dtype).eval(), tokenizer)


def consume(items: Any) -> None:
    for _ in items:
        pass


def reading(texts: list[str], folder: Path, runs: int) -> dict[str, float]:
    """Rows a second, by format."""
    rates: dict[str, float] = {}
    for suffix in ("txt", "jsonl"):
        path = folder / f"in.{suffix}"
        lines = (json.dumps({"text": text}) if suffix == "jsonl" else text.replace("\n", " ") for text in texts)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        rates[suffix] = len(texts) / seconds(lambda path=path: consume(rows_of_file(path, {"text": "text"})), runs)
    return rates


def writing(width: int, folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """Rows a second and bytes a row, by format."""
    vectors = torch.randn(VECTORS, width)
    rates: dict[str, dict[str, float]] = {}
    for suffix in ("npy", "jsonl"):
        path = folder / f"out.{suffix}"

        def write(path: Path = path) -> None:
            path.unlink(missing_ok=True)
            format: Any = format_of(path, ("row", "text", "embedding", "error"), None, vectors=True)
            format.width = width
            with ResultFile(path, format, None) as file:
                for number, vector in enumerate(vectors, start=1):
                    file.write({"row": number, "text": "", "embedding": vector.tolist()})
                file.finish()

        rate = VECTORS / seconds(write, runs)
        rates[suffix] = {"rows_per_second": rate, "bytes_per_row": path.stat().st_size / VECTORS}
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="text files; by default those of XLMR_SHARED")
    parser.add_argument("--vocabulary", type=Path, help="a folder with the files of the tokenizer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "stages-base-cpu.json")
    arguments = parser.parse_args()
    shared = os.environ.get("XLMR_SHARED")
    if shared is None and not (arguments.files and arguments.vocabulary):
        parser.error("give text files and --vocabulary, or set XLMR_SHARED")
    paths = arguments.files or sorted(Path(shared or "", "corpus", "ntrex128_ccbysa4").glob("*.txt"))
    vocabulary = arguments.vocabulary or Path(shared or "", "tokenizer", "xlm-roberta-base")
    torch.set_num_threads(1)
    tokenizer = XLMRobertaTokenizer.from_pretrained(vocabulary)
    few = make_texts(paths, tokenizer, 1_000)
    texts = few * (ROWS // len(few))
    tokens = [len(ids) + 2 for ids in tokenizer.encode(few)]
    runs = arguments.runs

    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "sentencepiece")},
        "runs": runs,
        "tokens_per_row": sum(tokens) / len(tokens),
    }
    report["tokens_per_second_tokenizer"] = sum(tokens) / seconds(lambda: [tokenizer.encode([x]) for x in few], runs)
    narrow = embed_with(NARROW, tokenizer, torch.float32)
    report["rows_per_second_without_the_model"] = ROWS / seconds(lambda: consume(narrow.stream(texts)), runs)
    block = os.urandom(2**26)
    report["bytes_per_second_sha256"] = len(block) / seconds(lambda: hashlib.sha256(block).digest(), runs)
    with tempfile.TemporaryDirectory() as name:
        report["rows_per_second_read"] = reading(texts, Path(name), runs)
        report["write"] = writing(GEOMETRY["base"]["hidden_size"], Path(name), runs)
    for dtype in ("float32", "bfloat16"):
        embed = embed_with(GEOMETRY["base"], tokenizer, getattr(torch, dtype))
        count = sum(tokens[:MODEL_TEXTS])
        report[f"tokens_per_second_{dtype}"] = count / seconds(lambda embed=embed: embed.batch(few[:MODEL_TEXTS]), runs)
    print(json.dumps(report, indent=2))
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
