"""The ids of a server are judged before its vectors, so that a fault of its tokenizer is named with certainty."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import Answer, serving

from xlmr_core.cli import main
from xlmr_core.served import Pipeline, PipelineFault, probe_texts
from xlmr_core.served.client import Client, ServerError
from xlmr_core.served.faults import ID_FAULTS, TEXT_FAULTS, with_faults
from xlmr_core.served.ids import UNCUT, judge_ids

Serve = Callable[[Answer], str]
TEXTS = [text for texts in probe_texts() for text in texts]


def rows(pipeline: Pipeline, *faults: PipelineFault, special: bool = False) -> list[list[int]]:
    """The ids of a tokenizer that cuts nothing."""
    steps = replace(with_faults(pipeline, faults).right, specials_in_text=special)
    if not any("truncated" in fault.name for fault in faults):
        steps = replace(steps, max_tokens=UNCUT)
    return [pipeline.row((text,), steps) for text in TEXTS]


@pytest.mark.parametrize("special", [False, True])
def test_right_ids_raise_no_alarm(vectors_of: Pipeline, special: bool) -> None:
    whole = judge_ids(vectors_of, TEXTS, rows(vectors_of, special=special))
    cut = judge_ids(vectors_of, TEXTS, [vectors_of.row((text,), vectors_of.right) for text in TEXTS])
    assert whole.ok
    assert cut.ok
    assert str(cut) == f"ids: right for all {len(TEXTS)} texts"
    assert any("are read as tokens" in note for note in whole.notes) == special


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("fault", [*TEXT_FAULTS, *ID_FAULTS], ids=lambda fault: fault.name)
def test_every_fault_of_a_tokenizer_is_named(vectors_of: Pipeline, fault: PipelineFault, special: bool) -> None:
    found = rows(vectors_of, fault, special=special)
    verdict = judge_ids(vectors_of, TEXTS, found)
    if not verdict.ok:  # a checkpoint without a prompt cannot lack it
        assert fault.name in verdict.names, verdict


def test_two_faults_are_named_together(vectors_of: Pipeline) -> None:
    first, second = (fault for fault in (*TEXT_FAULTS, *ID_FAULTS) if fault.name in ("lower_cased", "end_missing"))
    verdict = judge_ids(vectors_of, TEXTS, rows(vectors_of, first, second))
    assert verdict.names == ("lower_cased + end_missing",)


def test_marks_that_tokenizers_loses_or_does_not_compose_are_named(vectors_of: Pipeline) -> None:
    texts = ["e\u0302\u0301", "\u0928\u093c", "one e\u0301 two"]  # the second tone is lost; two marks stay two
    [fault] = (fault for fault in TEXT_FAULTS if fault.name == "normalizer_by_grapheme")
    found = [vectors_of.row((text,), fault.made(vectors_of.right)) for text in texts]
    verdict = judge_ids(vectors_of, texts, found)
    assert verdict.wrong == (0, 1)
    assert verdict.names == ("normalizer_by_grapheme",)


@pytest.mark.parametrize("normalizer", ["none", "spaces kept", "nfkc", "graphemes"])
def test_special_tokens_in_a_text_are_tokens_under_every_normaliser(vectors_of: Pipeline, normalizer: str) -> None:
    right = replace(vectors_of.right, specials_in_text=True)
    text = ("one<mask>two</s>",)
    assert vectors_of.row(text, replace(right, normalizer=normalizer)) == vectors_of.row(text, right)


def test_ids_that_no_fault_gives_are_unexplained(vectors_of: Pipeline) -> None:
    found = rows(vectors_of)
    found[1] = [0, 77, 2]
    verdict = judge_ids(vectors_of, TEXTS, found)
    assert verdict.wrong == (1,)
    assert not verdict.candidates
    assert "'Two cats sleep.' differs from id 1 on" in str(verdict)
    assert "unexplained: no fault gives these ids" in str(verdict)
    with pytest.raises(ValueError, match="got 1 rows for 2 texts"):
        judge_ids(vectors_of, TEXTS[:2], found[:1])


@pytest.mark.parametrize("api", ["tei", "llamacpp"])
def test_a_server_is_asked_for_ids(serve: Serve, vectors_of: Pipeline, api: str) -> None:
    client = Client(serve(serving(vectors_of, vectors_of.right)), api)
    assert client.ids(TEXTS[:3]) == rows(vectors_of)[:3]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_the_route_gives_no_ids(serve: Serve, status: int) -> None:
    assert Client(serve(lambda _path, _body: (status, b"no such route")), "tei").ids(["a"]) is None
    assert Client("http://127.0.0.1:1", "openai").ids(["a"]) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"tokens": 3}', "does not hold a list of numbers"),
        (b'{"tokens": []}', "does not hold a list of numbers"),
        (b'{"tokens": [0, "5", 2]}', "'5' where a number is expected"),
        (b'{"tokens": [0, 5.5, 2]}', "where ids are expected"),
        (b'{"tokens": [0, -5, 2]}', "where ids are expected"),
        (b'{"tokens": [0, NaN, 2]}', "NaN, infinity, or a number too large"),
        (b'{"ids": [0, 2]}', "another form"),
        (b"[]", "another form"),
    ],
)
def test_ids_that_are_none_end_in_a_clear_error(serve: Serve, content: bytes, expected: str) -> None:
    with pytest.raises(ServerError, match=expected):
        Client(serve(lambda _path, _body: (200, content)), "llamacpp").ids(["a"])


def test_the_probe_names_the_tokenizer_and_then_judges_the_vectors(
    serve: Serve, vectors_of: Pipeline, embedder: Path
) -> None:
    [lower] = (fault for fault in TEXT_FAULTS if fault.name == "lower_cased")
    steps = replace(lower.made(vectors_of.right), pooling=("cls",))
    url = serve(serving(vectors_of, steps))
    result = CliRunner().invoke(main, ["parity", "probe", url, "--model", str(embedder), "--api", "tei", "--json"])
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["ids"]["names"] == ["lower_cased"]
    assert [one["name"] for one in found["candidates"]] == ["pooled_first"]
    assert not found["ok"]


def test_vectors_of_unknown_ids_are_not_judged(serve: Serve, vectors_of: Pipeline, embedder: Path) -> None:
    right = serving(vectors_of, vectors_of.right)

    def shuffled(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        return (200, b'{"tokens": [0, 9, 8, 7, 2]}') if path == "/tokenize" else right(path, body)

    arguments = ["parity", "probe", serve(shuffled), "--model", str(embedder), "--api", "llamacpp"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "ids: wrong for" in result.stdout
    assert "unexplained: no fault gives these ids" in result.stdout
    assert "the values were not judged" in result.stdout
