"""How good predictions are: the usual score of each task, from plain lists of numbers, labels and texts."""

import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlmr_core.tasks.embed import cosine_similarity
from xlmr_core.tasks.tag import split_label

Scores = dict[str, float]
LOWER_IS_BETTER = ("loss", "mean_absolute_error")
ARTICLES = ("a", "an", "the")  # SQuAD leaves them out
OUTSIDE = "O"  # the label of a word outside every entity
ROWS = 1024  # vectors that are compared with all others at a time
DEPTH = 10  # passages of a ranking that nDCG looks at


def import_scikit_learn() -> Any:
    """The module sklearn.metrics. Raises ValueError with the way to install it where it is missing."""
    try:
        import sklearn.metrics  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("an evaluation needs scikit-learn: pip install 'xlmr-core[finetune]'") from error
    return sklearn.metrics


def single_label(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Accuracy, and the mean over the classes in `gold` of their F1."""
    library = import_scikit_learn()
    macro = library.f1_score(gold, predicted, labels=sorted(set(gold)), average="macro", zero_division=0)
    return {"accuracy": float(library.accuracy_score(gold, predicted)), "macro_f1": float(macro)}


def multi_label(gold: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]) -> Scores:
    """F1 over all decisions, the mean F1 of the classes, and the share of texts with exactly the right classes."""
    library = import_scikit_learn()
    return {
        "micro_f1": float(library.f1_score(gold, predicted, average="micro", zero_division=0)),
        "macro_f1": float(library.f1_score(gold, predicted, average="macro", zero_division=0)),
        "exact": float(library.accuracy_score(gold, predicted)),
    }


def regression(gold: Sequence[float], predicted: Sequence[float]) -> Scores:
    """Mean absolute error, and R² where there are two rows or more."""
    library = import_scikit_learn()
    scores = {"mean_absolute_error": float(library.mean_absolute_error(gold, predicted))}
    if len(gold) > 1:
        scores["r2"] = float(library.r2_score(gold, predicted))
    return scores


def per_class(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[Any]) -> dict[Any, Scores]:
    """Precision, recall, F1 and number of occurrences of each class."""
    library = import_scikit_learn()
    columns = library.precision_recall_fscore_support(gold, predicted, labels=labels, average=None, zero_division=0)
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    }


def has_marks(labels: Sequence[str]) -> bool:
    """Whether the labels mark where an entity begins: B-PER, I-PER."""
    return any(label.startswith(("B-", "I-")) for label in labels)


def entities(labels: Sequence[str], *, iobes: bool) -> dict[tuple[int, int], str]:
    """The entities in the labels of a text's words: (first word, word after the last) -> name, as `Tag` groups them."""
    found: dict[tuple[int, int], str] = {}
    start, last = 0, ("", "")
    for i, label in enumerate([*labels, OUTSIDE]):
        mark, name = split_label(label, iobes)
        if name != last[1] or mark in ("B", "S") or last[0] in ("E", "S"):
            if last[1] not in ("", OUTSIDE):
                found[start, i] = last[1]
            start = i
        last = (mark, name)
    return found


def entity_lists(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, iobes: bool
) -> tuple[list[str], list[str]]:
    """For every stretch of words that is an entity in one of the two: its name in each, or `OUTSIDE`."""
    ours: list[str] = []
    theirs: list[str] = []
    for gold_labels, predicted_labels in zip(gold, predicted, strict=True):
        right, answered = entities(gold_labels, iobes=iobes), entities(predicted_labels, iobes=iobes)
        for span in sorted({*right, *answered}):
            ours.append(right.get(span, OUTSIDE))
            theirs.append(answered.get(span, OUTSIDE))
    return ours, theirs


def entity_scores(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Precision, recall and F1 of entities: right are those with the right name and the right words (CoNLL-2003)."""
    names = sorted({*gold, *predicted} - {OUTSIDE})
    if not names:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    precision, recall, f1, _ = import_scikit_learn().precision_recall_fscore_support(
        gold, predicted, labels=names, average="micro", zero_division=0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> Scores:
    """Exact match and F1 of words, each against the best of the right answers (Rajpurkar et al. 2016, section 6.1)."""
    pairs = list(zip(gold, predicted, strict=True))
    exact = [max(float(answer_words(text) == answer_words(own)) for text in right or [""]) for right, own in pairs]
    f1 = [max(_word_f1(answer_words(text), answer_words(own)) for text in right or [""]) for right, own in pairs]
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


def answer_words(text: str) -> list[str]:
    """The words of an answer in lower case, without punctuation and without English articles, as in SQuAD's script."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in bare.split() if word not in ARTICLES]


def ranks(queries: Tensor, passages: Tensor, right: Sequence[int]) -> list[int]:  # (Q, H), (P, H)
    """The rank of the right passage of each query by cosine similarity, counted from 1. A tie counts against it."""
    found: list[int] = []
    for start in range(0, len(queries), ROWS):
        scores = cosine_similarity(queries[start : start + ROWS], passages)
        own = scores.gather(1, torch.tensor(right[start : start + ROWS])[:, None])
        found += (scores >= own).sum(dim=1).tolist()
    return found


def retrieval(found: Sequence[int]) -> Scores:
    """Accuracy at 1 and mean reciprocal rank."""
    return {
        "accuracy_at_1": sum(rank == 1 for rank in found) / len(found),
        "mrr": sum(1 / rank for rank in found) / len(found),
    }


def ranking(relevances: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> Scores:
    """Mean reciprocal rank of the first relevant passage, and nDCG of the first ten (Järvelin and Kekäläinen 2002).

    Args:
        relevances: How relevant the passages of each query are. Queries with one passage, or with none that is
            relevant, do not count.
        scores: The scores of the same passages.

    Returns:
        The scores; 0 if no query counts.
    """
    library = import_scikit_learn()
    reciprocal: list[float] = []
    gains: list[float] = []
    for relevance, score in zip(relevances, scores, strict=True):
        if len(relevance) < 2 or max(relevance) <= 0:
            continue
        best = max(own for own, wanted in zip(score, relevance, strict=True) if wanted > 0)
        above = sum(own >= best for own, wanted in zip(score, relevance, strict=True) if wanted <= 0)
        reciprocal.append(1 / (1 + above))
        gains.append(float(library.ndcg_score([relevance], [score], k=DEPTH)))
    count = max(1, len(gains))
    return {"mrr": sum(reciprocal) / count, "ndcg_at_10": sum(gains) / count, "queries": len(gains)}


def _word_f1(right: Sequence[str], own: Sequence[str]) -> float:
    if not right or not own:
        return float(right == own)  # no answer is right only where there is none
    common = sum((Counter(right) & Counter(own)).values())
    return 2 * common / (len(right) + len(own))
