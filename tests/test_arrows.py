"""Imports run one way, the model depends on torch alone, and importing the package costs no more than torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import xlmr_core

PACKAGE = Path(xlmr_core.__file__).parent

# atomic, json_files -> config, lines
# -> pretrained, inputs -> tokenizer, model -> heads -> taps, checkpoint -> tasks, parity, training -> cli
RANK = {
    "atomic": -1,
    "json_files": -1,
    "config": 0,
    "lines": 0,
    "pretrained": 1,
    "inputs": 1,
    "tokenizer": 2,
    "model": 2,
    "heads": 3,
    "taps": 4,
    "checkpoint": 4,
    "tasks": 5,
    "parity": 5,
    "training": 5,
    "": 6,  # the package itself: its public names
    "cli": 7,
}

# The only arrows that run back: verbs that reach outside, whose bodies import when called.
BACK = {
    ("pretrained.py", "PretrainedModel.from_pretrained", "checkpoint"),
    ("pretrained.py", "PretrainedModel.save_pretrained", "checkpoint"),
    ("pretrained.py", "PretrainedModel.taps", "taps"),
    ("pretrained.py", "PretrainedModel.capture", "taps"),
    ("pretrained.py", "PretrainedModel.intervene", "taps"),
    ("tokenizer.py", "XLMRobertaTokenizer.from_pretrained", "checkpoint"),
}

HEAVY = {"huggingface_hub", "sentencepiece", "click", "tqdm", "transformers", "safetensors", "requests", "httpx"}


@dataclass(frozen=True)
class Import:
    file: str  # below the package
    function: str  # the qualified name of the function whose body imports, or "" for the module
    module: str
    for_types_only: bool

    @property
    def importer(self) -> str:
        """The part of the package that imports: "checkpoint" for checkpoint/files.py."""
        part = self.file.split("/")[0].removesuffix(".py")
        return "" if part == "__init__" else part

    @property
    def part(self) -> str | None:
        """The part of the package that is imported, "" for the package itself; None for another package."""
        head, _, rest = self.module.partition(".")
        part = rest.split(".")[0]
        return None if head != "xlmr_core" else part if part in RANK else ""


def imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        found += imports_in(ast.parse(path.read_text(encoding="utf-8")), file)
    return found


def imports_in(node: ast.AST, file: str, function: str = "", for_types_only: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file} has a relative import"
            assert child.module
            is_package = child.module == "xlmr_core"  # `from xlmr_core import model` is xlmr_core.model
            names = [f"xlmr_core.{alias.name}" for alias in child.names] if is_package else [child.module]
            yield from (Import(file, function, name, for_types_only) for name in names)
        elif isinstance(child, ast.Import):
            yield from (Import(file, function, alias.name, for_types_only) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from imports_in(child, file, f"{function}.{child.name}".strip("."), for_types_only)
        else:
            guarded = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from imports_in(child, file, function, for_types_only or guarded)


def test_every_part_of_the_package_has_its_place_in_the_order() -> None:
    assert {found.importer for found in imports()} <= RANK.keys()


def test_arrows_run_one_way() -> None:
    for found in imports():
        if found.part is None or found.part == found.importer or found.for_types_only:
            continue
        if (found.file, found.function, found.part) not in BACK:
            assert RANK[found.part] < RANK[found.importer], f"{found.file} imports {found.module}: the arrow runs back"


def test_every_arrow_that_may_run_back_is_there() -> None:
    used = {(found.file, found.function, found.part) for found in imports()}
    assert used >= BACK


@pytest.mark.parametrize("file", ["config.py", "pretrained.py", "inputs.py", "model.py", "heads.py"])
def test_the_model_imports_torch_and_what_python_has(file: str) -> None:
    allowed = {"torch", "typing_extensions", "xlmr_core", *sys.stdlib_module_names}
    outside = {"os", "pathlib", "json", "urllib", "socket", "subprocess"}  # files and networks
    for found in imports():
        if found.file == file:
            package = found.module.split(".")[0]
            assert package in allowed, f"{file} imports {found.module}"
            if file != "config.py" and not found.for_types_only:
                assert package not in outside, f"{file} imports {found.module}"


def test_only_parity_knows_transformers() -> None:
    users = {found.file for found in imports() if found.module.split(".")[0] == "transformers"}
    assert all(file.startswith("parity/") for file in users), users


def test_only_one_file_knows_the_hub() -> None:
    users = {found.file for found in imports() if found.module.split(".")[0] == "huggingface_hub"}
    assert users <= {"checkpoint/hub.py"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    """In a fresh interpreter, beyond what torch itself loads."""
    code = "import sys, torch; before = set(sys.modules); import xlmr_core; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "xlmr_core" in loaded
    assert not loaded & HEAVY


def test_the_check_can_fail() -> None:
    source = "import transformers\nclass A:\n    def f(self):\n        from xlmr_core.cli import main\n"
    first, second = imports_in(ast.parse(source), "model.py")
    assert (first.module, first.part, first.function) == ("transformers", None, "")
    assert (second.part, second.function, second.importer) == ("cli", "A.f", "model")
    assert RANK[second.part] > RANK[second.importer]
    guarded = "if TYPE_CHECKING:\n    from xlmr_core.checkpoint import LoadReport\n"
    assert next(imports_in(ast.parse(guarded), "model.py")).for_types_only
