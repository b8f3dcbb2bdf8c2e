"""A file of the package as a page: what its docstrings and comments say on the left, its code on the right.

Every line of the file is on the page once, with its number. Trailing comments stay with their code.
"""

import ast
import re
from dataclasses import dataclass, field
from html import escape
from textwrap import dedent

from source_code import FILES, PACKAGE, Highlighted, beside, inline

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
RULE = re.compile(r"^\s*# -+ (.*?) -+$")  # a comment that divides a file

INTRODUCTION = """\
---
hide: [navigation]
---

# {name}.py

The whole file, with what its docstrings and comments say beside the code. {links}

"""


@dataclass
class Block:
    """Some prose and the code that it is about."""

    heading: str = ""
    prose: list[str] = field(default_factory=list)
    said: list[int] = field(default_factory=list)  # the lines of the prose
    code: list[int] = field(default_factory=list)


def page(name: str) -> str:
    """The page of one of the four files."""
    others = ", ".join(f"[{other}.py]({other}.md)" for other in FILES if other != name)
    links = f"The others: {others}. In use: [the walkthrough](../walkthrough.md)."
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    shown = Highlighted(source)
    parts = [INTRODUCTION.format(name=name, links=links)]
    for block in blocks(source):
        if block.heading:
            parts.append(f"## {block.heading}\n\n")
        prose = "".join(map(prose_html, block.prose))
        parts.append(beside(prose, shown.html(block.code, anchors=True), "source"))
    return "".join(parts)


def blocks(source: str) -> list[Block]:
    """The file in parts. A part begins with a class or function that has a docstring, or with a comment of its own."""
    lines = source.rstrip("\n").split("\n")
    docstrings, starts = _docstrings(ast.parse(source))
    headings = {
        (node.decorator_list[0] if node.decorator_list else node).lineno: f"`{node.name}`"
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    found = [Block()]
    for number, line in enumerate(lines, start=1):
        if RULE.match(line):
            heading = RULE.match(line).group(1)
            found.append(Block(heading[0].upper() + heading[1:], said=[number]))
            continue
        is_comment = line.lstrip().startswith("#") and number not in docstrings
        begins = number in starts or (is_comment and number - 1 not in found[-1].said)
        if (begins or number in headings) and (_has_code(found[-1], lines) or found[-1].heading):
            found.append(Block())
        block = found[-1]
        block.heading = headings.get(number, block.heading)
        if number in docstrings:
            block.said.append(number)
            if docstrings[number]:
                block.prose.append(docstrings[number])
        elif is_comment:
            words = line.strip().removeprefix("#").strip()
            goes_on = block.prose and number - 1 in block.said and number - 1 not in docstrings
            if goes_on:
                block.prose[-1] += f" {words}"
            else:
                block.prose.append(words)
            block.said.append(number)
        else:
            block.code.append(number)
    return [_trimmed(block, lines) for block in found if block.prose or block.heading or _has_code(block, lines)]


def _docstrings(tree: ast.Module) -> tuple[dict[int, str], set[int]]:
    """The lines of docstrings, with the text at the first line of each; and the lines where their owners begin."""
    texts: dict[int, str] = {}
    starts: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or ast.get_docstring(node) is None:
            continue
        said = node.body[0]
        texts |= dict.fromkeys(range(said.lineno, (said.end_lineno or said.lineno) + 1), "")
        texts[said.lineno] = ast.get_docstring(node) or ""
        if not isinstance(node, ast.Module):
            starts.add((node.decorator_list[0] if node.decorator_list else node).lineno)
    return texts, starts


def _has_code(block: Block, lines: list[str]) -> bool:
    return any(lines[number - 1].strip() for number in block.code)


def _trimmed(block: Block, lines: list[str]) -> Block:
    """Without the empty lines at both ends of its code."""
    full = [number for number in block.code if lines[number - 1].strip()]
    block.code = [number for number in block.code if full and full[0] <= number <= full[-1]]
    return block


def prose_html(words: str) -> str:
    """A docstring or a comment: paragraphs, tables that are drawn with spaces, and sections such as Args."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", words):
        first, _, rest = paragraph.partition("\n")
        if SECTION.match(first):
            items = re.split(r"\n(?=\S)", dedent(rest))
            parts.append(f"<p><em>{first}</em></p><ul>{''.join(f'<li>{_item(item)}</li>' for item in items)}</ul>")
        elif all(line.startswith("    ") for line in paragraph.split("\n")):
            parts.append(f"<pre>{escape(dedent(paragraph))}</pre>")
        else:
            parts.append(f"<p>{inline(paragraph)}</p>")
    return "".join(parts)


def _item(words: str) -> str:
    """`name: words` with the name as code."""
    name, colon, rest = words.partition(": ")
    return f"<code>{escape(name)}</code>: {inline(rest)}" if colon else inline(words)
