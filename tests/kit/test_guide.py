"""The divergence guide says what comes out today, and leaves nothing out."""

import divergence_guide as guide

from xlmr_core.parity.faults import FAULTS, POOLING_FAULTS, TOKENIZER_FAULTS

NAMES = [fault.name for fault in (*FAULTS, *TOKENIZER_FAULTS, *POOLING_FAULTS)]


def test_the_committed_guide_is_up_to_date() -> None:
    assert guide.PATH.read_text(encoding="utf-8") == guide.text(), "run `make pages`"


def test_every_fault_has_a_row() -> None:
    tables, _ = guide.PATH.read_text(encoding="utf-8").split("## Traps of XLM-R")
    for name in NAMES:
        assert tables.count(f"| `{name}` |") == NAMES.count(name), name  # a fault with two levels is in two tables


def test_traps_name_faults_of_the_catalogue() -> None:
    assert len(guide.TRAPS) == 18
    for trap, faults in guide.TRAPS:
        assert faults, trap
        assert isinstance(faults, str) or set(faults) <= set(NAMES), trap
