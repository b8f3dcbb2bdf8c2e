"""The steps of the course as notebooks, each from its page and its file to fill in; and the walkthrough."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlmr_core.atomic import written_as
from xlmr_core.errors import shortened
from xlmr_course.step import HERE, Step
from xlmr_course.steps import STEPS

WALKTHROUGH = HERE / "walkthrough.py"  # in jupytext's percent format
HINTS = """\
Not right yet? `!xlmr course check {name} --hint` shows where it is wrong, and `--why` the cause. A cell that begins with
`%%writefile` writes your file when you run it, so run it again after each change. To try your functions here, import
them: `from {module} import {function}`."""
EARLIER = (
    "# This step uses files of earlier steps. Without its `#`, a line takes the solution of one you have not written.\n"
)


def write_notebooks(names: Sequence[str], folder: Path, package: str, arrays: str = "torch") -> list[Path]:
    """Writes a notebook for each name.

    Args:
        names: Of steps, or "walkthrough".
        folder: Where the notebooks go; it is made if it does not exist.
        package: What pip installs in the first cell: the name of the package, or the address of its repository.
        arrays: What the learner writes in, "torch" or "numpy".

    Returns:
        The files.

    Raises:
        ValueError: jupytext is not installed, a file exists already with other content, or `package` is not a name.
    """
    if not package.isprintable() or '"' in package:
        raise ValueError(f"pip cannot install {shortened(package)}: expected a name or an address without quotes")
    steps = {step.name: step for step in STEPS}
    notebooks: dict[Path, str] = {}
    for name in names:
        content = _of_step(steps[name], package, arrays) if name in steps else _of_walkthrough(package)
        notebooks[folder / f"{_stem(name)}.ipynb"] = content
    for file, notebook in notebooks.items():
        is_ours = file.is_file() and file.read_bytes() == notebook.encode()  # of a run that was interrupted
        if file.exists() and not is_ours:
            raise ValueError(f"{file} exists: it may have your work. Remove it, or choose another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    for file, notebook in notebooks.items():
        with written_as(file) as temporary:
            temporary.write_bytes(notebook.encode())
    return list(notebooks)


def _stem(name: str) -> str:
    """The name of the file without its ending: that of a step begins with its number, as its page does."""
    numbers = {step.name: number for number, step in enumerate(STEPS, start=1)}
    return f"{numbers[name]:02}-{name}" if name in numbers else name


def _of_step(step: Step, package: str, arrays: str) -> str:
    _, v4 = _libraries()
    option = " --numpy" if arrays == "numpy" else ""
    needed = _imported(step.solution_in(arrays))
    earlier = "".join(f"# !xlmr course solution {other.name}{option} > {other.file}\n" for other in needed)
    hints = HINTS.format(name=step.name, module=step.file.removesuffix(".py"), function=step.functions[0].name)
    cells = [
        v4.new_code_cell(_install(package)),
        v4.new_code_cell(f"!xlmr course start .{option}"),
        v4.new_markdown_cell(_with_picture(step)),
        *([v4.new_code_cell((EARLIER + earlier).rstrip())] if earlier else []),
        v4.new_code_cell(f"%%writefile {step.file}\n{step.stub_in(arrays)}".rstrip()),
        v4.new_code_cell(f"!xlmr course check {step.name}"),
        v4.new_markdown_cell(hints),
    ]
    return _text(v4.new_notebook(cells=cells))


def _of_walkthrough(package: str) -> str:
    jupytext, v4 = _libraries()
    notebook = jupytext.read(WALKTHROUGH, fmt="py:percent")
    notebook.cells.insert(0, v4.new_code_cell(_install(package)))
    return _text(notebook)


def _libraries() -> tuple[Any, Any]:
    """jupytext, and the current format of notebooks."""
    try:
        import jupytext
        from nbformat import v4
    except ImportError as error:
        raise ValueError(
            "notebooks are written by jupytext, which is not installed: pip install 'xlmr-core[notebooks]'"
        ) from error
    return jupytext, v4


def _install(package: str) -> str:
    return f'%pip install --quiet "{package}"'


def _imported(solution: Path) -> list[Step]:
    """The steps whose files the solution imports, and theirs, in the order of the course."""
    found: set[str] = set()
    waiting = [solution]
    while waiting:
        source = waiting.pop().read_text(encoding="utf-8")
        modules = re.findall(r"^from (\w+) import", source, re.MULTILINE)
        new = [other for other in STEPS if other.file.removesuffix(".py") in modules and other.name not in found]
        found |= {other.name for other in new}
        waiting += [solution.parent / other.file for other in new]
    return [other for other in STEPS if other.name in found]


def _with_picture(step: Step) -> str:
    """The page with its picture inside it: a notebook is one file."""
    picture = base64.b64encode(step.picture.read_bytes()).decode()
    page = step.page.read_text(encoding="utf-8")
    return page.replace(f"(pictures/{step.picture.name})", f"(data:image/svg+xml;base64,{picture})").rstrip()


def _text(notebook: Any) -> str:
    """The content of the file. The cells have numbers for names, so that each run writes the same file."""
    import nbformat

    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"
