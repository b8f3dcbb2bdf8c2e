"""Rows to train the bundled language identifier on, from a folder with a text file for each language.

    python tools/language_rows.py FOLDER rows

writes rows/train.csv, rows/eval.csv, and rows/text/LANG.txt, the training text of each language by itself. A language
with few lines is left out. The same files give the same rows.
"""

import argparse
import csv
import random
from pathlib import Path

FEWEST = 150  # lines of a language
SHORTEST = 8  # characters of a line
MOST = 2500  # training lines of a language
HELD_OUT = 50  # lines of a language at most, and a tenth of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    text = arguments.output / "text"
    text.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    train: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for path in sorted(arguments.folder.glob("*.txt")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if len(line) >= SHORTEST]
        if len(lines) < FEWEST or path.stem.isupper():
            continue
        random.Random(path.stem).shuffle(lines)
        count = min(HELD_OUT, len(lines) // 10)
        held_out += [(line, path.stem) for line in lines[:count]]
        chosen = lines[count : count + MOST]
        train += [(line, path.stem) for line in chosen]
        (text / path.name).write_text("\n".join(chosen) + "\n", encoding="utf-8")
    random.shuffle(train)
    for name, rows in (("train.csv", train), ("eval.csv", held_out)):
        with (arguments.output / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "language"])
            writer.writerows((line, language, language) for line, language in rows)
    print(f"{len({language for _, language in train})} languages, {len(train)} and {len(held_out)} rows")


if __name__ == "__main__":
    main()
