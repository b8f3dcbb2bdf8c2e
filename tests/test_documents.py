"""Every Python example of the documents runs, and every `xlmr` command in them is one."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from xlmr_core.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
DOCS = [
    ROOT / "docs" / name
    for name in (
        "add-a-head.md",
        "checkpoints.md",
        "command-line.md",
        "finetune.md",
        "index.md",
        "explore.md",
        "internals.md",
        "parity.md",
        "python.md",
        "scale.md",
        "training.md",
        "served-vectors.md",
        "tasks.md",
        "trace-format.md",
    )
]
DOCS += sorted((ROOT / "docs" / "interpretability").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "weights" / "README.md"]

# Examples with these run in tests of their own: below, in tests/engines and in tests/explore/test_viewers.py.
ELSEWHERE = ("nnsight", "engines.datatrove", "engines.ray", "bertviz", "circuitsvis")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


SHELL = [
    command
    for page in PAGES
    for block in blocks(page, "(?:bash|console)")
    for command in re.findall(r"xlmr [a-z-]+(?:[^&|\n]|\\\n)*", block)
]


def test_there_is_something_to_run() -> None:
    assert all(blocks(page, "python") for page in PAGES if page.name in ("README.md", "internals.md"))
    assert len(SHELL) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of a page run one after another. `print(x)  # -> value` says what x is."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks(page, "python"):
        if any(name in block for name in ELSEWHERE):
            continue
        exec(compile(block, str(page), "exec"), space)
        for expression, expected in re.findall(r"^print\((.*)\)  # -> ([^,\n]*)", block, re.MULTILINE):
            assert str(eval(expression, space)) == expected, expression


def test_the_nnsight_example_runs(tmp_path: Path) -> None:
    """As a script: nnsight reads the source of the code that is traced."""
    if importlib.util.find_spec("nnsight") is None:
        pytest.skip("nnsight is not installed: pip install nnsight")
    first, *_, example = blocks(ROOT / "docs" / "internals.md", "python")
    assert "nnsight" in example
    script = tmp_path / "example.py"
    script.write_text(f"import torch\n{first}\nprint('nnsight')\n{example}", encoding="utf-8")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shown = re.findall(r"^print\(.*\)  # -> (.*)$", example, re.MULTILINE)
    assert run.stdout.partition("nnsight\n")[2].splitlines() == shown


@pytest.mark.parametrize("command", SHELL)
def test_commands_exist_with_their_options(command: str) -> None:
    name, *arguments = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    assert name in COMMANDS
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("-")]
    path = [name, arguments[0]] if name == "parity" else [name]
    help_text = CliRunner().invoke(main, [*path, "--help"]).stdout
    assert all(re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) for option in options), help_text


def test_bundled_fill_mask_command_gives_what_the_readme_shows() -> None:
    [command] = [line for line in blocks(ROOT / "README.md", "bash") if "xlmr fill-mask" in line]
    [shown] = blocks(ROOT / "README.md", "console")
    result = CliRunner().invoke(main, shlex.split(command.partition("xlmr ")[2]))
    assert result.exit_code == 0
    assert result.stdout.strip() == shown.strip()
