"""docs/what-passes-elsewhere.md is what its generator writes: a part of it is made again."""

import importlib.util
import re
from pathlib import Path

from xlmr_core.served.faults import faults_for

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "passes_elsewhere.py"
PART = ("pooled_first", "pooled_without_specials", "not_normalized", "truncated_at_64", "relu_for_gelu", "gelu_tanh")

spec = importlib.util.spec_from_file_location("passes_elsewhere", TOOL)
assert spec
assert spec.loader
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def rows(page: str) -> dict[str, list[bool]]:
    """Fault -> which rules it passes, from the last table of the page."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    return {name: [cell == "x" for cell in marks] for name, *marks in cells if set(marks) <= {"x", ""}}


def test_a_part_of_the_page_is_what_the_generator_writes() -> None:
    page = tool.PAGE.read_text(encoding="utf-8")
    pipeline = tool.embedder()
    faults = [fault for fault in faults_for(pipeline) if fault.name in PART]
    found = tool.passed(pipeline, faults)
    shown = rows(page)
    assert len(found) == len(PART)
    for name, rules in found.items():
        assert shown[name] == [rule in rules for rule in tool.RULES], name


def test_the_counts_are_those_of_the_table() -> None:
    page = tool.PAGE.read_text(encoding="utf-8")
    rounding = {fault.name for fault in faults_for(tool.embedder()) if fault.rounding}
    counted = [marks for name, marks in rows(page).items() if name not in rounding]
    counts = [int(count) for count in re.findall(r"\| (\d+) of \d+ \|", page)]
    assert counts == [sum(column) for column in zip(*counted, strict=True)]


def test_a_right_vector_passes_every_rule_and_a_wrong_one_none() -> None:
    pipeline = tool.embedder()
    right = pipeline.run([("The cat sees the dog.",), ("Two cats sleep.",)])
    assert all(rule(right, right) for _, rule in tool.RULES.values())
    assert not any(rule(right, -right) for _, rule in tool.RULES.values())
