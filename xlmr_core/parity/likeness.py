"""What the names of tensors say: how like a tap's name one is, and what its like in another layer is called."""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from xlmr_core.parity.formats import NEAR_LENGTH

# What ports call our taps, by the last parts of our names.
WORDS = {
    "attention.q": "q query queries wq qproj qlin",
    "attention.k": "k key keys wk kproj klin",
    "attention.v": "v value values wv vproj vlin",
    "attention.scores": "scores score affinity masked",
    "attention.probs": "probs prob probabilities softmax weights focus",
    "attention.context": "context ctx mix",
    "attention.output": "oproj outproj attended outlin wo",
    "attention.residual": "residual1 sum1 res1",
    "feed_forward.pre": "fc1 up intermediate lin1 pre wi wide",
    "feed_forward.post": "gelu act activation erf post bent",
    "feed_forward.output": "fc2 down lin2 narrow",
    "feed_forward.residual": "residual2 sum2 res2",
    "mid": "ln1 norm1 mid",
    "lm_head.logits": "logits",
}
WORD_COUNTS = 0.6  # likeness of a name that has such a word
STEPS = 2  # layers that show by how much the numbers in a name grow


@cache
def likeness(tap: str, name: str) -> float:
    """From 0 to 1, how like a tap's name a name is; numbers do not count."""
    ours = re.sub(r"layers\.\d+\.", "", tap)
    theirs = re.sub(r"\d+(?=\W|_|$)", "", name[-NEAR_LENGTH:])
    ratio = SequenceMatcher(None, ours.lower(), theirs.lower()).ratio()
    words = {word.lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name[-NEAR_LENGTH:])}
    has_word = any(words & {*theirs.split()} for key, theirs in WORDS.items() if ours.endswith(key))
    return max(ratio, WORD_COUNTS if has_word else 0.0)


def numbers_in(name: str) -> list[int]:
    """The numbers in a name, such as that of the layer."""
    return [int(number) for number in re.findall(r"\d+", name)]


def looks_like_another(tap: str, name: str) -> str | None:
    """Which of queries, keys and values a name means, if it is not the one that the tap is."""
    words = {word.lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name[-NEAR_LENGTH:])}
    three = [f"attention.{letter}" for letter in "qkv"]
    meant = [other for other in three if words & {*WORDS[other].split()}]
    if not tap.endswith(tuple(three)) or len(meant) != 1 or tap.endswith(meant[0]):
        return None
    return meant[0]


def next_name(names: Mapping[int, str], layer: int, exists: Callable[[str], bool]) -> str | None:
    """What the like of some tensors is called in another layer, from the numbers in their names.

    Args:
        names: Their names by layer.
        layer: The other layer.
        exists: Whether there is a tensor of that name and of the right shape.

    Returns:
        The name; None if there is none.
    """
    last = max(names)
    parts = re.split(r"(\d+)", names[last])
    if len(names) >= STEPS:
        before = max(set(names) - {last})
        earlier = re.split(r"(\d+)", names[before])
        if len(parts) == len(earlier) and parts[::2] == earlier[::2]:
            steps = [(int(b) - int(a)) / (last - before) for a, b in zip(earlier[1::2], parts[1::2], strict=True)]
            grown = [_grown(old, step * (layer - last)) for old, step in zip(parts[1::2], steps, strict=True)]
            name = "".join(a + b for a, b in zip(parts[::2], [*grown, ""], strict=True))
            return name if exists(name) else None
        return None
    for index in range(1, len(parts), 2):
        if int(parts[index]) == last:
            name = "".join([*parts[:index], _grown(parts[index], layer - last), *parts[index + 1 :]])
            if exists(name):
                return name
    return None


def _grown(number: str, by: float) -> str:
    return f"{int(number) + round(by):0{len(number)}d}"


def period(items: Sequence[Any], start: int, end: int, times: int) -> int:
    """The smallest length, at least from `start` to `end`, that a sequence repeats `times` times from there; else 0."""
    for length in range(end - start, (len(items) - start) // times + 1):
        whole = items[start : start + length * times]
        if all(whole[i] == whole[i + length] for i in range(len(whole) - length)):
            return length
    return 0


def as_pattern(names: Sequence[str]) -> str | None:
    """The names of all layers as one, with {i} for the number of the layer; None if they are not such names."""
    if len(set(names)) == 1:
        return names[0]
    for number in re.finditer(r"\d+", names[0]):
        pattern = f"{names[0][: number.start()]}{{i}}{names[0][number.end() :]}"
        if all(pattern.replace("{i}", str(i)) == name for i, name in enumerate(names)):
            return pattern
    return None
