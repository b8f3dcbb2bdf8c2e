"""Faults that no list has are named: planted in the NumPy port (unlisted_faults.py), whole dumps and parts of them."""

import copy
import json
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from kit import numpy_port
from kit.unlisted_faults import UNLISTED, dump_with
from torch import Tensor

from xlmr_core import XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.model import SelfAttention
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.diagnose import Diagnosis, diagnose
from xlmr_core.parity.faults import FAULTS, find_fault, mean_pooled
from xlmr_core.parity.grammar.fitting import Fitted, fitted, usual_near
from xlmr_core.parity.tap_values import elements, one_mask
from xlmr_core.parity.variants import variant

OUTPUTS = ("embeddings.output", "output")
PATIENT = 600  # seconds, for a machine that does other work, too
# Named by the taps between two layers as something else that gives the same numbers on every input.
SAME_BY_OUTPUTS = {
    "keys scaled": "scores_scaled_by_hidden_size",  # half of the keys is half of the scores, and sqrt(heads) is 2
    "residual halved": "stands where 0.003 should",  # half of all that a norm reads is four times its eps
}
# Of the catalogue, what the grammar cannot give: other random numbers, and two operations of a layer moved at once.
NOT_FOUND = {"dropout_left_on", "lm_head_untied", "norm_placement_exchanged", "norm_before_residual"}
SAME = 1e-9  # float64, and numbers that were estimated from a dump in float32 and then rounded to usual ones
IN_BRIEF = ("silu", "eps 1e-6", "distance bias", "one weight in int8", "residual missing but in layer 1")
IN_BRIEF_BY_OUTPUTS = ("silu", "values of the layer before")
IN_BRIEF_BY_LAST_STATE = ("silu",)
BY_LAST_STATE = ("silu", "gelu without sqrt(2)", "activation twice", "leaky relu", "eps outside the root", "rms norm",
                 "temperature", "distance bias", "no attention to itself", "window of three", "scores cut off",
                 "values of the layer before", "bias twice", "one weight in int8", "halves of the queries exchanged",
                 "positions backwards")  # fmt: skip
BY_MEAN = ("silu", "rms norm", "window of three", "values of the layer before", "one weight in int8")
IN_BRIEF_OF_THE_CATALOGUE = ("weights_float16", "norms_exchanged", "scores_float16", "answer_ends_exchanged")


def briefly(names: Iterable[str], brief: Collection[str]) -> list[Any]:
    """All names, those that are not in brief marked as slow: each takes a few seconds."""
    return [pytest.param(name, marks=[] if name in brief else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


@pytest.fixture(scope="module")
def ported(pair: reference.Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("port")
    pair.ours.save_pretrained(folder)
    return numpy_port.load(folder)


def only_outputs(dump: dict[str, Tensor]) -> dict[str, Tensor]:
    return {tap: x for tap, x in dump.items() if tap in OUTPUTS or (tap.count(".") == 2 and tap.endswith(".output"))}


def named(diagnosis: Diagnosis, words: tuple[str, ...]) -> None:
    assert diagnosis.explained, str(diagnosis)
    [finding] = diagnosis.findings
    assert any(all(word in fault.name for word in words) for fault in finding.faults), str(diagnosis)


@pytest.mark.parametrize("name", briefly(UNLISTED, IN_BRIEF))
def test_an_unlisted_fault_is_named(pair: reference.Pair, ported: dict[str, Any], name: str) -> None:
    planted = UNLISTED[name]
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(planted, ported, pair.batch))
    assert diagnosis.first_tap == planted.tap
    named(diagnosis, planted.words)


@pytest.mark.parametrize("name", briefly(UNLISTED, IN_BRIEF_BY_OUTPUTS))
def test_outputs_of_layers_are_enough(pair: reference.Pair, ported: dict[str, Any], name: str) -> None:
    dump = only_outputs(dump_with(UNLISTED[name], ported, pair.batch))
    same = SAME_BY_OUTPUTS.get(name)
    named(diagnose(pair.ours, pair.batch, dump, seconds=PATIENT), (same,) if same else UNLISTED[name].words)


@pytest.mark.parametrize("name", briefly(BY_LAST_STATE, IN_BRIEF_BY_LAST_STATE))
def test_the_last_hidden_state_is_enough(pair: reference.Pair, ported: dict[str, Any], name: str) -> None:
    last = f"layers.{pair.ours.config.num_hidden_layers - 1}.output"
    dump = {last: dump_with(UNLISTED[name], ported, pair.batch)[last]}
    named(diagnose(pair.ours, pair.batch, dump, seconds=PATIENT), UNLISTED[name].words)


@pytest.mark.parametrize("name", briefly(BY_MEAN, ("silu",)))
def test_its_mean_is_enough(pair: reference.Pair, ported: dict[str, Any], name: str) -> None:
    last = f"layers.{pair.ours.config.num_hidden_layers - 1}.output"
    hidden = dump_with(UNLISTED[name], ported, pair.batch)[last]
    dump = {"sentence.mean": mean_pooled(hidden, pair.batch["attention_mask"])}
    named(diagnose(pair.ours, pair.batch, dump, seconds=PATIENT), UNLISTED[name].words)


@pytest.mark.parametrize(
    "name", briefly(("silu", "leaky relu", "temperature", "residual missing in layer 1"), ("silu",))
)
def test_it_works_for_a_dump_in_bfloat16(pair: reference.Pair, ported: dict[str, Any], name: str) -> None:
    dump = {tap: x.bfloat16() for tap, x in dump_with(UNLISTED[name], ported, pair.batch).items()}
    named(diagnose(pair.ours, pair.batch, dump), UNLISTED[name].words)


@cache
def model_of(norm: str, head: str) -> reference.Pair:
    return reference.build_pair_with(reference.CONFIGS[norm], head)


def listed() -> list[Any]:
    """The faults of the catalogue, each in a model that can have it."""
    cases: list[Any] = []
    for fault in FAULTS:
        part = fault.tap.split(".")[0]
        if fault.shows == "outputs" and fault.name not in NOT_FOUND:
            norm, head = (
                "pre-norm" if fault.norm == "pre" else "post-norm",
                part if part in reference.HEADED else "lm_head",
            )
            marks = [] if fault.name in IN_BRIEF_OF_THE_CATALOGUE else [pytest.mark.slow]
            cases.append(pytest.param(norm, head, fault.name, marks=marks))
    return cases


@pytest.mark.parametrize(("norm", "head", "name"), listed())
def test_faults_of_the_catalogue_are_found_without_it(norm: str, head: str, name: str) -> None:
    """The changes that are found give the numbers of the fault at every tap."""
    pair = model_of(norm, head)
    with find_fault(name).applied(pair.ours):
        dump = dump_of(pair.ours, pair.batch)
    diagnosis = diagnose(pair.ours, pair.batch, dump, catalogue=False)
    assert diagnosis.explained, str(diagnosis)
    assert len(diagnosis.findings) <= 2
    exact = variant(pair.ours, torch.float64, "eager", "cpu")
    with find_fault(name).applied(exact):
        expected = dump_of(exact, pair.batch)
    with ExitStack() as changes:
        for finding in diagnosis.findings:
            changes.enter_context(finding.faults[0].applied(exact))
        found = dump_of(exact, pair.batch)
    for tap, right in expected.items():
        assert reference.gap(*(elements(tap, one_mask(tap, x), pair.real) for x in (found[tap], right))) < SAME, tap


def test_the_report_says_what_is_computed_and_where(pair: reference.Pair, ported: dict[str, Any]) -> None:
    diagnosis = diagnose(pair.ours, pair.batch, dump_with(UNLISTED["residual missing in layer 1"], ported, pair.batch))
    tap = "layers.1.feed_forward.residual"
    line = f"{tap}: layers.1.mid is missing, only layers.1.feed_forward.output is left (in layer 1 only)"
    assert diagnosis.faults == (line,)
    assert f"\n{line}\n" in str(diagnosis)
    [finding] = json.loads(diagnosis.to_json())["findings"]
    assert finding["faults"][0]["name"] == line
    assert finding["tap"] == finding["evidence"][0]["tap"] == tap


def test_two_unlisted_faults_are_separated(pair: reference.Pair, ported: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(numpy_port, "bend", UNLISTED["leaky relu"].replacement)
        dump = dump_with(UNLISTED["bias twice"], ported, pair.batch)
    first, second = diagnose(pair.ours, pair.batch, dump).faults
    assert "q_proj.bias is added twice" in first
    assert "leaky relu" in second


# ---- what must not be named ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("taps", [("**",), ("layers.*.output",), ("layers.-1.output",)])
def test_a_right_port_has_no_fault(
    pair: reference.Pair, ported: dict[str, Any], dtype: torch.dtype, taps: tuple[str, ...]
) -> None:
    model = reference.build_pair(reference.POST_NORM, dtype=dtype).ours
    assert diagnose(pair.ours, pair.batch, dump_of(model, pair.batch, taps=taps)).ok
    right = numpy_port.as_taps(ported, pair.batch)
    assert diagnose(pair.ours, pair.batch, {tap: x.to(dtype) for tap, x in right.items()}).ok


@pytest.mark.parametrize("tap", ["embeddings.sum", "layers.0.attention.q", "layers.1.mid", "lm_head.logits"])
@pytest.mark.parametrize("size", [pytest.param(1e-4, marks=pytest.mark.slow), 1e-1])
def test_noise_has_no_name(pair: reference.Pair, tap: str, size: float) -> None:
    dump = dump_of(pair.ours, pair.batch)
    noise = torch.randn(dump[tap].shape, generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(pair.ours, pair.batch, {**dump, tap: dump[tap] + size * noise}, seconds=2)
    assert (diagnosis.faults, diagnosis.first_tap) == ((), tap)


# ---- open numbers ----------------------------------------------------------------------------------------------------


def test_a_number_is_estimated_and_rounded_to_a_usual_one() -> None:
    x = torch.linspace(-2, 2, 100, dtype=torch.float64)
    target = (0.125 * x).tanh() + 1e-7 * torch.sin(1e6 * x)
    found = fitted(lambda c: (c * x).tanh(), target, 1.0, 1e-7)
    assert found is not None
    assert abs(found.value - 0.125) < 1e-6
    assert usual_near(found, (0.1, 0.125, 0.13)) == [0.125]


def test_a_number_that_has_nothing_to_do_with_the_difference_is_not_fitted() -> None:
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert fitted(lambda c: c * x, x + x.square(), 1.0, 1e-9) is None
    assert usual_near(Fitted(0.5, 1e-9), (0.4, 0.6)) == []


@pytest.mark.slow
def test_a_rounding_that_makes_as_much_noise_as_the_difference_is_not_named() -> None:
    """Keys and values of a cache in bfloat16: products kept in float16 err as much, and explain nothing of it."""
    model = XLMRobertaModel.from_pretrained("xlmr-tiny")
    texts = [  # in short texts the difference is larger than that noise
        "Το βιβλίο που μου έδωσε ο πατέρας μου είναι στο τραπέζι.",
        "The old bridge was closed in 1987, and nobody knows when it will be opened again, or who should pay for it.",
        "यह किताब बहुत अच्छी है।",
    ]
    tokens = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")(texts)
    batch = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    wrong = copy.deepcopy(model)
    for attention in (module for module in wrong.modules() if isinstance(module, SelfAttention)):
        kernel = attention._eager_context

        def cached(q: Tensor, k: Tensor, v: Tensor, mask: Any, kernel: Any = kernel) -> Tensor:
            return kernel(q, k.bfloat16().to(q), v.bfloat16().to(q), mask)

        attention._eager_context = cached
    with torch.no_grad(), wrong.capture("**") as dump:
        wrong(**batch)
    found = diagnose(model, batch, dict(dump))
    assert found.faults == (
        "layers.0.attention.scores: layers.0.attention.k is rounded to bfloat16 (in every layer)",
        "layers.0.attention.context: layers.0.attention.v is rounded to bfloat16 (in every layer)",
    ), str(found)
