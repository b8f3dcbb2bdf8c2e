"""Diagnosis names what it can show and nothing else; foreign implementations are in test_seeded_faults.py."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from kit import numpy_port
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.cli import main
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import Diagnosis, diagnose
from xlmr_core.parity.faults import POOLING_FAULTS, TOKENIZER_FAULTS, find_fault, mean_pooled
from xlmr_core.parity.patterns import describe, growth
from xlmr_core.parity.recording import record
from xlmr_core.parity.tap_values import one_mask


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


@pytest.fixture(scope="module")
def healthy(pair: reference.Pair) -> dict[str, Tensor]:
    return dump_of(pair.ours, pair.batch)


def dump_with(pair: reference.Pair, *names: str, **options: Any) -> dict[str, Tensor]:
    if not names:
        return dump_of(pair.ours, pair.batch, **options)
    with find_fault(names[0]).applied(pair.ours):
        return dump_with(pair, *names[1:], **options)


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_nothing_is_wrong(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    diagnosis = diagnose(pair.ours, pair.batch, healthy)
    assert diagnosis.ok
    assert str(diagnosis) == "no difference beyond rounding at 50 taps"


def test_the_report_shows_the_evidence(pair: reference.Pair) -> None:
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(pair, "gelu_tanh"))
    [finding] = diagnosis.findings
    assert diagnosis.explained
    first = finding.evidence[0]
    assert first.tap == diagnosis.first_tap == "layers.0.feed_forward.post"
    assert first.with_fault <= first.allowed < 1e-4 < first.without < 5e-4
    assert all(evidence.with_fault <= evidence.allowed for evidence in finding.evidence)
    for line in ("first divergence: layers.0.feed_forward.post", "gelu_tanh: GELU is the tanh approx", "more taps"):
        assert line in str(diagnosis)


def test_json_holds_the_same(pair: reference.Pair) -> None:
    found = json.loads(diagnose(pair.ours, pair.batch, dump_with(pair, "relu_for_gelu")).to_json())
    assert (found["ok"], found["explained"], found["unexplained"]) == (False, True, None)
    assert found["findings"][0]["faults"][0]["name"] == "relu_for_gelu"


def test_a_dump_of_hidden_states_alone_is_enough(pair: reference.Pair) -> None:
    dump = dump_with(pair, "heads_interleaved", taps=["embeddings.output", "layers.*.output"])
    diagnosis = diagnose(pair.ours, pair.batch, dump)
    assert diagnosis.faults == ("heads_interleaved",)
    assert diagnosis.first_tap == "layers.0.output"


def test_the_first_divergence_is_an_entry_of_the_dump(pair: reference.Pair) -> None:
    last = f"layers.{pair.ours.config.num_hidden_layers - 1}.output"
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(pair, "heads_interleaved", taps=[last]))
    assert diagnosis.faults == ("heads_interleaved",)
    assert diagnosis.first_tap == last


def test_faults_that_give_the_same_numbers_are_named_together(pair: reference.Pair) -> None:
    """Without padding on the left, nobody can tell rows cut out wrongly from positions counted wrongly."""
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with find_fault("positions_from_zero").applied(pair.ours):
        dump = dump_of(pair.ours, batch)
    [finding] = diagnose(pair.ours, batch, dump).findings
    assert {fault.name for fault in finding.faults} == {"positions_from_zero", "position_rows_shifted"}
    diagnosis = diagnose(pair.ours, batch, dump)
    assert "the same numbers on this input" in str(diagnosis)
    first, _ = (fault.name for fault in finding.faults)
    words = "texts of several lengths, padded on the left"
    assert f"to tell it from {first}: record another input, such as {words}\n" in str(diagnosis)
    [found] = json.loads(diagnosis.to_json())["findings"]
    assert (found["told_apart_at"], found["told_apart_by"]) == ([None], [words])


def test_a_tie_names_the_tap_that_breaks_it(pair: reference.Pair) -> None:
    """A row of scores may have any number added to it: only the scores themselves tell 1 for real tokens from -1."""
    taps = ["embeddings.output", "layers.*.output"]
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(pair, "mask_too_weak", taps=taps))
    [finding] = diagnosis.findings
    first, second = (fault.name for fault in finding.faults)  # which of two is closer hangs on the last bits
    assert {first, second} == {"mask_too_weak", "mask_added_as_it_is"}
    assert finding.told_apart_at == ("layers.0.attention.scores",)
    assert f"to tell it from {first}: add layers.0.attention.scores to the dump" in str(diagnosis)
    [found] = json.loads(diagnosis.to_json())["findings"]
    assert (found["told_apart_at"], found["told_apart_by"]) == (["layers.0.attention.scores"], [None])
    taps.append("layers.0.attention.scores")
    dump = dump_with(pair, "mask_too_weak", taps=taps)
    assert [len(finding.faults) for finding in diagnose(pair.ours, pair.batch, dump).findings] == [1]


def test_three_faults_are_found_one_after_the_other(pair: reference.Pair) -> None:
    names = ("token_type_missing", "scores_unscaled", "lm_head_gelu_tanh")
    dump = dump_with(pair, *names)
    assert diagnose(pair.ours, pair.batch, dump).faults == names
    first = diagnose(pair.ours, pair.batch, dump, most=1)
    assert first.faults == names[:1]
    assert first.tap == "layers.0.attention.scores"
    assert "every value is 2.449 times" in str(first)


def test_it_works_for_a_model_with_fused_attention() -> None:
    pair = reference.build_pair(reference.PRE_NORM, "sdpa")
    dump = dump_with(pair, "mask_causal")
    assert "layers.0.attention.scores" not in dump
    assert diagnose(pair.ours, pair.batch, dump).faults == ("mask_causal",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_works_in_other_dtypes(dtype: torch.dtype) -> None:
    pair = reference.build_pair(reference.POST_NORM)
    expected = pair.ours
    pair.ours = reference.build_pair(reference.POST_NORM, dtype=dtype).ours
    for names in ((), ("q_k_swapped",), ("vocabulary_bias_missing",)):
        assert diagnose(expected, pair.batch, dump_with(pair, *names)).faults == names


def test_the_model_is_left_as_it_was(pair: reference.Pair) -> None:
    before = {name: tensor.clone() for name, tensor in pair.ours.state_dict().items()}
    diagnose(pair.ours, pair.batch, dump_with(pair, "k_v_swapped"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.ours.state_dict().items())
    assert not any(module._forward_hooks for module in pair.ours.modules())


@pytest.mark.parametrize("fault", POOLING_FAULTS, ids=lambda fault: fault.name)
def test_wrong_sentence_vectors(pair: reference.Pair, healthy: dict[str, Tensor], fault: Any) -> None:
    hidden = healthy["layers.2.output"]
    right = {**healthy, "sentence.mean": mean_pooled(hidden, pair.batch["attention_mask"])}
    assert diagnose(pair.ours, pair.batch, right).ok
    wrong = {**healthy, "sentence.mean": fault.pool(hidden, pair.batch["attention_mask"])}
    diagnosis = diagnose(pair.ours, pair.batch, wrong)
    assert diagnosis.faults == (fault.name,)
    assert diagnosis.first_tap == "sentence.mean"


# ---- what is not found -----------------------------------------------------------------------------------------------


def changed(healthy: dict[str, Tensor], tap: str, rule: Any) -> dict[str, Tensor]:
    return {**healthy, tap: rule(healthy[tap].clone())}


def test_what_no_fault_gives_is_said_to_be_unexplained(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    diagnosis = diagnose(pair.ours, pair.batch, changed(healthy, "layers.1.mid", lambda x: x * 1.5), seconds=0.5)
    assert diagnosis.faults == ()
    assert (diagnosis.first_tap, diagnosis.explained) == ("layers.1.mid", False)
    assert diagnosis.looks_like == ("every value is 1.5 times what it should be",)
    assert "no fault of the catalogue gives these numbers" in str(diagnosis)


def test_errors_are_described(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    def seen(tap: str, rule: Any) -> str:
        heads = pair.config.num_attention_heads
        lines = describe(tap, healthy[tap], rule(healthy[tap].clone()), pair.real, heads=heads, allowed=1e-6)
        return "; ".join(lines)

    def one_row(x: Tensor) -> Tensor:
        x[1] += torch.randn(x[1].shape)
        return x

    def without_first(x: Tensor) -> Tensor:
        x[:, 1:] += torch.randn(x[:, 1:].shape)
        return x

    def padded_rows(x: Tensor) -> Tensor:
        x[~pair.real.all(dim=1)] += 3 * torch.randn(x[1].shape)
        return x

    swapped = [1, 0, 2, 3]
    order = lambda x: x.unflatten(-1, (4, 6))[..., swapped, :].flatten(-2)  # noqa: E731
    q, probs, output = "layers.0.attention.q", "layers.0.attention.probs", "layers.1.output"
    assert "the same number, 0.25, is added everywhere" in seen(q, lambda x: x + 0.25)
    assert "the same vector is added at every token" in seen(q, lambda x: x + torch.randn(24))
    assert "heads are permuted: 1, 0, 2, 3" in seen(q, order)
    assert "heads are permuted: 1, 0, 2, 3" in seen(probs, lambda x: x[:, swapped])
    assert "interleaved" in seen(q, lambda x: x.unflatten(-1, (6, 4)).transpose(-1, -2).flatten(-2))
    assert "transposed" in seen("layers.0.attention.probs", lambda x: x.transpose(2, 3))
    assert "wrong order" in seen(output, lambda x: x.flip(2))
    assert "each token is scaled by a number of its own" in seen(output, lambda x: x * (1 + torch.rand(5, 11, 1)))
    assert "the token 1 before it" in seen(output, lambda x: x.roll(1, dims=1))
    assert "rounding to bfloat16" in seen(output, lambda x: x.bfloat16().float())
    assert "only rows 1 are wrong" in seen(output, one_row)
    assert "only rows with padding are wrong" in seen(output, padded_rows)
    assert "the first token is right" in seen(output, without_first)
    assert "values are NaN or infinite" in seen(output, lambda x: x / 0)
    assert "unrelated" in seen(output, torch.randn_like)


def test_zeros_are_dropout_only_where_the_rest_is_scaled(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    def seen(tap: str, rule: Any) -> str:
        lines = describe(tap, healthy[tap], rule(healthy[tap].clone()), pair.real, heads=4, allowed=1e-6)
        return "; ".join(lines)

    def without(*index: Any) -> Any:
        def rule(x: Tensor) -> Tensor:
            x[index] = 0
            return x

        return rule

    output = "layers.1.output"
    keep = torch.rand(5, 11, 24, generator=torch.Generator().manual_seed(0)) < 0.75
    dropped = seen(output, lambda x: x * keep / 0.75)
    assert "% of the values are exactly 0, the others 1.333 times what they should be: dropout of 0.25 is on" in dropped
    tokens = seen(output, without(slice(None), 4))
    assert re.search(r"% of the values are exactly 0, the others are right: \d of 38 tokens are all 0", tokens)
    features = seen(output, without(..., slice(0, 6)))
    assert "25% of the values are exactly 0, the others are right: 6 of 24 features are 0 at every token" in features
    assert "dropout" not in seen(output, lambda x: x * keep)
    scaled = seen(output, lambda x: x * keep * 3)
    assert "the others 3 times what they should be" in scaled
    assert "dropout" not in scaled


def test_a_mask_of_the_wrong_sign_is_told_from_none(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    scores, probs = (f"layers.0.attention.{name}" for name in ("scores", "probs"))
    q, k = (healthy[f"layers.0.attention.{name}"].unflatten(-1, (4, 6)).transpose(1, 2) for name in "qk")
    unmasked = q @ k.transpose(2, 3) * 6**-0.5
    padding = ~pair.real[:, None, None, :]
    for name, bias in {
        "raised, not lowered: the mask has the wrong sign": 1e4,
        "but padding is not masked": 0.0,
    }.items():
        wrong = one_mask(scores, unmasked + padding * bias)
        lines = describe(scores, one_mask(scores, healthy[scores]), wrong, pair.real, heads=4, allowed=1e-4)
        assert name in lines[-1]
    half = (unmasked.half().masked_fill(padding, -torch.inf)).softmax(dim=-1).float()
    lines = describe(probs, healthy[probs], half, pair.real, heads=4, allowed=1e-6)
    assert "rounding to float16" in lines[-1]


def test_growth_with_depth() -> None:
    assert growth({0: 0.0, 1: 1e-3}) is None
    assert str(growth({0: 1e-3, 1: 2e-3, 2: 8e-3})).startswith("grows with depth: relative error 1.0e-03 after layer 0")
    assert str(growth({0: 1e-3, 1: 1e-4})).startswith("shrinks")


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_dumps_that_cannot_be_compared(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    def refused(dump: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            diagnose(pair.ours, pair.batch, dump)

    refused({}, "no tap of this model: it holds nothing")
    refused({"encoder.h1": torch.zeros(1)}, "it holds encoder.h1")
    refused(changed(healthy, "layers.0.mid", lambda x: x[:, :-1]), r"layers.0.mid cannot be compared: expected \(5, 11")
    refused(changed(healthy, "layers.0.mid", lambda x: x.long()), "layers.0.mid holds int64")


def test_numbers_that_are_not_finite_are_localised(pair: reference.Pair, healthy: dict[str, Tensor]) -> None:
    diagnosis = diagnose(pair.ours, pair.batch, changed(healthy, "layers.1.output", lambda x: x * float("nan")))
    assert diagnosis.first_tap == "layers.1.output"
    assert "NaN" in str(diagnosis)


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(toy_checkpoint: Path) -> tuple[XLMRobertaForMaskedLM, XLMRobertaTokenizer]:
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint)
    return model, XLMRobertaTokenizer.from_pretrained(toy_checkpoint)


def diagnosed_ids(toy: Any, rows: list[list[int]], tokenizer: bool = True) -> Diagnosis:
    model, right = toy
    batch = right(["the <mask> sees X"], ["a bird"])
    ids = torch.tensor(rows)
    theirs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dump = {**dump_of(model, theirs), **theirs}
    return diagnose(model, {**batch}, dump, tokenizer=right if tokenizer else None)


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS, ids=lambda fault: fault.name)
def test_wrong_ids(toy: Any, fault: Any) -> None:
    [row] = toy[1](["the <mask> sees X"], ["a bird"]).input_ids.tolist()
    assert fault.rule(row, toy[1]) != row
    diagnosis = diagnosed_ids(toy, [fault.rule(row, toy[1])])
    assert diagnosis.faults == (fault.name,)
    assert diagnosis.first_tap == "input_ids"
    assert diagnosis.explained, "on its own ids the port is right"


def test_ids_that_no_fault_gives(toy: Any) -> None:
    diagnosis = diagnosed_ids(toy, [[0, 5, 6, 7, 2]])
    assert (diagnosis.faults, diagnosis.tap) == ((), "input_ids")
    assert "row 0 differs from token 2 on" in str(diagnosis)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy checkpoint with biases that are not 0."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = XLMRobertaForMaskedLM.from_pretrained(toy_checkpoint)
    reference.randomize(model)
    model.save_pretrained(folder)
    XLMRobertaTokenizer.from_pretrained(toy_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture
def files(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A trace and a map of the port's names."""
    trace = tmp_path / "trace.safetensors"
    record(checkpoint, ["the cat <mask> the dog", "a bird"]).save(trace)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"names": numpy_port.POST_NORM_NAMES}), encoding="utf-8")
    return trace, names


@pytest.mark.parametrize("fault", ["", "vocabulary_bias_missing", "mask_missing"])
def test_the_command(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path, fault: str) -> None:
    trace, names = files
    ids = record(checkpoint, ["the cat <mask> the dog", "a bird"]).inputs
    port = numpy_port.load(checkpoint)
    dump = numpy_port.forward(port, ids["input_ids"].numpy(), ids["attention_mask"].numpy(), {fault} - {""})
    np.savez(tmp_path / "port.npz", **dump)
    arguments = ["parity", "diagnose", str(trace), str(tmp_path / "port.npz"), "--names", str(names)]
    run = CliRunner().invoke(main, [*arguments, "--model", str(checkpoint)])
    assert run.exit_code == bool(fault), run.output
    assert (f"{fault}: " if fault else "no difference beyond rounding") in run.output


def test_the_command_takes_a_trace_with_the_top_logits_alone(checkpoint: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    trace = record(checkpoint, ["the cat"], top_k=4)
    trace.save(right)
    model = XLMRobertaForMaskedLM.from_pretrained(checkpoint)
    with find_fault("vocabulary_bias_missing").applied(model):
        logits = dump_of(model, trace.inputs)["lm_head.logits"]
    ids = trace.tensors["lm_head.logits.top_ids"]
    tensors = {**trace.tensors, "lm_head.logits.top_values": logits.gather(-1, ids)}
    tensors["lm_head.logits.logsumexp"] = logits.double().logsumexp(-1).float()
    replace(trace, tensors=tensors).save(wrong)
    arguments = ["parity", "diagnose", str(right), str(wrong), "--json", "--seconds", "5", "--model", str(checkpoint)]
    found = json.loads(CliRunner().invoke(main, arguments).output)
    assert found["first_tap"] == "lm_head.logits"
    assert found["findings"][0]["faults"][0]["name"] == "vocabulary_bias_missing"
