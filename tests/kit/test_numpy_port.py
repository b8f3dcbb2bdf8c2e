"""The NumPy port is right as it stands, and every fault it can make makes it wrong."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from kit import numpy_port

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel
from xlmr_core.parity.compare import compare
from xlmr_core.parity.floors import measure_floors

NORMS = ("post-norm", "pre-norm")


@pytest.fixture(params=NORMS)
def pair(request: pytest.FixtureRequest) -> reference.Pair:
    return reference.build_pair(reference.CONFIGS[request.param])


def port_of(model: XLMRobertaForMaskedLM | XLMRobertaModel, folder: Path) -> dict[str, object]:
    model.save_pretrained(folder)
    return numpy_port.load(folder)


def test_it_agrees_up_to_rounding_at_every_tap(pair: reference.Pair, tmp_path: Path) -> None:
    dump = numpy_port.as_taps(port_of(pair.ours, tmp_path), pair.batch)
    with torch.no_grad(), pair.ours.capture("**") as ours:
        pair.ours(**pair.batch)
    assert set(dump) == set(ours)
    comparison = compare(ours, dump, real=pair.real, floors=measure_floors(pair.ours, pair.batch))
    assert comparison.ok, str(comparison)


def test_the_pooler_agrees(tmp_path: Path) -> None:
    pair = reference.build_encoder_pair(reference.CONFIGS["post-norm"])
    dump = numpy_port.as_taps(port_of(pair.ours, tmp_path), pair.batch)
    with torch.no_grad(), pair.ours.capture("pooler.*") as ours:
        pair.ours(**pair.batch)
    pooled = {tap: dump[tap] for tap in ours}
    comparison = compare(ours, pooled, real=pair.real, floors=measure_floors(pair.ours, pair.batch))
    assert comparison.ok, str(comparison)


def test_it_computes_in_float32(pair: reference.Pair, tmp_path: Path) -> None:
    port = port_of(pair.ours, tmp_path)
    dump = numpy_port.forward(port, pair.batch["input_ids"].numpy(), pair.batch["attention_mask"].numpy())
    assert {array.dtype for array in dump.values()} == {np.dtype(np.float32)}


def test_an_unknown_fault_is_refused(pair: reference.Pair, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot make the faults \['q_k_swap'\]"):
        numpy_port.as_taps(port_of(pair.ours, tmp_path), pair.batch, {"q_k_swap"})
