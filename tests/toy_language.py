"""Two invented languages whose sentences can be learnt in seconds."""

import random

NOUNS = {"en": ["cat", "dog", "bird", "fish", "horse"], "uk": ["кіт", "пес", "птах", "кінь", "вовк"]}
VERBS = {"en": ["sees", "hears", "follows", "likes"], "uk": ["бачить", "чує", "любить", "шукає"]}


def sentences(language: str, count: int, seed: int) -> list[str]:
    """Sentences of subject, verb, object. The object follows the subject in the list, so the context determines it."""
    draw = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        index = draw.randrange(len(NOUNS[language]))
        verb = draw.choice(VERBS[language])
        lines.append(f"{NOUNS[language][index]} {verb} {NOUNS[language][(index + 1) % 5]}.")
    return lines
