"""The project's words: pages, help texts and error messages use the terms of docs/glossary.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import walkthrough

from xlmr_core.cli import main

ROOT = Path(__file__).parent.parent
RULED_OUT = {
    r"\b(?<!able to )(tells?|told)\b(?![^.]{0,40}\bapart\b)": "say: shows, lists, names, reports",
    r"\bspeaks? of\b": "say: names, describes",
    r"\balone\b": "say: only X; on its own",
    r"\bthe reference\b(?! (implementation|XLM-R))": "name the implementation: transformers, fairseq",
    r"(?<!documentation )\bsites?\b(?! in `build)": "say: tap",
    r"\bmistakes?\b": "say: fault",
    r"\bfates?\b": "say: status",
    r"\bdialects?\b": "say: key layout",
    r"\bgolden (numbers|traces?)\b": "say: trace",
    r"\bnobody (watches|guessed|reads|sees)\b": "say what happens",
    r"\bfor want of\b": "say: because there is no",
}


def words_of_commands() -> Iterator[tuple[str, str]]:
    """The help text of every command."""
    waiting: list[tuple[str, click.Command, click.Context]] = [("xlmr", main, click.Context(main, info_name="xlmr"))]
    while waiting:
        name, command, context = waiting.pop()
        yield f"{name} --help", command.get_help(context)
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                child = command.get_command(context, each)
                assert child is not None
                waiting.append((f"{name} {each}", child, click.Context(child, info_name=each, parent=context)))


def words_of_errors() -> Iterator[tuple[str, str]]:
    """The text of every message that the package raises."""
    for path in sorted((ROOT / "xlmr_core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                constants = (part for part in ast.walk(node.exc) if isinstance(part, ast.Constant))
                text = "".join(part.value for part in constants if isinstance(part.value, str))
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def words_of_pages() -> Iterator[tuple[str, str]]:
    """The prose of README, docs and the course, without code."""
    readmes = (ROOT / "README.md", ROOT / "weights" / "README.md", ROOT / "course" / "README.md")
    course = ROOT / "course" / "xlmr_course" / "pages"
    for path in (*readmes, *sorted((ROOT / "docs").rglob("*.md")), *sorted(course.glob("*.md"))):
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        yield path.relative_to(ROOT).as_posix(), re.sub(r"`[^`]*`", "", text)


def words_of_walkthrough() -> Iterator[tuple[str, str]]:
    """The prose of the page that tools/walkthrough.py writes."""
    yield "tools/walkthrough.py", walkthrough.INTRODUCTION
    for step in walkthrough.STEPS:
        yield f"tools/walkthrough.py: {step.title}", re.sub(r"`[^`]*`", "", step.words)


@pytest.mark.parametrize("words", [words_of_pages, words_of_commands, words_of_errors, words_of_walkthrough])
def test_no_word_that_the_glossary_rules_out(words) -> None:  # type: ignore[no-untyped-def]
    found = [
        f"{where}: {match.group()!r}; {instead}"
        for where, text in words()
        for pattern, instead in RULED_OUT.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_the_check_finds_a_word() -> None:
    assert any(re.search(pattern, "the file tells") for pattern in RULED_OUT)
