"""The tables of docs/scale.md are computed from the measured rates."""

import scale_costs
from scale_costs import MARK, PAGE, Machine, costs, limits, tables

RATES = {
    "tokens_per_row": 40,
    "tokens_per_second_tokenizer": 4e6,
    "rows_per_second_read": {"txt": 4e5, "jsonl": 1e5},
    "rows_per_second_without_the_model": 1e4,
    "write": {"npy": {"rows_per_second": 4e4}, "jsonl": {"rows_per_second": 2.5e3}},
}


def test_the_page_is_what_its_tool_writes() -> None:
    assert PAGE.read_text(encoding="utf-8").partition(MARK)[2].strip() == tables().strip()


def test_costs_and_limits() -> None:
    lines = costs(RATES, [Machine("core", 1000, 0.04)])
    assert lines[2] == "| a billion short texts | 40 G | core | 11,000 | 440 | 0.46 |"
    assert "| write vectors as jsonl | 2,500 | 5.0 |" in limits(RATES, gpu_rate=5e5)
    assert [scale_costs.short(number) for number in (0.0456, 7, 85_432, 2.04e12)] == ["0.046", "7", "85,000", "2 T"]
