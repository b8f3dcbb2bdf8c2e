"""Each fault, switched on in a server on this machine, is named; right servers raise no alarm."""

import copy
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from loopback import Answer, serving
from safetensors.torch import save_file

from xlmr_core import XLMRobertaModel
from xlmr_core.cli import main
from xlmr_core.cli.parity_probe import ask_scores, ask_vectors
from xlmr_core.parity.int8 import INT8, quantise
from xlmr_core.parity.variants import variant
from xlmr_core.served import Pipeline, Steps, Verdict, judge, probe_pairs, probe_texts
from xlmr_core.served.client import APIS, Client, ServerError
from xlmr_core.served.faults import PIPELINE_FAULTS, PipelineFault, faults_for, with_faults
from xlmr_core.served.files import read_inputs, read_values

PATIENT = 600  # seconds, for a machine that does other work, too
Serve = Callable[[Answer], str]
EMBED_APIS = tuple(APIS)
RERANK_APIS = ("tei", "llamacpp")
INPUTS = [(text,) for texts in probe_texts() for text in texts]
PAIRS = [(query, passage) for query, passages in probe_pairs() for passage in passages]


def probed(serve: Serve, pipeline: Pipeline, steps: Steps, api: str, **options: Any) -> Verdict:
    """The verdict on a server that takes these steps."""
    client = Client(serve(serving(pipeline, steps)), api, "small")
    inputs, values, batches = ask_vectors(client) if pipeline.kind == "embedding" else ask_scores(client, raw=False)
    return judge(pipeline, inputs, values, batches=batches, **options)


def fault_named(pipeline: Pipeline, name: str) -> PipelineFault:
    return next(fault for fault in faults_for(pipeline) if fault.name == name)


QUICK = [
    ("pooled_first", "openai"),
    ("positions_from_zero", "tei"),
    ("not_normalized", "llamacpp"),
    ("normalizer_missing", "ollama"),
    ("pooled_over_padding", "openai"),
    ("truncated_at_64", "tei"),
    ("prompt_1_of_checkpoint", "llamacpp"),
    ("weights_int8", "ollama"),
]


@pytest.mark.parametrize(("name", "api"), QUICK)
def test_a_fault_of_a_server_is_named(serve: Serve, vectors_of: Pipeline, name: str, api: str) -> None:
    steps = fault_named(vectors_of, name).made(vectors_of.right)
    verdict = probed(serve, vectors_of, steps, api)
    assert name in verdict.names, verdict
    assert name in str(verdict)
    assert json.loads(verdict.to_json())["candidates"]


@pytest.mark.parametrize(
    ("name", "api"), [("sigmoid_twice", "tei"), ("separator_end_start", "llamacpp"), ("classifier_tanh_missing", "tei")]
)
def test_a_fault_of_a_reranker_is_named(serve: Serve, scores_of: Pipeline, name: str, api: str) -> None:
    steps = fault_named(scores_of, name).made(scores_of.right)
    assert name in probed(serve, scores_of, steps, api).names


def _silu(model: XLMRobertaModel) -> None:
    for layer in model.layers:
        layer.feed_forward.activation = torch.nn.SiLU()


def _half_of_the_keys(model: XLMRobertaModel) -> None:
    """The bias of the keys has no effect on the result."""
    for layer in model.layers:
        layer.attention.k_proj.weight.data *= 0.5


def _values_transposed(model: XLMRobertaModel) -> None:
    weight = model.layers[1].attention.v_proj.weight
    weight.data = weight.data.T.contiguous()


CHANGED_ENCODERS = {
    "the activation is silu (in every layer)": _silu,
    "v_proj.weight is transposed (in layer 1 only)": _values_transposed,
    "k_proj.weight is multiplied by 0.5 (in every layer)": _half_of_the_keys,
}


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=[pytest.mark.slow] * (n > 0)) for n, words in enumerate(CHANGED_ENCODERS)]
)
def test_a_change_of_the_encoder_that_no_list_has_is_named(vectors_of: Pipeline, words: str) -> None:
    changed = copy.deepcopy(vectors_of.model)
    CHANGED_ENCODERS[words](changed)
    batches = [list(range(start, start + 6)) for start in (0, 6)]
    values = torch.cat([vectors_of.run([INPUTS[text] for text in batch], model=changed) for batch in batches])
    verdict = judge(vectors_of, INPUTS[:12], values.float(), batches=batches, budget=PATIENT)
    assert any(words in name for name in verdict.names), verdict
    assert len(verdict.names) <= 3
    assert all(candidate.precision == "float32" for candidate in verdict.candidates)


@pytest.mark.parametrize("kind", ["embedding", "score"])
def test_every_protocol_carries_the_same_numbers(
    serve: Serve, vectors_of: Pipeline, scores_of: Pipeline, kind: str
) -> None:
    """So a fault that is named through one protocol is named through each."""
    pipeline = vectors_of if kind == "embedding" else scores_of
    apis = EMBED_APIS if kind == "embedding" else RERANK_APIS
    for name in ("lower_cased", "pooled_first" if kind == "embedding" else "sigmoid_twice"):
        url = serve(serving(pipeline, fault_named(pipeline, name).made(pipeline.right)))
        clients = [Client(url, api, "small") for api in apis]
        asked = [ask_vectors(client) if kind == "embedding" else ask_scores(client, raw=False) for client in clients]
        first, *others = [values for _, values, _ in asked]
        assert all(torch.equal(values, first) for values in others), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "score"])
def test_every_fault_of_a_server_is_named_or_changes_nothing(
    serve: Serve, vectors_of: Pipeline, scores_of: Pipeline, kind: str
) -> None:
    pipeline = vectors_of if kind == "embedding" else scores_of
    apis = EMBED_APIS if kind == "embedding" else RERANK_APIS
    for number, fault in enumerate(faults_for(pipeline)):
        for special in (False, True):  # special tokens in a text as text, and as tokens
            right = pipeline.with_right(specials_in_text=special).right
            try:
                verdict = probed(serve, pipeline, fault.made(right), apis[number % len(apis)], budget=0)
            except ServerError:  # the server could not make this fault: the model has no such part
                continue
            assert fault.name in verdict.names or verdict.precision == "float32", f"{fault.name}: {verdict}"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_right_run_raises_no_alarm(vectors_of: Pipeline, precision: str) -> None:
    dtype = getattr(torch, precision)
    model = variant(vectors_of.model, dtype, "sdpa", "cpu")
    order = sorted(range(12), key=lambda number: -number % 7)
    inputs = [INPUTS[number] for number in order]
    values = torch.cat([vectors_of.run(inputs[start : start + 3], model=model) for start in range(0, len(order), 3)])
    verdict = judge(vectors_of, inputs, values)
    assert verdict.ok, verdict
    assert verdict.precision is not None
    assert not verdict.candidates


@pytest.mark.parametrize("special", [False, True])
def test_a_right_server_raises_no_alarm_one_by_one(vectors_of: Pipeline, special: bool) -> None:
    right = vectors_of.with_right(specials_in_text=special).right
    values = torch.cat([vectors_of.run([one], right) for one in INPUTS]).float()
    verdict = judge(vectors_of, INPUTS, values)
    assert verdict.precision == "float32"
    assert any("are read as tokens" in note for note in verdict.notes) == special


def test_a_right_reranker_raises_no_alarm(serve: Serve, scores_of: Pipeline) -> None:
    assert probed(serve, scores_of, scores_of.right, "tei").precision == "float32"


@pytest.mark.slow
def test_two_faults_are_named_together(vectors_of: Pipeline) -> None:
    short = INPUTS[:4]
    first, second = (fault_named(vectors_of, name) for name in ("pooled_first", "lower_cased"))
    values = vectors_of.run(short, second.made(first.made(vectors_of.right)))
    verdict = judge(vectors_of, short, values)
    assert {"lower_cased", "pooled_first"} in [set(name.split(" + ")) for name in verdict.names], verdict


def test_what_no_fault_gives_is_unexplained(vectors_of: Pipeline) -> None:
    values = vectors_of.run(INPUTS[:6])
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).double()
    for size in (1e-4, 0.05, 1.0):
        verdict = judge(vectors_of, INPUTS[:6], values + size * noise / values.shape[1] ** 0.5, budget=0)
        assert not verdict.candidates, verdict
        assert size < 0.01 or not verdict.ok, verdict


def test_faults_that_give_the_same_numbers_come_with_a_text_that_tells_them_apart(vectors_of: Pipeline) -> None:
    inputs = [("The cat sees the dog.",), ("Two cats sleep.",)]
    fault = fault_named(vectors_of, "ids_off_by_one")
    verdict = judge(vectors_of, inputs, vectors_of.run(inputs, fault.made(vectors_of.right)))
    assert {"ids_off_by_one", "ids_without_offset"} <= set(verdict.names)
    assert "tells it from" in str(verdict)


def test_faults_that_only_left_padding_tells_apart_say_so(vectors_of: Pipeline) -> None:
    inputs = [("The cat sees the dog.",), ("Two cats sleep, and lengths differ.",)]
    fault = fault_named(vectors_of, "positions_from_zero")
    verdict = judge(vectors_of, inputs, vectors_of.run(inputs, fault.made(vectors_of.right)))
    assert {"positions_from_zero", "position_rows_shifted"} <= set(verdict.names)
    assert [candidate.padding for candidate in verdict.candidates[1:]] == ["left"]
    assert "only a batch that is padded on the left tells it from" in str(verdict)


def test_int8_is_a_verdict_before_pairs_are_tried(vectors_of: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = INPUTS[:6]
    model = variant(vectors_of.model, torch.float32, "eager", "cpu")
    quantise(model, "int8")
    values = vectors_of.run(inputs) + 0.9 * (vectors_of.run(inputs, model=model) - vectors_of.run(inputs))
    monkeypatch.setattr("xlmr_core.served.search.FACTOR", 10.0)
    verdict = judge(vectors_of, inputs, values)
    assert verdict.precision == "bfloat16"
    assert "int8 gives errors as large on these texts, too" in verdict.notes
    monkeypatch.setattr("xlmr_core.served.search.FACTOR", 1.0)  # three times bfloat16 is as coarse as int8 here
    tried: list[int] = []
    verdict = judge(vectors_of, inputs, values, tick=tried.append)
    assert verdict.precision in INT8
    assert len(tried) <= len(faults_for(vectors_of)), "pairs were tried"
    assert "right, quantised about as int8" in str(verdict)
    assert "pairs of faults were not tried" in str(verdict)
    monkeypatch.setattr("xlmr_core.served.search.INT8_LEAST", 10.0)  # as if the errors were far smaller
    verdict = judge(vectors_of, inputs, values, budget=0)
    assert verdict.precision in INT8
    assert "not tried" not in str(verdict)


def test_a_few_wrong_texts_are_not_noise(vectors_of: Pipeline) -> None:
    """The noise of half precision is as large at all texts; here long texts lose </s>, and nothing has length 1."""
    inputs = [*INPUTS[:8], *INPUTS[17:19]]
    made = [fault_named(vectors_of, name) for name in ("not_normalized", "truncated_with_end")]
    half = variant(vectors_of.model, torch.float16, "eager", "cpu")
    steps = with_faults(vectors_of, made).right
    exact = torch.cat([vectors_of.run([one], steps) for one in inputs])
    noisy = torch.cat([vectors_of.run([one], steps, half) for one in inputs]).double()
    values = exact + 0.1 * (noisy - exact)
    verdict = judge(vectors_of, inputs, values, budget=30, batches=[[index] for index in range(len(inputs))])
    assert [set(name.split(" + ")) for name in verdict.names] == [{"not_normalized", "truncated_with_end"}], verdict


def test_noise_is_relative_to_the_vectors_that_are_judged(vectors_of: Pipeline) -> None:
    """Vectors that were not brought to length 1 are several times as long here."""
    fault = fault_named(vectors_of, "not_normalized")
    inputs = [*INPUTS[:4], INPUTS[0]]
    values = vectors_of.run(inputs, fault.made(vectors_of.right))
    allowed = judge(vectors_of, inputs, values).allowed["float32"]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).double()
    noisy = values + 0.4 * allowed * noise / noise.norm(dim=1, keepdim=True) * values.norm(dim=1, keepdim=True)
    verdict = judge(vectors_of, inputs, noisy)
    assert verdict.candidates[0].name == "not_normalized"
    assert verdict.candidates[0].precision == "float32"
    assert not verdict.notes


def test_the_same_text_with_two_vectors_is_reported(vectors_of: Pipeline) -> None:
    inputs = [INPUTS[0], INPUTS[1], INPUTS[0]]
    values = vectors_of.run(inputs)
    values[2] = values[1]
    verdict = judge(vectors_of, inputs, values, budget=0)
    assert not verdict.ok
    assert any("texts 0 and 2 are the same" in note for note in verdict.notes)


def test_normalizing_twice_changes_nothing(vectors_of: Pipeline) -> None:
    once = vectors_of.run(INPUTS[:3])
    torch.testing.assert_close(torch.nn.functional.normalize(once, dim=-1), once, rtol=0, atol=1e-15)


def test_the_right_pipeline_is_that_of_the_tasks(vectors_of: Pipeline, embedder: Path, scores_of: Pipeline) -> None:
    from xlmr_core.tasks.embed import Embed

    texts = [text for [text] in INPUTS]
    ours = Embed.from_pretrained(embedder, dtype=torch.float64).batch(texts, truncation=True)
    found = torch.cat([vectors_of.run([one]) for one in INPUTS])
    torch.testing.assert_close(found.float(), ours.float(), rtol=0, atol=1e-6)
    assert vectors_of.right.max_tokens == 100
    assert scores_of.right.activations == ("sigmoid",)


def test_names_are_unique_and_threads_are_addresses() -> None:
    names = [fault.name for fault in PIPELINE_FAULTS]
    assert len(names) == len(set(names))
    assert all(fault.thread is None or fault.thread.startswith("https://github.com/") for fault in PIPELINE_FAULTS)


def test_a_fault_of_long_texts_is_sought_in_short_ones_first(
    vectors_of: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most faults change short texts, too: a small batch rejects them for a fraction of the work."""
    batches = [[0, 1], [2, 3]]
    inputs = [INPUTS[0], INPUTS[1], INPUTS[-2], INPUTS[-1]]  # the last but one is cut
    steps = fault_named(vectors_of, "truncated_with_end").made(vectors_of.right)
    values = torch.cat([vectors_of.run([inputs[index] for index in batch], steps) for batch in batches])
    rows: list[int] = []
    encoded = Pipeline.encoded

    def watched(self: Pipeline, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rows.append(ids.shape[1])
        return encoded(self, ids, *arguments)

    monkeypatch.setattr(Pipeline, "encoded", watched)
    verdict = judge(vectors_of, inputs, values, batches=batches)
    assert verdict.names == ("truncated_with_end",)
    long = sum(width > 50 for width in rows)
    assert 2 * long < len(rows), f"{long} of {len(rows)} batches were long"


# ---- hostile servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (500, b"<html>out of memory</html>", "status 500: .*out of memory"),
        (302, b"", "redirects to .*example.invalid"),
        (200, b"not JSON", "did not answer with JSON"),
        (200, b"[" * 100_000, "did not answer with JSON"),
        (200, b'{"data": 3}', "another form"),
        (200, b'[[1.0, "two"], [1.0, 2.0]]', "'two' where a number is expected"),
        (200, b"[[1.0, true], [1.0, 2.0]]", "True where a number is expected"),
        (200, b"[[NaN, 1.0], [1.0, 2.0]]", "NaN, infinity, or a number too large"),
        (200, b"[[1e999, 1.0], [1.0, 2.0]]", "NaN, infinity, or a number too large"),
        (200, b"[[1.0, 2.0]]", "1 results for 2 texts"),
        (200, b"[[], [1.0]]", "does not hold a list of numbers"),
    ],
)
def test_a_hostile_server_ends_in_a_clear_error(serve: Serve, status: int, content: bytes, expected: str) -> None:
    client = Client(serve(lambda _path, _body: (status, content)), "tei")
    with pytest.raises(ServerError, match=expected):
        client.vectors(["a", "b"])


def test_vectors_of_two_sizes_end_in_a_clear_error(serve: Serve) -> None:
    url = serve(lambda _path, body: (200, json.dumps([[1.0] * (3 + len(text)) for text in body["inputs"]]).encode()))
    with pytest.raises(ValueError, match=r"vectors of .* numbers: one size is expected"):
        ask_vectors(Client(url, "tei"))


def test_a_slow_server_ends_in_a_clear_error(serve: Serve) -> None:
    def slow(_path: str, _body: Any) -> tuple[int, bytes]:
        time.sleep(0.3)
        return 200, b"[]"

    with pytest.raises(ServerError, match=r"did not answer within 0.1 s"):
        Client(serve(slow), "tei", timeout=0.1).vectors(["a"])


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n["])
def test_a_server_that_sends_a_byte_now_and_then_ends_in_a_clear_error(start: bytes) -> None:
    """Every byte that comes starts the time-out of a socket again."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connected, _ = listening.accept()
            with connected, suppress(OSError):
                connected.sendall(start)
                while not ended.wait(0.02):
                    connected.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(ServerError, match=r"did not answer within 0.2 s"):
                Client(url, "tei", timeout=0.2).vectors(["a"])
            assert time.monotonic() - began < 5
        finally:
            ended.set()
            thread.join()


def test_a_large_answer_ends_in_a_clear_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlmr_core.served.client.LARGEST_RESPONSE", 1000)
    with pytest.raises(ServerError, match="more than 1000 bytes"):
        Client(serve(lambda _path, _body: (200, b" " * 5000)), "tei").vectors(["a"])


def test_an_address_that_nothing_answers_ends_in_a_clear_error() -> None:
    with pytest.raises(ServerError, match="cannot be asked"):
        Client("http://127.0.0.1:1", "openai", timeout=2).vectors(["a"])
    for url in ("file:///etc/passwd", "localhost:8080", "http://"):
        with pytest.raises(ServerError, match="is not an address"):
            Client(url, "openai")


def test_wrong_sizes_are_refused(vectors_of: Pipeline) -> None:
    with pytest.raises(ValueError, match="gives 32 numbers for a text, got 31"):
        judge(vectors_of, ["a"], torch.zeros(1, 31))
    with pytest.raises(ValueError, match="for each of 2 texts"):
        judge(vectors_of, ["a", "b"], torch.zeros(1, 32))
    with pytest.raises(ValueError, match=r"text 0 .* not finite"):
        judge(vectors_of, ["a"], torch.full((1, 32), torch.nan))


# ---- commands and files ----------------------------------------------------------------------------------------------


def test_the_probe_command_names_the_fault(
    serve: Serve, vectors_of: Pipeline, embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(serving(vectors_of, fault_named(vectors_of, "pooled_first").made(vectors_of.right)))
    monkeypatch.setenv("SERVER_KEY", "secret")
    arguments = ["parity", "probe", url, "--model", str(embedder), "--key-from", "SERVER_KEY"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "pooled_first: the vector of <s> is taken" in result.stdout
    assert "secret" not in result.output
    monkeypatch.delenv("SERVER_KEY")
    result = CliRunner().invoke(main, arguments)
    assert "the environment variable SERVER_KEY is not set" in result.output


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".jsonl", ".safetensors"])
def test_the_files_command_judges_every_kind_of_file(
    vectors_of: Pipeline, embedder: Path, tmp_path: Path, suffix: str
) -> None:
    texts = ["The cat sees the dog.", "Two cats sleep."]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    vectors = vectors_of.run([(text,) for text in texts]).float()
    file = tmp_path / f"vectors{suffix}"
    if suffix == ".npy":
        np.save(file, vectors.numpy())
    elif suffix == ".npz":
        np.savez(file, vectors=vectors.numpy())
    elif suffix == ".jsonl":
        file.write_text("\n".join(json.dumps({"embedding": row}) for row in vectors.tolist()), encoding="utf-8")
    else:
        save_file({"vectors": vectors}, file)
    arguments = ["parity", "diagnose-vectors", str(tmp_path / "texts.txt"), str(file), "--model", str(embedder)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("right, to the noise of float32")


def test_files_that_hold_something_else_end_in_clear_errors(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('"a"\n["a", "b"]\n{"query": "q", "passage": "p"}\n', encoding="utf-8")
    assert read_inputs(lines) == [("a",), ("a", "b"), ("q", "p")]
    lines.write_text('{"title": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not a text"):
        read_inputs(lines)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(ValueError, match="holds a, b: name one"):
        read_values(tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read_values(tmp_path / "objects.npy")


def test_every_rule_for_ids_is_in_the_catalogue(vectors_of: Pipeline) -> None:
    for fault in PIPELINE_FAULTS:
        assert vectors_of.row(("one", "two"), fault.made(vectors_of.right)), fault.name


def test_one_wrong_score_is_not_taken_for_rounding(scores_of: Pipeline) -> None:
    """A share of the numbers may round either way: of a few scores, that is none."""
    values = scores_of.run(PAIRS[:6])
    values[2] += 0.01
    verdict = judge(scores_of, PAIRS[:6], values, budget=0)
    assert not verdict.ok, verdict
    assert not verdict.names
