"""Labelled rows of the toy languages, for each task of fine-tuning."""

from typing import Any

from toy_language import NOUNS, sentences

Rows = list[dict[str, Any]]


def classify_rows(count: int, seed: int = 1) -> Rows:
    """The language of a sentence."""
    return [
        {"text": text, "label": language, "language": language}
        for pair in zip(sentences("en", count // 2, seed), sentences("uk", count // 2, seed), strict=True)
        for language, text in zip(("en", "uk"), pair, strict=True)
    ]


def tag_rows(count: int, seed: int = 1) -> Rows:
    """The nouns of a sentence; the second one of two words in a row belongs to the first."""
    rows: Rows = []
    for line in sentences("en", count, seed):
        subject, verb, noun = line.rstrip(".").split()
        labels = ["B-NOUN", "O", "B-NOUN", "I-NOUN", "O"]
        rows.append({"words": [subject, verb, noun, noun, "."], "labels": labels, "language": "en"})
    return rows


def answer_rows(count: int, seed: int = 1) -> Rows:
    """The verb of a sentence; every fourth context has no answer."""
    rows: Rows = []
    for number, line in enumerate(sentences("en", count, seed)):
        verb = line.split()[1]
        context = line.replace(f" {verb}", "") if number % 4 == 3 else line
        start = context.find(verb)
        rows.append({"question": "cat", "context": context, "answer": verb if start >= 0 else "", "start": start})
    return rows


def embed_rows(count: int, seed: int = 1) -> Rows:
    """A sentence and its translation; a sentence with other nouns as negative."""
    rows: Rows = []
    for line in sentences("en", count, seed):
        subject, verb, noun = line.rstrip(".").split()
        places = [NOUNS["en"].index(word) for word in (subject, noun)]
        positive = f"{NOUNS['uk'][places[0]]} бачить {NOUNS['uk'][places[1]]}"
        negative = f"{NOUNS['uk'][places[1]]} {verb} {NOUNS['uk'][places[0]]}"
        rows.append({"anchor": line, "positive": positive, "negative": [negative]})
    return rows


def rerank_rows(count: int, seed: int = 1) -> Rows:
    """A noun as query; passages with it are relevant."""
    lines = sentences("en", count, seed)
    return [{"query": noun, "passage": line, "label": int(noun in line)} for line in lines for noun in NOUNS["en"][:3]]


def group_rows(count: int, seed: int = 1) -> Rows:
    """A noun as query, a passage with it, and passages without it."""
    lines = sentences("en", count, seed)
    noun = NOUNS["en"][0]
    without = [line for line in lines if noun not in line]
    return [{"query": noun, "positive": line, "negative": without[:3]} for line in lines if noun in line]
