"""Scores from plain predictions, against numbers computed by hand."""

import sys

import pytest
import torch

from xlmr_core.training import metrics
from xlmr_core.training.metrics import OUTSIDE


def test_classes() -> None:
    scores = metrics.single_label(["a", "a", "b"], ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    by_class = metrics.per_class(["a", "a", "b"], ["a", "b", "c"], ["a", "b"])
    assert by_class["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "count": 2}


def test_several_classes_for_a_text() -> None:
    scores = metrics.multi_label([[1, 0], [1, 1]], [[1, 0], [0, 1]])
    assert scores["micro_f1"] == pytest.approx(0.8)
    assert scores["exact"] == 0.5


def test_numbers() -> None:
    assert metrics.regression([1.0, 3.0], [2.0, 3.0]) == {"mean_absolute_error": 0.5, "r2": 0.5}
    assert metrics.regression([1.0], [2.0]) == {"mean_absolute_error": 1.0}


@pytest.mark.parametrize(
    ("labels", "iobes", "expected"),
    [
        ("B-PER I-PER O B-LOC", False, {(0, 2): "PER", (3, 4): "LOC"}),
        ("B-PER B-PER", False, {(0, 1): "PER", (1, 2): "PER"}),
        ("O I-PER I-LOC", False, {(1, 2): "PER", (2, 3): "LOC"}),  # I- begins an entity where none is open
        ("B-PER I-PER E-PER S-PER S-LOC", True, {(0, 3): "PER", (3, 4): "PER", (4, 5): "LOC"}),
        ("O O", False, {}),
        ("", False, {}),
    ],
)
def test_entities_in_labels(labels: str, iobes: bool, expected: dict[tuple[int, int], str]) -> None:
    assert metrics.entities(labels.split(), iobes=iobes) == expected


def test_an_entity_is_right_with_its_name_and_all_its_words() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "O"]]
    lists = metrics.entity_lists(gold, predicted, iobes=False)
    assert metrics.entity_scores(*lists) == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
    assert metrics.entity_scores([OUTSIDE], [OUTSIDE])["f1"] == 0.0


def test_answers_are_compared_as_in_squad() -> None:
    gold = [["The cat"], ["a dog", "brown dog"], []]
    scores = metrics.answers(gold, ["cat.", "brown dog!", ""])
    assert scores == {"exact_match": 1.0, "f1": 1.0}
    scores = metrics.answers([["brown dog"], []], ["dog", "cat"])
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(1 / 3)}


def test_a_tie_counts_against_the_right_passage() -> None:
    passages = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert metrics.ranks(torch.tensor([[1.0, 0.1], [0.0, 3.0]]), passages, [0, 2]) == [2, 1]
    assert metrics.retrieval([2, 1]) == {"accuracy_at_1": 0.5, "mrr": 0.75}


def test_rankings() -> None:
    scores = metrics.ranking([[1, 0, 0], [1, 0], [0, 0], [1]], [[0.5, 0.9, 0.1], [2.0, 1.0], [1, 2], [1.0]])
    assert scores == {"mrr": 0.75, "ndcg_at_10": pytest.approx((0.63093 + 1) / 2, abs=1e-5), "queries": 2}
    assert metrics.ranking([[1, 0]], [[0.5, 0.5]])["mrr"] == 0.5  # a model that gives all one score finds nothing


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'xlmr-core\[finetune\]'"):
        metrics.single_label(["a"], ["a"])
