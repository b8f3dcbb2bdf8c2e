"""Checkpoints written once by transformers, read by many tests. They are not to be changed: copy what you damage."""

from pathlib import Path
from typing import Any

import pytest
from checkpoint import published


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("published")
    return {kind: (root / kind, published.write(root / kind, kind)) for kind in published.KINDS}


@pytest.fixture(scope="session")
def folders(_written: dict[str, tuple[Path, Any]]) -> dict[str, Path]:
    """kind -> the folder transformers wrote."""
    return {kind: folder for kind, (folder, _) in _written.items()}


@pytest.fixture(scope="session")
def models(_written: dict[str, tuple[Path, Any]]) -> dict[str, Any]:
    """kind -> transformers' model with the weights in that folder."""
    return {kind: model for kind, (_, model) in _written.items()}
