"""The examples of docs/explore.md for other viewers run, and the views have our numbers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PAGE = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")


def after(package: str) -> dict[str, Any]:
    """The names that exist after the examples of the page, with those of one viewer only."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if package in block or not re.search("bertviz|circuitsvis|page.save", block):
            exec(compile(block, "explore.md", "exec"), names)
        elif "page.save" in block:  # the imports and the model, without the page
            exec(compile(block.partition("page =")[0], "explore.md", "exec"), names)
    return names


def numbers(page: str, key: str) -> Tensor:
    """The array in the data of a view, in whatever brackets it has there."""
    found = re.search(rf'"{key}": (\[+[-\d., e\[\]]+\])', page)
    assert found is not None
    return torch.tensor(json.loads(found[1]))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # bertviz leaves its script open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bertviz() -> None:
    pytest.importorskip("bertviz", reason="bertviz is not installed: pip install bertviz")
    names = after("bertviz")
    expected = torch.cat(names["attention"])  # (L, N, S, S)
    for view in ("heads", "layers"):
        assert torch.equal(numbers(names[view].data, "attn"), expected)


def test_circuitsvis() -> None:
    pytest.importorskip("circuitsvis", reason="circuitsvis is not installed: pip install circuitsvis")
    names = after("circuitsvis")
    assert torch.equal(numbers(str(names["patterns"]), "attention"), names["attention"][1][0])
