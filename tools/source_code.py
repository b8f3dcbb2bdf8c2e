"""Lines of the package's files in colour, and two columns to show them beside something."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

PACKAGE = Path(__file__).parents[1] / "xlmr_core"
FILES = ("config", "tokenizer", "model", "heads")  # from text to logits, in reading order: docs/index.md


def beside(left: str, right: str, kind: str) -> str:
    """Two columns, or on a phone one below the other. docs/extra.css has the widths of each `kind`."""
    return f'<div class="beside beside-{kind}"><div>{left}</div><div>{right}</div></div>\n\n'


def inline(words: str) -> str:
    """A sentence as HTML; what is between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(re.sub(r"\s*\n\s*", " ", words), quote=False))


@cache
def _coloured(source: str) -> str:
    return highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))


class Highlighted:
    """A file's lines in colour."""

    def __init__(self, source: str) -> None:
        self.plain, self.lines = source.split("\n"), _coloured(source).split("\n")

    def html(self, numbers: list[int], *, anchors: bool = False) -> str:
        """Some lines, with their numbers, moved to the left as far as all of them can be.

        Args:
            numbers: the lines, counted from 1.
            anchors: whether each line can be linked to, as `#L` with its number. Then no line is moved.
        """
        if not any(self.plain[number - 1].strip() for number in numbers):
            return ""
        indents = [re.match(" *", self.plain[i - 1]).end() for i in numbers if self.plain[i - 1].strip()]
        indent = 0 if anchors else min(indents)
        lines = []
        for number in numbers:
            identity = f' id="L{number}"' if anchors else ""
            lines.append(
                f'<span class="line" data-line="{number}"{identity}>{_less(self.lines[number - 1], indent)}</span>'
            )
        return '<div class="highlight"><pre><code>' + "\n".join(lines) + "</code></pre></div>"


def _less(line: str, indent: int) -> str:
    """A coloured line without `indent` of the spaces at its start."""
    return re.sub(rf"^((?:<[^>]*>)*) {{{indent}}}", r"\1", line)


@dataclass(frozen=True)
class Lines:
    """Lines of a function, from the statement that begins with `first` to the one that begins with `last`."""

    function: Callable[..., Any]
    first: str
    last: str = ""

    @property
    def file(self) -> Path:
        """The file of the function."""
        return Path(inspect.getsourcefile(self.function) or "").resolve()

    @property
    def numbers(self) -> range:
        """The lines, counted from 1 in the file.

        Raises:
            ValueError: not exactly one statement begins so.
        """
        source, start = inspect.getsourcelines(self.function)
        tree = ast.parse(textwrap.dedent("".join(source)))
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]

        def found(begins: str) -> ast.stmt:
            those = [node for node in statements if source[node.lineno - 1].strip().startswith(begins)]
            if len(those) != 1:
                raise ValueError(f"{self.function.__qualname__} has {len(those)} statements that begin with {begins!r}")
            return those[0]

        end = found(self.last or self.first)
        return range(start + found(self.first).lineno - 1, start + (end.end_lineno or end.lineno))

    def html(self) -> str:
        """The lines in colour, with their place."""
        first, last = self.numbers[0], self.numbers[-1]
        name = self.file.relative_to(PACKAGE).as_posix()
        place = f"{name}, {f'line {first}' if first == last else f'lines {first} to {last}'}"
        if self.file.stem in FILES and self.file.parent == PACKAGE:
            place = f'<a href="source/{self.file.stem}.html#L{first}">{place}</a>'
        shown = Highlighted(self.file.read_text(encoding="utf-8")).html(list(self.numbers))
        return f'<p class="beside-place">{place}, in <code>{self.function.__qualname__}</code></p>{shown}'
