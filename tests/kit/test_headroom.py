"""The margin to the largest number of float16 at every tap, and the first tap that is beyond it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from xlmr_core import XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.cli import main
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.headroom import LARGEST, Headroom, measure_headroom

TEXTS = ["the cat sees the dog", "a bird", "two dogs and a cat sleep"]


@pytest.fixture(scope="module")
def tokenizer() -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer.from_pretrained("xlmr-tiny")


@pytest.fixture(scope="module")
def healthy() -> Any:
    return XLMRobertaModel.from_pretrained("xlmr-tiny").eval()


@pytest.fixture(scope="module")
def report(healthy: Any, tokenizer: XLMRobertaTokenizer) -> Headroom:
    return measure_headroom(healthy, tokenizer, iter(TEXTS))


def test_the_largest_value_of_every_tap_is_found_with_its_text_and_token(
    report: Headroom, healthy: Any, tokenizer: XLMRobertaTokenizer
) -> None:
    dumps = [dump_of(healthy, dict(tokenizer(text))) for text in TEXTS]
    assert [row.tap for row in report.rows] == [tap.name for tap in healthy.taps()]
    assert report.texts == 3
    for row in report.rows:
        assert row.largest == pytest.approx(max(float(dump[row.tap].abs().max()) for dump in dumps))
        tensor = dumps[row.text - 1][row.tap]
        assert row.position is not None
        own = tensor[0, :, row.position] if tensor.dim() == 4 else tensor[0, row.position]
        assert float(own.abs().max()) == pytest.approx(row.largest)
        assert row.token == tokenizer.id_to_token(int(tokenizer(TEXTS[row.text - 1]).input_ids[0, row.position]))


def test_a_healthy_model_is_finite_in_float16(report: Headroom) -> None:
    assert report.ok
    assert (report.first, report.observed, report.must_stay_float32) == (None, None, ())
    assert "in float16, every tap was finite" in str(report)
    row = report.rows[0]
    assert row.largest * 2**row.bits == pytest.approx(LARGEST)


def test_queries_times_keys_count_before_they_are_scaled(report: Headroom, healthy: Any) -> None:
    [row] = [row for row in report.rows if row.tap == "layers.0.attention.scores"]
    assert row.inside == pytest.approx(row.largest * healthy.config.head_dim**0.5)


@pytest.mark.parametrize(
    ("module", "tap"),
    [("feed_forward.up_proj", "layers.1.feed_forward.pre"), ("attention.v_proj", "layers.1.attention.v")],
)
def test_an_overflow_is_found_at_its_tap(healthy: Any, tokenizer: XLMRobertaTokenizer, module: str, tap: str) -> None:
    model = copy.deepcopy(healthy)
    linear = model.layers[1].get_submodule(module)
    largest = max(float(dump_of(model, dict(tokenizer(text)), taps=[tap])[tap].abs().max()) for text in TEXTS)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.mul_(2 * LARGEST / largest)
    report = measure_headroom(model, tokenizer, TEXTS)
    assert not report.ok
    assert report.first is not None
    assert report.first.tap == tap
    assert report.first.bits == pytest.approx(-1, abs=0.01)
    assert report.must_stay_float32[0] == tap
    assert report.observed is not None
    assert report.observed.tap == tap
    assert report.observed.text <= report.first.text
    assert f"first non-finite tap in float16: {tap}" in str(report)
    found = json.loads(report.to_json())
    assert (found["ok"], found["first"], found["observed"]["tap"]) == (False, tap, tap)


def test_scores_that_overflow_only_before_they_are_scaled_are_named(
    healthy: Any, tokenizer: XLMRobertaTokenizer, report: Headroom
) -> None:
    """The scores fit, but queries times keys do not."""
    tap = "layers.2.attention.scores"
    [row] = [row for row in report.rows if row.tap == tap]
    model = copy.deepcopy(healthy)
    with torch.no_grad():
        for parameter in model.layers[2].attention.q_proj.parameters():
            parameter.mul_(2 * LARGEST / row.inside)
    found = measure_headroom(model, tokenizer, TEXTS)
    assert found.first is not None
    assert (found.first.tap, found.first.largest < LARGEST) == (tap, True)
    assert "scale the queries first" in str(found)
    assert found.observed is not None
    assert found.observed.tap == tap


def test_a_weight_that_is_infinite_in_float16_is_named(healthy: Any, tokenizer: XLMRobertaTokenizer) -> None:
    model = copy.deepcopy(healthy)
    with torch.no_grad():
        model.layers[0].feed_forward.up_proj.bias[0] = 1e6
    report = measure_headroom(model, tokenizer, TEXTS[:1])
    assert report.weights == ("layers.0.feed_forward.up_proj.bias",)
    assert not report.ok


def test_what_two_faults_of_half_precision_do(report: Headroom) -> None:
    assert dict(report.half_faults) == {
        "mask_of_minus_1e9": "NaN at layers.0.attention.scores in the row of the text",
        "row_of_padding": "NaN at layers.0.attention.probs in the row of padding",
    }


def test_a_processor_without_float16(
    healthy: Any, tokenizer: XLMRobertaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_half: object) -> bool:
        return False

    monkeypatch.setattr("xlmr_core.parity.headroom._runs_float16", never)
    report = measure_headroom(healthy, tokenizer, TEXTS[:1])
    assert (report.ran_float16, report.half_faults) == (False, ())
    assert "float16 was not run: this processor cannot" in str(report)


def test_there_must_be_a_text(healthy: Any, tokenizer: XLMRobertaTokenizer) -> None:
    with pytest.raises(ValueError, match="there is no text to measure"):
        measure_headroom(healthy, tokenizer, [])


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run = ["parity", "headroom", "xlmr-tiny", "--texts", str(tmp_path / "texts.txt"), "--max-tokens", "4"]
    result = CliRunner().invoke(main, run)
    assert result.exit_code == 0, result.output
    assert "3 texts; least margin:" in result.stdout
    found = json.loads(CliRunner().invoke(main, [*run, "--json"]).stdout)
    assert max(row["position"] for row in found["rows"]) == 3
