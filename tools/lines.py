"""Code lines from text to logits, without blank lines, comments and docstrings: `make lines`."""

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "xlmr_core"
FILES = ("config", "tokenizer", "model", "heads")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """The number of lines that contain code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def imported(source: str) -> set[str]:
    """The modules of the package that a module imports at its top."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    modules = [
        f"{node.module}.{alias.name}" if node.module == "xlmr_core" else str(node.module)
        for node in nodes
        for alias in node.names
    ]
    return {module.removeprefix("xlmr_core.") for module in modules if module.startswith("xlmr_core.")}


def counts() -> tuple[dict[str, int], dict[str, int]]:
    """Code lines of the four files, and of the other files of the package that they import, by module name."""
    sources = {name: (PACKAGE / f"{name}.py").read_text(encoding="utf-8") for name in FILES}
    others = set[str]().union(*map(imported, sources.values())) - set(FILES)
    files = {name: PACKAGE / f"{name.replace('.', '/')}.py" for name in sorted(others)}
    return (
        {name: code_lines(source) for name, source in sources.items()},
        {name: code_lines(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()},
    )


if __name__ == "__main__":
    four, others = counts()
    for name, count in (four | others).items():
        print(f"{name:12} {count:5}")
    print(f"{'four files':12} {sum(four.values()):5}")
    print(f"{'with imports':12} {sum(four.values()) + sum(others.values()):5}")
