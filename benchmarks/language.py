"""How often the bundled language identifier is right, by language, on a folder with a text file for each.

python benchmarks/language.py FOLDER            # NTREX: text that it was not trained on
"""

import argparse
from pathlib import Path

from xlmr_core import Classify

LINES = 200  # of a language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="xlmr-langid")
    arguments = parser.parse_args()
    classify = Classify.from_pretrained(arguments.model)
    shares: dict[str, float] = {}
    for path in sorted(arguments.folder.glob("*.txt")):
        if path.stem not in classify.model.config.labels:
            continue
        lines = [line for line in path.read_text(encoding="utf-8").splitlines()[:LINES] if line.strip()]
        found = classify.batch(lines, top_k=1, truncation=True)
        shares[path.stem] = sum(best.label == path.stem for [best] in found) / len(lines)
        print(f"| {path.stem} | {shares[path.stem]:.1%} |", flush=True)
    print(f"| mean of {len(shares)} | {sum(shares.values()) / len(shares):.1%} |")


if __name__ == "__main__":
    main()
