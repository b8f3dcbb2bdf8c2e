"""Classification and reranking against transformers' pipelines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlmr_core.tasks import Classify, Rerank

KIND = "XLMRobertaForSequenceClassification"
TOLERANCE = 1e-6  # of a score: the model is bit-equal when padded; packed rows are summed in another order
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(KIND, id2label=LABELS, label2id={name: i for i, name in LABELS.items()})


@pytest.fixture(scope="module")
def classify(folder: Path) -> Classify:
    return Classify.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path, make_pipeline: Callable[..., Any]) -> Any:
    return make_pipeline("text-classification", folder, KIND)


def test_labels_and_scores_are_those_of_transformers(classify: Classify, theirs: Any, texts: list[str]) -> None:
    expected = theirs(texts, top_k=None)
    for text, ours, wanted in zip(texts, classify.stream(texts), expected, strict=True):
        assert [x.label for x in ours] == [x["label"] for x in wanted], text
        assert [x.score for x in ours] == pytest.approx([x["score"] for x in wanted], abs=TOLERANCE)


def test_pairs_and_activations(classify: Classify, theirs: Any, texts: list[str]) -> None:
    pairs = list(zip(texts[:40], texts[40:80], strict=True))
    wanted = theirs([{"text": a, "text_pair": b} for a, b in pairs], top_k=None, function_to_apply="sigmoid")
    for ours, expected in zip(classify.batch(pairs, activation="sigmoid"), wanted, strict=True):
        assert [x.score for x in ours] == pytest.approx([x["score"] for x in expected], abs=TOLERANCE)
    assert [x.score for x in classify("a", activation="none", top_k=2)] == pytest.approx(
        [x["score"] for x in theirs("a", top_k=2, function_to_apply="none")], abs=1e-5
    )


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", "single_label_classification"])
def test_the_problem_type_of_the_config_is_followed(
    make_checkpoint: Callable[..., Path], make_pipeline: Callable[..., Any], problem_type: str
) -> None:
    folder = make_checkpoint(KIND, num_labels=2, problem_type=problem_type)
    wanted = make_pipeline("text-classification", folder, KIND)("Hello", top_k=None)
    ours = Classify.from_pretrained(folder)("Hello")
    assert [x.score for x in ours] == pytest.approx([x["score"] for x in wanted], abs=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_is_that_of_transformers(
    folder: Path, classify: Classify, make_pipeline: Callable[..., Any], texts: list[str], multi_label: bool
) -> None:
    pipeline = make_pipeline("zero-shot-classification", folder, KIND)
    labels = ["politics", "спорт", "天气"]
    for text in texts[1:60:3]:
        if not text.strip():
            continue
        ours = classify.zero_shot(text, labels, template="This is about {}.", multi_label=multi_label)
        wanted = pipeline(text, labels, hypothesis_template="This is about {}.", multi_label=multi_label)
        assert list(ours.labels) == wanted["labels"]
        assert ours.scores == pytest.approx(wanted["scores"], abs=TOLERANCE)


def test_zero_shot_streams_and_passes_over_what_the_model_cannot_take(classify: Classify, texts: list[str]) -> None:
    labels = ["politics", "спорт"]
    short = [text for text in texts[1:40] if text.strip()]
    refused: list[str] = []
    found = list(
        classify.zero_shot_stream(
            [*short, "word " * 600], labels, batch_tokens=200, on_error=lambda text, error: refused.append(str(error))
        )
    )
    assert len(refused) == 1
    for text, result in zip(short, found, strict=True):
        expected = classify.zero_shot(text, labels)
        assert (result.sequence, result.labels) == (text, expected.labels)
        assert result.scores == pytest.approx(expected.scores, abs=1e-6)


def test_a_reranker_orders_passages_by_its_logit(
    make_checkpoint: Callable[..., Path], make_pipeline: Callable[..., Any], texts: list[str]
) -> None:
    folder = make_checkpoint(KIND, num_labels=1)
    passages = texts[20:60]
    wanted = make_pipeline("text-classification", folder, KIND)(
        [{"text": "who?", "text_pair": passage} for passage in passages], function_to_apply="none", top_k=None
    )
    logits = [x[0]["score"] for x in wanted]
    ours = Rerank.from_pretrained(folder)("who?", passages)
    assert [x.logit for x in ours] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)
    assert [x.index for x in ours] == sorted(range(len(passages)), key=lambda i: -logits[i])
    assert all(x.text == passages[x.index] for x in ours)


def test_answers_do_not_depend_on_the_company(classify: Classify, texts: list[str]) -> None:
    some = texts[:50]
    together = classify.batch(some)
    alone = [classify(text) for text in some]
    small = classify.batch(some, batch_tokens=7)
    for a, b, c in zip(together, alone, small, strict=True):
        assert [x.label for x in a] == [x.label for x in b] == [x.label for x in c]
        assert [x.score for x in a] == pytest.approx([x.score for x in b], abs=TOLERANCE)
        assert [x.score for x in a] == pytest.approx([x.score for x in c], abs=TOLERANCE)


def test_special_tokens_in_a_text_are_text(classify: Classify, texts: list[str]) -> None:
    """transformers lets a text end itself: "good </s></s> bad" is a pair there."""
    row = classify._row("good</s> <pad>")
    assert row.ids.count(classify.tokenizer.eos_token_id) == 1
    assert classify.tokenizer.pad_token_id not in row.ids


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task: task("a", activation="relu"), "activation 'relu' is not one of softmax, sigmoid, none"),
        (lambda task: task("word " * 600), r"input 0: the text has \d+ tokens.*truncation=True"),
        (lambda task: task(("a", "b", "c")), "expected a text, or a tuple of two texts"),
        (lambda task: task.zero_shot("a", []), "no candidate labels"),
        (lambda task: task.zero_shot("a", ["b"], template="x"), "has no {} where the label goes"),
    ],
)
def test_bad_input_is_named(classify: Classify, call: Callable[[Classify], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(classify)


def test_rerank_refuses_a_classifier_and_an_empty_list(make_checkpoint: Callable[..., Path], folder: Path) -> None:
    with pytest.raises(ValueError, match="a reranker has one label, but the model has 3"):
        Rerank.from_pretrained(folder)
    rerank = Rerank.from_pretrained(make_checkpoint(KIND, num_labels=1))
    with pytest.raises(ValueError, match="at least one passage"):
        rerank("query", [])


def test_zero_shot_needs_a_checkpoint_trained_on_inference(make_checkpoint: Callable[..., Path]) -> None:
    classify = Classify.from_pretrained(make_checkpoint(KIND, num_labels=2))
    with pytest.raises(ValueError, match=r"the model's labels are LABEL_0, LABEL_1: .*natural language inference"):
        classify.zero_shot("a", ["b"])
