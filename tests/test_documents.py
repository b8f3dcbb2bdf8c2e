"""Every Python example of the README and of weights/README.md runs, and every `xlmr` command in them is one."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from xlmr_core.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "weights" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(block, id=f"{page.parent.name}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
]
SHELL = [
    command
    for page in PAGES
    for block in blocks(page, "(?:bash|console)")
    for command in re.findall(r"xlmr [a-z-]+(?:[^&|\n]|\\\n)*", block)
]


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 3
    assert len(SHELL) >= 4


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example may say `# -> value` behind an expression: then that is what it gives."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(compile(block, "README", "exec"), space)
    for line in block.splitlines():
        if " # -> " in line:
            expression, expected = line.split(" # -> ")
            assert str(eval(expression, space)) == expected.strip(), line


@pytest.mark.parametrize("command", SHELL)
def test_commands_exist_with_their_options(command: str) -> None:
    name, *arguments = shlex.split(command.replace("\\\n", " "))[1:]
    assert name in COMMANDS
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("-")]
    help_text = CliRunner().invoke(main, [name, "--help"]).stdout
    assert all(re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) for option in options), help_text


def test_bundled_fill_mask_command_gives_what_the_readme_shows() -> None:
    [block] = [b for b in blocks(ROOT / "README.md", "console") if b.startswith("$ xlmr fill-mask")]
    command, _, shown = block.partition("\n")
    result = CliRunner().invoke(main, shlex.split(command)[2:])
    assert result.exit_code == 0
    assert result.stdout.strip() == shown.strip()
