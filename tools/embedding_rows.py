"""Rows to train the bundled sentence embedder on, from a folder with a text file for each language.

    python tools/embedding_rows.py FOLDER rows

writes rows/train.csv, rows/eval.csv, and rows/text/LANG.txt, some of the training text of each language by itself. The
two texts of a row are views of one line: words are left out, and some lose their ending or their capital. In some rows
the second one is spelled in Latin letters, so that a name has the same vector in several scripts. The same files give
the same rows.
"""

import argparse
import csv
import random
from pathlib import Path

# Those of xlmr-tiny.
LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fa", "fr", "hi", "it", "nl", "pl", "pt", "tr", "uk", "zh-Hans")
SHORTEST = 20  # characters of a line; of Chinese, a third
HELD_OUT = 300  # lines of a language
TEXT = 4000  # lines of a language for the vocabulary and the first steps
KEPT = (0.3, 1.0)  # share of the words that a view keeps, between these
CUT = 0.2  # share of the longer words that lose their last two letters
LOWER = 0.3  # share of the views in lower case
LATIN = 0.3  # share of the rows whose second view is in Latin letters

# Roughly how the letters of four scripts are spelled; "-" stands for nothing.
SPELLINGS = {
    "абвгдежзийклмнопрстуфхцчшщъьюяєіїґ": (
        "a b v g d e zh z i y k l m n o p r s t u f h ts ch sh sht a - yu ya ye i yi g"
    ),
    "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋ": ("a v g d e z i th i k l m n x o p r s s t y f ch ps o a e i i o y o i y"),
    "ابتثجحخدذرزسشصضطظعغفقكلمنهويآأإةىئؤءپچژگکی": (
        "a b t th j h kh d dh r z s sh s d t z a gh f q k l m n h w y a a i a a y w - p ch zh g k y"
    ),
    "अआइईउऊएऐओऔऑकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौॉंँ़्": (
        "a a i i u u e ai o au o k kh g gh ch chh j jh t th d dh n t th d dh n p ph b bh m y r l v sh sh s h "
        "a i i u u e ai o au o n n - -"
    ),
}
TO_LATIN = {
    letter: spelling.strip("-")
    for letters, spellings in SPELLINGS.items()
    for letter, spelling in zip(letters, spellings.split(), strict=True)
}

Row = tuple[str, str, str]  # anchor, positive, language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    text = arguments.output / "text"
    text.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    train: list[Row] = []
    held_out: list[Row] = []
    for language in LANGUAGES:
        lines = [line.strip() for line in (arguments.folder / f"{language}.txt").open(encoding="utf-8")]
        lines = [line for line in lines if len(line) >= (SHORTEST // 3 if language == "zh-Hans" else SHORTEST)]
        chance.shuffle(lines)
        held_out += [(line, view(line, chance), language) for line in lines[:HELD_OUT]]
        train += [(view(line, chance), second_view(line, chance), language) for line in lines[HELD_OUT:]]
        (text / f"{language}.txt").write_text("\n".join(lines[HELD_OUT:][:TEXT]) + "\n", encoding="utf-8")
    chance.shuffle(train)
    for name, rows in (("train.csv", train), ("eval.csv", held_out)):
        with (arguments.output / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["anchor", "positive", "language"])
            writer.writerows(rows)
    print(f"{len(train)} and {len(held_out)} rows")


def view(line: str, chance: random.Random) -> str:
    """The line without some of its words; of Chinese, which has no spaces, without some of its characters."""
    space = " " if " " in line else ""
    words = line.split() if space else list(line)
    share = chance.uniform(*KEPT)
    kept = [word for word in words if chance.random() < share] or words[:1]
    cut = [word[:-2] if len(word) > 4 and chance.random() < CUT else word for word in kept]
    text = space.join(cut)
    return text.lower() if chance.random() < LOWER else text


def second_view(line: str, chance: random.Random) -> str:
    text = view(line, chance)
    return in_latin(text) if chance.random() < LATIN else text


def in_latin(text: str) -> str:
    """The text with the letters of the tables spelled in Latin ones, in lower case; others stay as they are."""
    return "".join(TO_LATIN.get(letter, letter) for letter in text.lower())


if __name__ == "__main__":
    main()
