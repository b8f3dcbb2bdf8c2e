"""The comparison: only real tokens count, only floors excuse a difference, and what is wrong is said."""

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from matplotlib.figure import Figure
from reference import CONFIGS, Pair
from torch import Tensor, nn

from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.parity import FAULTS, Fault, find_fault
from xlmr_core.parity.adapters import Place, compare_models, dump_of
from xlmr_core.parity.compare import Floors, compare
from xlmr_core.parity.plot import plot_error_by_depth
from xlmr_core.parity.tap_values import LOGITS, LOGSUMEXP, TOP, TOP_IDS, in_reading_order, logsumexp

NORMS = pytest.mark.parametrize("norm", CONFIGS)
REAL = torch.tensor([[True, True, True, False], [False, True, True, True]])
TAP = "layers.0.mid"


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed))


def verdict(expected: Tensor, actual: Tensor, tap: str = TAP, floors: Floors | None = None) -> str:
    [row] = compare({tap: expected}, {tap: actual}, real=REAL, floors=floors).rows
    return row.verdict


# ---- what counts -----------------------------------------------------------------------------------------------------


def test_padding_does_not_count_and_real_tokens_do() -> None:
    for row in range(2):
        for token in range(4):
            changed = hidden()
            changed[row, token, 3] += 1e-3
            assert verdict(hidden(), changed) == ("DIVERGES" if REAL[row, token] else "equal")


def test_junk_in_padding_may_be_nan() -> None:
    changed = hidden()
    changed[~REAL] = math.nan
    assert verdict(hidden(), changed) == "equal"


def maps(fill: float) -> Tensor:
    """(B, N, S, S) scores whose hidden keys hold `fill`."""
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return scores.masked_fill(~REAL[:, None, None, :], fill)


@pytest.mark.parametrize("fill", [-math.inf, -1e4, -1e9, torch.finfo(torch.float32).min])
def test_masked_scores_are_the_same_however_they_are_written(fill: float) -> None:
    tap = "layers.2.attention.scores"
    assert verdict(maps(-math.inf), maps(fill), tap) == "equal"
    assert verdict(maps(fill), maps(-math.inf), tap) == "equal"
    assert verdict(maps(fill), maps(0.3), tap) == "DIVERGES"  # these are not masked


def test_a_row_of_padding_as_query_does_not_count() -> None:
    changed = maps(-1e4).transpose(1, 2).clone()
    changed[~REAL] += 1
    assert verdict(maps(-1e4), changed.transpose(1, 2), "layers.2.attention.scores") == "equal"


def test_probs_count_at_every_key() -> None:
    probs = maps(-math.inf).softmax(-1)
    leaked = probs.clone()
    leaked[0, :, 0, 3] = 0.01  # to padding
    assert verdict(probs, leaked, "layers.2.attention.probs") == "DIVERGES"


def test_a_pooled_vector_counts_where_its_token_is_real() -> None:
    pooled, changed = torch.randn(2, 6), torch.zeros(2, 6)
    changed[0] = pooled[0]  # the first token of row 1 is padding
    assert verdict(pooled, changed, "pooler.output") == "equal"
    assert verdict(pooled, changed.flip(0), "pooler.output") == "DIVERGES"


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_floors_of_both_dtypes_add_up() -> None:
    floors = Floors({"float32": {TAP: 1e-6}, "bfloat16": {TAP: 1e-2}}, factor=2.0)
    assert floors.allowed(TAP, torch.float32, torch.float32) == pytest.approx(4e-6)
    assert floors.allowed(TAP, torch.float32, torch.bfloat16) == pytest.approx(2 * (1e-6 + 1e-2))
    assert floors.allowed(TAP, torch.float32, torch.float16) is None
    assert verdict(torch.zeros(2, 4, 6), torch.full((2, 4, 6), 3.9e-6), floors=floors) == "ok"
    assert verdict(torch.zeros(2, 4, 6), torch.full((2, 4, 6), 4.1e-6), floors=floors) == "DIVERGES"


def test_without_a_floor_nothing_but_equal_values_passes() -> None:
    nearly = hidden() * (1 + 1e-7)
    assert verdict(hidden(), hidden()) == "equal"
    assert verdict(hidden(), nearly) == "DIVERGES"
    assert verdict(hidden(), nearly, floors=Floors({"float32": {"embeddings.word": 1.0}})) == "no floor"


def test_the_numbers_of_a_row() -> None:
    expected = torch.tensor([[3.0, 4.0]])
    actual = torch.tensor([[4.0, -3.0]])
    [row] = compare({"gradients.x": expected}, {"gradients.x": actual}, real=REAL).rows
    assert (row.max_abs, row.relative, row.cosine) == (7.0, 7 / 4, 0.0)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_bad_tensors_become_rows_that_say_so() -> None:
    nan = hidden()
    nan[0, 0, 0] = math.nan
    expected = {f"layers.{i}.mid": hidden() for i in range(5)}
    actual = {
        "layers.0.mid": hidden().transpose(1, 2),
        "layers.1.mid": nan,
        "layers.2.mid": hidden().long(),
        "layers.4.mid": hidden(),
        "unheard_of": hidden(),
    }
    comparison = compare(expected, actual, real=REAL)
    verdicts = [row.verdict for row in comparison.rows]
    assert verdicts == ["misshapen", "not finite", "wrong dtype", "missing", "equal", "extra"]
    text = str(comparison)
    assert "expected (2, 4, 6), got (2, 6, 4)" in text
    assert "1 of 36 values are NaN or infinite" in text
    assert "expected float32, got int64" in text
    assert text.splitlines()[1].startswith("-> layers.0.mid")
    assert sum(line.startswith("->") for line in text.splitlines()) == 1
    assert "1 expected tensors are missing" in comparison.summary
    assert not comparison.ok


def test_only_missing_is_incomplete_and_no_divergence() -> None:
    comparison = compare({TAP: hidden(), "layers.1.mid": hidden()}, {TAP: hidden()}, real=REAL)
    assert not comparison.ok
    assert comparison.first_divergence is None
    assert comparison.summary.startswith("incomplete: 1 of 2")


@pytest.mark.parametrize("real", [torch.ones(2, 4), torch.ones(4, dtype=torch.bool)])
def test_real_must_be_a_mask(real: Tensor) -> None:
    with pytest.raises(ValueError, match="real must be boolean"):
        compare({TAP: hidden()}, {}, real=real)


def test_nothing_expected_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is expected"):
        compare({}, {TAP: hidden()}, real=REAL)


def test_json_is_strict_json() -> None:
    nan = hidden() * math.nan
    text = compare({TAP: hidden(), "layers.1.mid": hidden()}, {TAP: nan}, real=REAL).to_json()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["ok"] is False
    assert found["first_divergence"] == TAP
    assert [row["verdict"] for row in found["rows"]] == ["not finite", "missing"]
    assert found["rows"][0]["max_abs"] is None


@NORMS
def test_reading_order_is_that_of_the_tap_table(norm: str) -> None:
    names = [tap.name for tap in XLMRobertaForMaskedLM(replace(CONFIGS[norm], num_hidden_layers=11)).taps()]
    assert in_reading_order([*sorted(names), "loss", "gradients.b", "gradients.a"]) == [
        *names, "loss", "gradients.b", "gradients.a",
    ]  # fmt: skip


# ---- logits by their top k -------------------------------------------------------------------------------------------


def reduced(logits: Tensor, k: int = 4) -> dict[str, Tensor]:
    values, ids = logits.topk(k)
    return {TOP_IDS: ids, TOP: values, LOGSUMEXP: logsumexp(logits)}


def test_whole_logits_are_looked_up_at_the_expected_ids() -> None:
    logits = torch.randn(2, 4, 50)
    assert compare(reduced(logits), {LOGITS: logits}, real=REAL).ok
    wrong = compare(reduced(logits), {LOGITS: logits.roll(1, dims=-1)}, real=REAL)  # same values, other ids
    assert wrong.rows[0].tap == TOP
    assert wrong.rows[0].verdict == "DIVERGES"


def test_one_wrong_logit_outside_the_top_shows_in_the_logsumexp() -> None:
    logits = torch.randn(2, 4, 50)
    wrong = logits.clone()
    wrong.scatter_(-1, logits.argmin(-1, keepdim=True), 1.0)
    rows = compare(reduced(logits), {LOGITS: wrong}, real=REAL).rows
    assert [row.verdict for row in rows] == ["equal", "DIVERGES"]


def test_two_top_ks_agree_where_ties_change_the_order_only() -> None:
    logits = torch.randn(2, 4, 50)
    other = reduced(logits)
    other = {**other, TOP_IDS: other[TOP_IDS].flip(-1), TOP: other[TOP].flip(-1)}
    assert compare(reduced(logits), other, real=REAL).ok
    shifted = {**reduced(logits), TOP_IDS: reduced(logits)[TOP_IDS] + 1}
    assert compare(reduced(logits), shifted, real=REAL).first_divergence


def test_an_id_that_just_missed_the_other_top_k_counts_with_its_smallest() -> None:
    logits = torch.tensor([9.0, 8.0, 7.0, 5.0, 5.0 - 1e-4, 1.0]).expand(2, 4, 6)
    other = logits[..., [0, 1, 2, 4, 3, 5]]  # the fourth and the fifth have changed places
    row = compare(reduced(logits), reduced(other), real=REAL).rows[0]
    assert row.max_abs <= 1e-4
    gone = compare(reduced(logits), reduced(logits[..., [5, 1, 2, 3, 4, 0]]), real=REAL).rows[0]
    assert row.tap == gone.tap == TOP
    assert gone.max_abs == 9.0 - 5.0  # id 0 is in it no more, so its logit there is at most 5
    elsewhere = {**reduced(logits + 10), TOP_IDS: reduced(logits)[TOP_IDS] + 6}
    unknown = compare(reduced(logits), elsewhere, real=REAL).rows[0]
    assert unknown.max_abs == 0  # all below 15 there: they may be what they should


@pytest.mark.parametrize("shape", [(2, 4, 3), (4, 50), (2, 4)])
def test_logits_of_another_shape_are_a_row(shape: tuple[int, ...]) -> None:
    row = compare(reduced(torch.randn(2, 4, 50)), {LOGITS: torch.randn(shape)}, real=REAL).rows[0]
    assert row.verdict == "misshapen"


# ---- models ----------------------------------------------------------------------------------------------------------


@NORMS
def test_transformers_agrees_bit_for_bit_at_every_tap(norm: str) -> None:
    pair = reference.build_pair(CONFIGS[norm])
    comparison = compare_models(pair.ours, pair.theirs, pair.batch)
    assert [row.tap for row in comparison.rows] == [tap.name for tap in pair.ours.taps()]
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


@NORMS
def test_transformers_encoder_and_fused_attention(norm: str) -> None:
    pair = reference.build_encoder_pair(CONFIGS[norm], "sdpa")
    comparison = compare_models(pair.ours, pair.theirs, pair.batch)
    taps = [tap.name for tap in pair.ours.taps() if not tap.name.endswith(("scores", "probs"))]
    assert [row.tap for row in comparison.rows] == taps
    assert {row.verdict for row in comparison.rows} == {"equal"}, str(comparison)


def localised(pair: Pair, fault: Fault) -> str | None:
    with fault.applied(pair.ours):
        actual = dump_of(pair.ours, pair.batch)
    first = compare(dump_of(pair.theirs, pair.batch), actual, real=pair.real).first_divergence
    return first.tap if first else None


def visible_faults(norm: str) -> list[Fault]:
    """Those that change a tap in eval mode; the last layer's has another name here than in the catalogue."""
    return [
        fault
        for fault in FAULTS
        if fault.norm in (None, norm.split("-")[0])
        and fault.shows == "outputs"
        and not fault.tap.startswith("layers.-1")
        and (norm == "post-norm" or fault.norm == "pre")
    ]


@NORMS
def test_faults_part_from_transformers_at_their_tap(norm: str) -> None:
    pairs = {head: reference.build_pair_with(CONFIGS[norm], head) for head in ("lm_head", *reference.HEADED)}
    found: dict[str, str | None] = {}
    for fault in visible_faults(norm):
        part = fault.tap.split(".")[0]
        found[fault.name] = localised(pairs[part if part in reference.HEADED else "lm_head"], fault)
    assert found == {fault.name: fault.tap for fault in visible_faults(norm)}


class Other(nn.Module):
    """A library with names and shapes of its own."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.embed = pair.ours.encoder.embeddings.word_embeddings
        self.heads = nn.Unflatten(-1, (4, 6))
        self.config = pair.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.heads(self.embed(input_ids))


def test_another_library_is_described_by_places() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    places = {"embeddings.word": Place("heads", reshape=lambda x: x.flatten(2))}
    comparison = compare_models(pair.ours, Other(pair), pair.batch, places=places)
    assert [(row.tap, row.verdict) for row in comparison.rows] == [("embeddings.word", "equal")]
    with pytest.raises(ValueError, match="at module 'head', which Other lacks"):
        compare_models(pair.ours, Other(pair), pair.batch, places={"embeddings.word": Place("head")})
    with pytest.raises(ValueError, match="describe where its tensors are"):
        compare_models(pair.ours, Other(pair), pair.batch)


def test_a_function_may_stand_for_a_model() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    whole = dump_of(pair.ours, pair.batch)
    comparison = compare_models(pair.ours, lambda batch: {"embeddings.word": whole["embeddings.word"]}, pair.batch)
    assert comparison.rows[0].verdict == "equal"
    assert {row.verdict for row in comparison.rows[1:]} == {"missing"}


class OwnAttention(nn.Module):
    """Takes what ours takes and loads its weights, but has no module for the softmax."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, getattr(ours, name))

    def forward(self, hidden: Tensor, layout: Any) -> Tensor:
        q, k, v = (getattr(self, name)(hidden).unflatten(-1, (4, 6)) for name in ("q_proj", "k_proj", "v_proj"))
        scores = torch.einsum("bqnd,bknd->bnqk", q, k) * 6**-0.5
        probs = scores.masked_fill(~layout.mask, -math.inf).softmax(dim=-1)
        return self.get_submodule("out_proj")(torch.einsum("bnqk,bknd->bqnd", probs, v).flatten(2))


def test_a_model_with_a_class_of_ones_own_is_compared_where_it_has_our_modules() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"], dtype=torch.float64)
    mine = copy.deepcopy(pair.ours)
    mine.encoder.layers[1].attention = OwnAttention(mine.encoder.layers[1].attention)
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.scores is the input of .*partial=True"):
        compare_models(pair.ours, mine, pair.batch)
    floors = Floors({"float64": dict.fromkeys(dump_of(pair.ours, pair.batch), reference.ORACLE_TOLERANCE)})
    comparison = compare_models(pair.ours, mine, pair.batch, floors=floors, partial=True)
    assert comparison.ok, str(comparison)
    assert comparison.skipped == ("layers.1.attention.scores", "layers.1.attention.probs")
    assert "skipped, because the other model lacks their modules: layers.1.attention.scores" in str(comparison)
    assert json.loads(comparison.to_json())["skipped"] == list(comparison.skipped)
    with torch.no_grad():
        mine.encoder.layers[1].attention.k_proj.weight *= 1.01
    wrong = compare_models(pair.ours, mine, pair.batch, floors=floors, partial=True).first_divergence
    assert wrong is not None
    assert wrong.tap == "layers.1.attention.k"


def test_hooks_are_gone_after_an_error() -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    with pytest.raises(IndexError):
        dump_of(pair.theirs, {**pair.batch, "input_ids": pair.batch["input_ids"] + 1000})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pair.theirs.modules())


# ---- the picture -----------------------------------------------------------------------------------------------------


def test_the_plot_has_a_mark_for_every_tap_and_names_the_first_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = reference.build_pair(CONFIGS["post-norm"])
    expected = dump_of(pair.ours, pair.batch)
    with find_fault("q_k_swapped").applied(pair.ours):
        actual = dump_of(pair.ours, pair.batch)
    actual["layers.2.mid"] = actual["layers.2.mid"] * math.nan
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot_error_by_depth(compare(expected, actual, real=pair.real), tmp_path / "error.svg", format="svg")
    [axes] = figures[0].axes
    marks = [point for collection in axes.collections for point in np.asarray(collection.get_offsets())]
    assert sorted(x for x, _ in marks) == list(range(len(expected)))
    assert [text.get_text() for text in axes.texts] == ["layers.0.attention.q"]


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    comparison = compare({TAP: hidden()}, {TAP: hidden()}, real=REAL)
    with pytest.raises(ValueError, match=r"pip install 'xlmr-core\[plot\]'"):
        plot_error_by_depth(comparison, tmp_path / "error.svg", format="svg")
