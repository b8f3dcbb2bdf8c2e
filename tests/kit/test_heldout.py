"""The ports of benchmarks/heldout: the right ones pass, and the first wrong tap of their bugs is found."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from xlmr_core.parity import measure_floors
from xlmr_core.parity.compare import Comparison, compare

FOLDER = Path(__file__).parents[2] / "benchmarks" / "heldout"
CASES = {
    "torch": ("torch-03", "torch-09", "torch-17"),
    "numpy": ("numpy-01", "numpy-06", "numpy-22"),
    "jax": ("jax-04", "jax-08", "jax-23"),
}


@pytest.fixture(scope="module")
def runner() -> Any:
    """benchmarks/heldout/run.py, which finds its neighbours by the path."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("heldout_run", FOLDER / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def study(runner: Any) -> Any:
    made = runner.Study("tiny", runner.TEXTS)
    made.floors = measure_floors(made.model, made.batch, dtypes=[torch.float32])
    return made


def compared(study: Any, port: str, bug: Any = None) -> Comparison:
    if port == "jax":
        pytest.importorskip("jax", reason="the JAX port needs the extra `heldout`")
    expected = {name: torch.from_numpy(values) for name, values in study.ours.items()}
    actual = {name: torch.from_numpy(values) for name, values in study.dump(port, bug=bug).items()}
    return compare(expected, actual, real=study.batch["attention_mask"].bool(), floors=study.floors)


@pytest.mark.parametrize("port", CASES)
def test_the_right_port_passes_at_every_tap(study: Any, port: str) -> None:
    comparison = compared(study, port)
    assert comparison.ok, str(comparison)
    assert len(comparison.rows) == len(study.ours)


@pytest.mark.parametrize("name", [name for names in CASES.values() for name in names])
def test_the_first_wrong_tap_is_the_one_of_the_truth(runner: Any, study: Any, name: str) -> None:
    bug = runner.BUGS[name]
    assert compared(study, bug.port, bug).first_divergence.tap == bug.first


def test_every_bug_changes_its_port(runner: Any) -> None:
    import heldout_ports as ports

    for bug in (ports.BUGS | ports.VARIANTS).values():
        compile(ports.source(bug.port, bug.changes), bug.id, "exec")
        assert bug.truth
