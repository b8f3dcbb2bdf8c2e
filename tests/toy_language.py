"""Two invented languages whose sentences can be learnt in seconds."""

import random

NOUNS = {"en": ["cat", "dog", "bird", "fish", "horse"], "uk": ["кіт", "пес", "птах", "кінь", "вовк"]}
VERBS = {"en": ["sees", "hears", "follows", "likes"], "uk": ["бачить", "чує", "любить", "шукає"]}


def sentences(language: str, count: int, seed: int) -> list[str]:
    """Subject, verb, object: the object is always the subject's neighbour in the list, so context tells it."""
    draw = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        index = draw.randrange(len(NOUNS[language]))
        verb = draw.choice(VERBS[language])
        lines.append(f"{NOUNS[language][index]} {verb} {NOUNS[language][(index + 1) % 5]}.")
    return lines
