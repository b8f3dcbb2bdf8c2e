"""docs/ports.md is what its generator writes from the stored results; every port has its script and a fair verdict."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

PORTS = Path(__file__).parents[2] / "benchmarks" / "ports"


def test_the_page_is_that_of_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PORTS)
    page = importlib.import_module("page")
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.page(results)


def test_every_port_has_a_script_and_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PORTS)
    ports = importlib.import_module("ports")
    assert len({port.name for port in ports.PORTS}) == len(ports.PORTS)
    for port in ports.PORTS:
        assert port.environment in ports.PACKAGES, port.name
        scripts = (port.script or f"with_{port.environment}.py", f"with_{port.environment}.mjs")
        assert any((PORTS / script).is_file() for script in scripts), port.name


def test_a_tap_that_the_checkpoint_lacks_is_not_counted(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port may have a pooler with weights that it drew at random."""
    monkeypatch.syspath_prepend(PORTS)
    checked = importlib.import_module("verdicts").Checked(embedder, ["a"], ["float32"])
    right = {tap: checked.trace.tensors[tap].numpy() for tap in ("embeddings.output", "layers.1.output")}
    file = tmp_path / "dump.npz"
    np.savez(file, **right, **{"pooler.output": np.zeros((5, 32), dtype=np.float32)})
    found = checked.states(file, None)
    assert found["ok"]
    assert (found["taps"], found["last"]) == (2, 0.0)
