"""How often a sentence's translation is nearest to it, on a folder with a text file for each language, line by line.

python benchmarks/retrieval.py FOLDER            # NTREX: text that the bundled embedder was not trained on

For each language: the share of its sentences that find their translation among all English ones, the share of the
English ones that find theirs, and the share of its sentences whose view without half of the words finds them. The
embedder stands beside two that were not trained to embed: xlmr-tiny, and counts of three characters in a row.
"""

import argparse
import random
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from xlmr_core import Embed
from xlmr_core.tasks import cosine_similarity

PIVOT = "en"
# Those of xlmr-tiny, beside English.
LANGUAGES = ("ar", "bg", "de", "el", "es", "fa", "fr", "hi", "it", "nl", "pl", "pt", "tr", "uk", "zh-Hans")
COUNTS = 4096  # counters of characters
Encoder = Callable[[Sequence[str]], Tensor]  # texts to vectors, (N, H)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="xlmr-embed")
    parser.add_argument("--lines", type=int, help="only the first lines of each file")
    arguments = parser.parse_args()
    encoders = {name: embedder(name) for name in (arguments.model, "xlmr-tiny")} | {"characters": character_counts}
    print(f"| language | {' | '.join(f'{name}: to {PIVOT} | from {PIVOT} | half' for name in encoders)} |")
    pivots = lines_of(arguments.folder / f"{PIVOT}.txt", arguments.lines)
    others = {name: encode(pivots) for name, encode in encoders.items()}
    sums = torch.zeros(len(encoders), 3)
    for language in LANGUAGES:
        texts = lines_of(arguments.folder / f"{language}.txt", arguments.lines)
        shares = torch.tensor([shares_of(encode, texts, others[name]) for name, encode in encoders.items()])
        sums += shares
        print_row(language, shares)
    print_row(f"mean of {len(LANGUAGES)}", sums / len(LANGUAGES))


def embedder(name: str) -> Encoder:
    return partial(Embed.from_pretrained(name).batch, truncation=True)


def character_counts(texts: Sequence[str]) -> Tensor:
    """Square roots of how often each three characters occur, in counters that a hash chooses."""
    counts = torch.zeros(len(texts), COUNTS)
    for row, text in enumerate(texts):
        letters = f" {text.lower()} "
        for start in range(len(letters) - 2):
            counts[row, zlib.crc32(letters[start : start + 3].encode()) % COUNTS] += 1
    return counts.sqrt()


def shares_of(encode: Encoder, texts: Sequence[str], others: Tensor) -> tuple[float, float, float]:
    chance = random.Random(0)
    own = encode(texts)
    halves = encode([half(text, chance) for text in texts])
    return found(own, others), found(others, own), found(halves, own)


def half(text: str, chance: random.Random) -> str:
    """The text without half of its words, of Chinese without half of its characters."""
    space = " " if " " in text else ""
    words = text.split() if space else list(text)
    kept = sorted(chance.sample(range(len(words)), -(-len(words) // 2)))
    return space.join(words[index] for index in kept)


def found(queries: Tensor, passages: Tensor) -> float:
    """The share of the queries to which the passage of the same number is nearest."""
    nearest = cosine_similarity(queries, passages).argmax(dim=1)
    return (nearest == torch.arange(len(queries))).float().mean().item()


def lines_of(path: Path, count: int | None) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[:count]


def print_row(name: str, shares: Tensor) -> None:
    print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares.flatten().tolist())} |", flush=True)


if __name__ == "__main__":
    main()
