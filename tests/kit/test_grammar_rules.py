"""Every rule of the grammar names a bug that it was written for, planted in a port of its own (step_port.py)."""

from typing import Any

import pytest
import reference
from kit import step_port
from kit.planted_steps import BUGS

from xlmr_core.parity.diagnose import diagnose
from xlmr_core.parity.grammar.terms import weights_of

IN_BRIEF = ("positions clamped", "upper ids one too high", "mask after the softmax")


@pytest.fixture(scope="module")
def pair() -> reference.Pair:
    return reference.build_pair(reference.POST_NORM)


def dump_with(pair: reference.Pair, **steps: Any) -> dict[str, Any]:
    return step_port.dump(weights_of(pair.ours), pair.config, pair.batch, **steps)


def test_the_port_is_right_as_it_stands(pair: reference.Pair) -> None:
    found = diagnose(pair.ours, pair.batch, dump_with(pair))
    assert found.ok, str(found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_BRIEF else [pytest.mark.slow]) for name in BUGS]
)
def test_a_bug_is_named(pair: reference.Pair, name: str) -> None:
    bug = BUGS[name]
    found = diagnose(pair.ours, pair.batch, dump_with(pair, **bug.steps))
    assert found.first_tap == bug.tap, str(found)
    assert found.explained, str(found)
    [finding] = found.findings
    assert any(all(word in fault.name for word in bug.words) for fault in finding.faults[:3]), str(found)
