"""Labelled rows to examples: what each task makes of a row, and the errors for rows that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training.labelled_rows import Rows

from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training import FinetuneSettings, finetune
from xlmr_core.training.batches import Examples, Order
from xlmr_core.training.examples import IGNORED, Encoder, Example, count_classes
from xlmr_core.training.objective import Choices
from xlmr_core.training.objectives import objective_of
from xlmr_core.training.records import Record, identity_of, records_in


def record(**values: Any) -> Record:
    return Record("row 1", values, {})


@pytest.fixture
def encoder(tokenizer: XLMRobertaTokenizer) -> Encoder:
    return Encoder(tokenizer, 24, labels={"O": 0, "B-NOUN": 1, "I-NOUN": 2}, overlap=4)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a "quoted", text', "label": "1"}, {"text": "два\nрядки", "label": "2"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.csv").write_text('text,label\n"a ""quoted"", text",1\n\n"два\nрядки",2\n', encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a ""quoted"", text"\t1\n"два\nрядки"\t2\n', encoding="utf-8")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        assert [record.values for record in records_in(tmp_path / name)] == rows
        assert identity_of(tmp_path / name)["sha256"] == identity_of(rows)["sha256"]


def test_a_dataset_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names, "labels": [names]})
    saved = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0], "labels": [[1, 1], []]}, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    for source in (saved, tmp_path / "saved"):
        first, second = records_in(source)
        assert (first.label(), second.label()) == ("good", "bad")
        assert (first.texts("labels"), second.texts("labels")) == (["good", "good"], [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl has no rows"),
        ("a.csv", b"text,label\n", r"a\.csv has no rows"),
        ("a.csv", b"", r"a\.csv has no rows"),
        ("a.txt", b"text", r"a\.txt is not a csv, tsv or jsonl file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", b"[1]", r"a\.jsonl, line 1: expected a JSON object, got \[1\]"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl, line 1: byte 0xff is not UTF-8"),
        ("a.csv", b"text,label\nb\xff,1\n", r"a\.csv is not UTF-8"),
        ("a.csv", b"text,label\na,1,2\n", r"a\.csv, line 2: expected 2 cells, as in the header, got 3"),
        ("a.csv", b'text,label\n"a,1\n', r"a\.csv, line 2: unexpected end of data"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        identity_of(tmp_path / name)


def test_rows_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(ValueError, match="can be read only once"):
        identity_of(iter([{"text": "a"}]))
    with pytest.raises(ValueError, match="row 1: expected a mapping of fields, got 'a'"):
        identity_of(["a"])  # type: ignore[list-item]


# ---- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda r: r.text("title"), r"row 1: there is no field 'title'; the fields are text, .*--field title=NAME"),
        (lambda r: r.text("number"), "row 1: the field 'number' is 3.5, expected a text"),
        (lambda r: r.text("half"), "row 1: the field 'half' has half a surrogate pair"),
        (lambda r: r.label("number"), "row 1: the field 'number' is 3.5, expected texts or whole numbers"),
        (lambda r: r.label("true"), "the field 'true' is True, expected texts or whole"),
        (lambda r: r.label("empty"), "the field 'empty' is '', expected texts or whole numbers, none of them empty"),
        (lambda r: r.number("text"), "row 1: the field 'text' is 'words', expected a number"),
        (lambda r: r.number("true"), "the field 'true' is True, expected a number"),
        (lambda r: r.number("nan"), "the field 'nan' is 'nan', expected a finite number"),
        (lambda r: r.texts("number"), "the field 'number' is 3.5, expected a list of texts"),
        (lambda r: r.texts("broken"), "the field 'broken' is '.*, expected a list of texts"),
    ],
)
def test_a_field_of_another_type_is_an_error(read: Callable[[Record], Any], message: str) -> None:
    values = {"text": "words", "number": 3.5, "true": True, "nan": "nan", "broken": '["a"', "empty": ""}
    with pytest.raises(ValueError, match=message):
        read(Record("row 1", {**values, "half": "a\ud800"}, {}, is_of_table=True))


def test_a_bracket_begins_a_list_only_in_a_table() -> None:
    cell = '["a", "b"]'
    assert Record("row 1", {"texts": cell}, {}, is_of_table=True).texts("texts") == ["a", "b"]
    assert record(texts=cell).texts("texts") == [cell]


def test_the_classes_are_sorted_as_numbers_or_as_texts() -> None:
    def names(*labels: Any) -> list[str]:
        return list(count_classes([record(label=label) for label in labels], "label", many=False))

    assert names(10, 2, "1") == ["1", "2", "10"]
    assert names("b", 2, "a") == ["2", "a", "b"]
    with pytest.raises(ValueError, match="have only the class 'a' in the field 'label': expected at least two"):
        names("a", "a")


# ---- examples -------------------------------------------------------------------------------------------------------


def test_a_word_has_its_label_at_its_first_token(encoder: Encoder, tokenizer: XLMRobertaTokenizer) -> None:
    [example] = encoder.tag(record(words=["horse", "\x01", "sees", "dog."], labels=["B-NOUN", "O", "O", "I-NOUN"]))
    starts = [token.start for token in tokenizer.tokenize("horse \x01 sees dog.")]
    wanted = [float(IGNORED)] * len(starts)
    for start, label in ((0, 1.0), (8, 0.0), (13, 2.0)):  # the control character has no token
        wanted[starts.index(start)] = label
    assert example.target == [IGNORED, *wanted, IGNORED]
    assert len(example.sequences[0]) == len(example.target)


def test_a_long_row_of_words_is_parted_between_words(encoder: Encoder) -> None:
    words = ["horse", "sees", "dog."] * 9
    windows = list(encoder.tag(record(words=words, labels=["B-NOUN", "O", "B-NOUN"] * 9)))
    assert len(windows) > 1
    labels = [number for window in windows for number in window.target if number != IGNORED]
    assert labels == [1.0, 0.0, 1.0] * 9
    for window in windows:
        assert len(window.sequences[0]) <= 24
        assert window.target[1] != IGNORED


def test_an_answer_is_found_in_each_window_that_has_it(encoder: Encoder, tokenizer: XLMRobertaTokenizer) -> None:
    context = "cat sees dog. " * 5 + "bird hears fish. " + "cat sees dog. " * 5
    start = context.index("bird hears")
    windows = list(encoder.answer(record(question="cat", context=context, answer="bird hears", start=start)))
    assert len(windows) > 3
    found = [window for window in windows if window.target != [0, 0]]
    assert found
    for window in found:
        first, last = map(int, window.target)
        assert tokenizer.decode(window.sequences[0][first : last + 1]) == "bird hears"
    assert all("bird hears" not in tokenizer.decode(window.sequences[0]) for window in windows if window not in found)


def test_squad_answers_and_no_answer(encoder: Encoder) -> None:
    question = {"question": "cat", "context": "cat sees dog."}
    plain = list(encoder.answer(record(**question, answer="sees", start="4")))
    assert plain[0].target != [0, 0]
    assert list(encoder.answer(record(**question, answers={"text": ["sees"], "answer_start": [4]}))) == plain
    for none in ({}, {"answer": "", "start": ""}, {"answers": {"text": [], "answer_start": []}}):
        assert next(encoder.answer(record(**question, **none))).target == [0, 0]


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("tag", {"words": ["a", "b"], "labels": ["O"]}, "row 1: there are 2 words and 1 labels: expected one for each"),
        ("tag", {"words": ["a b"], "labels": ["O"]}, "row 1: 'a b' is not one word"),
        (
            "tag",
            {"words": ["cat"], "labels": ["B-X"]},
            "row 1: the field 'labels' has the class 'B-X', expected one of",
        ),
        (
            "classify",
            {"text": "a", "label": "x"},
            "row 1: the field 'label' has the class 'x', expected one of .* O, B",
        ),
        ("classify", {"text": "cat sees " * 20, "label": "O"}, "row 1: the text has .* tokens, .* at most 24 fit"),
        (
            "answer",
            {"question": "q", "context": "cat", "answer": "dog", "start": 0},
            "'dog' does not stand at character 0",
        ),
        ("answer", {"question": "q", "context": "cat", "answer": "t", "start": -1}, "does not stand at character -1"),
        (
            "answer",
            {"question": "q", "context": "cat", "answer": "t", "start": 1.5},
            "expected the number of a character",
        ),
        ("answer", {"question": "q", "context": "cat", "answer": "t"}, "there is no field 'start'"),
        ("answer", {"question": "", "context": "cat"}, "the field 'question' is '', expected a text with words"),
        ("answer", {"question": "cat " * 30, "context": "cat"}, "leaves 0 of 24 for the context"),
        ("answer", {"question": "q", "context": "cat", "answers": ["cat"]}, "expected lists of equal length"),
        (
            "rerank",
            {"query": "q", "passage": "p", "label": 2},
            "the field 'label' is 2, expected a relevance from 0 to",
        ),
        ("rerank", {"query": "q", "positive": ["p"], "negative": []}, "expected at least one passage that is not"),
        ("embed", {"anchor": "a"}, "there is no field 'positive'"),
    ],
)
def test_a_row_that_the_task_cannot_use_is_an_error(
    task: str, values: dict[str, Any], message: str, encoder: Encoder
) -> None:
    kind = objective_of(task, "single_label_classification")
    with pytest.raises(ValueError, match=message):
        list(kind(encoder, Choices()).examples(record(**values)))


# ---- batches --------------------------------------------------------------------------------------------------------


def test_each_example_is_seen_once_in_an_epoch_within_the_budget() -> None:
    examples = Examples(Example([[0] * (1 + number % 7)], [number]) for number in range(100))
    order = Order(examples, batch_tokens=20, batches_per_step=2, epochs=2, seed=4)
    steps = [order.at(step) for step in range(order.steps)]
    first, second = steps[: order.epoch_ends[0]], steps[order.epoch_ends[0] :]
    for epoch in (first, second):
        assert sorted(index for step in epoch for batch in step for index in batch) == list(range(100))
    assert first != second
    assert all(sum(map(examples.tokens, batch)) <= 20 for step in steps for batch in step)
    assert steps == [
        Order(examples, batch_tokens=20, batches_per_step=2, epochs=2, seed=4).at(i) for i in range(len(steps))
    ]
    batch = examples.batch([5, 0])
    assert batch.lengths.tolist() == [6, 1]
    assert batch.targets.tolist() == [5.0, 0.0]


# ---- a run that cannot begin ----------------------------------------------------------------------------------------

Change = dict[str, Any]


@pytest.mark.parametrize(
    ("rows", "held_out", "changes", "message"),
    [
        ([], None, {}, "the iterable has no rows"),
        ([{"text": "a", "label": 1}], None, {}, "only the class '1'"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], [{"text": "a", "label": 3}], {}, "has the class '3'"),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 2}],
            None,
            {"patience": 2},
            "patience and metric need an eval",
        ),
        ([{"query": "a", "passage": "b", "label": 1}], None, {"task": "rerank"}, "have only one relevance"),
        (
            [{"query": "a", "passage": "b", "label": 1}, {"query": "a", "positive": "b", "negative": "c"}],
            None,
            {"task": "rerank"},
            "some training rows have a passage and some a group",
        ),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(
    rows: Rows, held_out: Rows | None, changes: Change, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    settings = FinetuneSettings(**{"task": "classify", **changes})
    with pytest.raises(ValueError, match=message):
        finetune(rows, tmp_path / "out", settings, held_out=held_out, model=checkpoint, device="cpu")
    assert not (tmp_path / "out").exists()
