"""The code from text to logits stays short: a limit on the lines of its files."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "lines.py"
FOUR_FILES = 640  # config, tokenizer, model, heads
WITH_IMPORTS = 1010  # and the files of the package that they import at their top

spec = importlib.util.spec_from_file_location("lines_tool", TOOL)
assert spec is not None
assert spec.loader is not None
lines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lines)


def test_lines_with_code_are_counted() -> None:
    source = '"""Doc.\n\nMore."""\n\n# why\nx = (\n    1,  # one\n)\n\n\ndef f():\n    """Doc."""\n    return "a"\n'
    assert lines.code_lines(source) == 5


def test_from_text_to_logits() -> None:
    four, others = lines.counts()
    assert list(four) == ["config", "tokenizer", "model", "heads"]
    assert {"kernels", "pretrained", "spec"} <= others.keys()
    assert sum(four.values()) <= FOUR_FILES, four
    assert sum(four.values()) + sum(others.values()) <= WITH_IMPORTS, others


def test_a_module_is_counted_however_it_is_imported() -> None:
    source = "from xlmr_core import groups as g\nfrom xlmr_core.kernels import (\n    A,\n    B,\n)\nimport torch\n"
    assert lines.imported(source) == {"groups", "kernels"}
