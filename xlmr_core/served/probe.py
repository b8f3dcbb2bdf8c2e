"""Texts that are made so that every fault of a pipeline shows in their vectors."""

from __future__ import annotations

TOPICS = (
    "The river rises in the mountains and flows north through three old towns before it reaches the sea.",
    "A committee of twelve members meets every second Tuesday to discuss the budget of the library.",
    "Heat the oil, add the onions, and stir until they are soft; then pour in the stock.",
    "Der Zug nach Süden fährt heute von einem anderen Gleis ab, weil die Brücke gesperrt ist.",
    "La bibliothèque ferme à dix-huit heures, sauf le jeudi, où elle reste ouverte plus tard.",
    "Ученые измерили температуру воды на разных глубинах озера и сравнили её с прошлым годом.",
)


def probe_texts() -> tuple[tuple[str, ...], ...]:
    """The texts, in the batches in which they are to be sent.

    There are long and short texts, and lengths that are mixed in a batch; accents, half-width kana, runs of spaces,
    special tokens as text, an unknown character and upper case. One text comes twice in a batch, and once more in
    another batch. The first batches are short, and show most faults.
    """
    return (
        ("The cat sees the dog.", "Two cats sleep.", "The cat sees the dog."),
        ("a", "HELLO World, from The NORTH Station", "naïve café, Ångström; e\u0301 and n\u0303, ﬁne №5"),
        ("ﾊﾝｶｸ カナ と ｆｕｌｌ　ｗｉｄｔｈ", "  many   spaces \t and tabs  ", "line\nbreak"),
        (
            "Fill the <mask> here.",
            "The end </s> is not the end <s> of it.",
            "unknown: \U00010b3f\U0001f9ff \u07d0; joined: क्\u200dष ɛ\u0300",
        ),
        ("שלום עולם", "हिन्दी में एक वाक्य", "中文的一个句子，很短。", "The cat sees the dog."),
        # About 90, 180, 320, 450 and 900 tokens: each limit at which pipelines cut lies between two of them.
        ("A short text beside a long one.", _long(4)),
        (_long(8), "x"),
        (_long(15), "Three short words"),
        (_long(21), "Another short one."),
        (_long(42), "And one beside the longest."),
    )


def probe_pairs() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Queries, each with the passages that are to be sent with it, for a reranker."""
    return (
        ("Where does the river rise?", TOPICS),
        ("WHO meets on Tuesday?", ("The committee.", "naïve café  ﾊﾝｶｸ", "  many   spaces ", "a <mask> </s> b", "x")),
        ("a long passage", (_long(8), _long(15), "A short passage.")),
        (_long(2), (_long(21), "Short.", _long(42))),
    )


def _long(sentences: int) -> str:
    return " ".join(f"{number}. {TOPICS[number % len(TOPICS)]}" for number in range(sentences))
