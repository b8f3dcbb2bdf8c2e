"""tests/README.md names every module of the package, and every test that it names exists."""

import re
from pathlib import Path

import xlmr_core

TESTS = Path(__file__).parent
PACKAGE = Path(xlmr_core.__file__).parent
HELPERS = "## Helper modules"


def rows() -> list[tuple[str, str]]:
    """The first and the second cell of each row of the tables."""
    return re.findall(r"^\| (`.*?) \| (.*) \|$", (TESTS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([\w/]+(?:\.py|/))`", text))


def test_every_module_is_in_the_map() -> None:
    named = set().union(*(quoted(first) for first, second in rows() if quoted(second)))
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE)
        assert {module.as_posix(), f"{module.parent.as_posix()}/"} & named, f"tests/README.md does not name {module}"
    for name in named:
        assert (PACKAGE / name).exists(), f"tests/README.md names {name}, which does not exist"


def test_every_test_and_helper_of_the_map_exists() -> None:
    """By file name: a test may move to another folder."""
    existing = {path.name for path in TESTS.rglob("*.py")}
    tests = set().union(*(quoted(second) or quoted(first) for first, second in rows()))
    named = {Path(name).name for name in tests if name.endswith(".py")}
    assert named <= existing, f"tests/README.md names {sorted(named - existing)}, which do not exist"


def test_every_helper_is_in_the_map() -> None:
    page = (TESTS / "README.md").read_text(encoding="utf-8")
    helpers = {path.name for path in TESTS.rglob("*.py") if not path.name.startswith(("test_", "conftest", "__"))}
    named = {Path(name).name for name in quoted(page[page.index(HELPERS) :])}
    assert helpers == named
