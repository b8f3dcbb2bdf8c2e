"""Imports run one way, the model depends only on torch, and importing the package does not import torch."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import xlmr_core

PACKAGE = Path(xlmr_core.__file__).parent

# From the lowest layer to the highest. A module imports only modules of lower layers and of its own package.
LAYERS = (
    {"_lazy", "atomic", "errors", "exit_status", "formatting", "hub_options", "json_files"},
    {"notebook", "progress", "text_files"},
    {"config_fields", "explanation", "parameter_groups", "text_checks", "tokenizer_files", "transformers_arguments"},
    {"config_json"},
    {"config", "devices", "kernels", "paths", "spec"},
    {"checkpoint", "taps", "inputs"},  # they use nn.Module, a config and a spec, and no model class
    {"pretrained", "tokenizer"},
    {"model"},
    {"heads", "parts"},
    {"checkpoint.inspection"},  # looks for the class that fits a file
    {"checkpoint.convert", "checkpoint.trimming"},
    {"explore", "interpret", "parity", "tasks"},
    {"training"},  # what a model learns from is encoded as its task encodes it
    {"served"},
    {""},  # the package itself: its public names
    {"engines.texts"},
    {"engines.datatrove", "engines.ray", "cli", "pytest_plugin"},
    {"engines"},  # its shards run the commands
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

HEAVY = {"huggingface_hub", "sentencepiece", "click", "tqdm", "transformers", "safetensors", "requests", "httpx"}


@dataclass(frozen=True)
class Import:
    file: str  # below the package
    function: str  # the qualified name of the function whose body imports, or "" for the module
    module: str
    for_types_only: bool

    @property
    def importer(self) -> str:
        """The part of the package that imports."""
        return part_of(self.file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))

    @property
    def part(self) -> str | None:
        """The part of the package that is imported, "" for the package itself; None for another package."""
        head, _, rest = self.module.partition(".")
        if head != "xlmr_core":
            return None
        part = part_of(rest)
        return part if part in RANK else ""  # a name that is no module is one of the package itself


def part_of(module: str) -> str:
    """The longest name in LAYERS that the module's name below the package begins with."""
    if module == "__init__":
        return ""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((name for name in names if name in RANK), "" if module == "" else parts[0])


@cache
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


def test_imports_run_one_way() -> None:
    for found in imports():
        if found.part is None or found.part == found.importer or found.for_types_only:
            continue
        assert RANK[found.part] < RANK[found.importer], f"{found.file} imports {found.module}: the import runs back"


def test_no_two_modules_import_each_other() -> None:
    """Imports inside functions count: they save time at the start, and hide no circle."""
    graph: dict[str, set[str]] = {}
    for found in imports():
        importer = "xlmr_core." + found.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if not found.for_types_only and found.part is not None:
            graph.setdefault(importer, set()).add(found.module)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("file", ["config.py", "spec.py", "inputs.py", "kernels.py", "taps.py", "model.py", "heads.py"])
def test_the_model_imports_torch_and_what_python_has(file: str) -> None:
    allowed = {"torch", "typing_extensions", "xlmr_core", *sys.stdlib_module_names}
    outside = {"os", "pathlib", "json", "urllib", "socket", "subprocess"}  # files and networks
    for found in imports():
        if found.file == file:
            package = found.module.split(".")[0]
            assert package in allowed or (package == "jaxtyping" and found.for_types_only), found.module
            if file != "config.py" and not found.for_types_only:
                assert package not in outside, f"{file} imports {found.module}"


def test_only_parity_imports_transformers() -> None:
    users = {found.file for found in imports() if found.module.split(".")[0] == "transformers"}
    assert all(file.startswith("parity/") for file in users), users


def test_only_the_hub_and_its_guard_import_the_hub_library() -> None:
    users = {found.file for found in imports() if found.module.split(".")[0] == "huggingface_hub"}
    assert users <= {"checkpoint/hub.py", "checkpoint/guard.py"}


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh interpreter has loaded at the end of `code`."""
    code += "\nprint(*sorted(sys.modules), file=sys.__stderr__)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert run.returncode == 0, run.stderr
    return {name.split(".")[0] for name in run.stderr.splitlines()[-1].split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import xlmr_core; dir(xlmr_core)")
    assert "xlmr_core" in loaded
    assert not loaded & (HEAVY | {"torch", "numpy"})
    assert "torch" in loaded_by("import xlmr_core; xlmr_core.XLMRobertaModel")


@pytest.mark.parametrize("package", ["xlmr_core", "xlmr_core.checkpoint"])
def test_every_lazy_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"], ["models", "bge-m3"], ["tokenise"]])
def test_the_command_answers_without_torch(arguments: list[str]) -> None:
    code = f"from xlmr_core.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    loaded = loaded_by(code)
    assert "click" in loaded
    assert "torch" not in loaded


def test_the_check_can_fail() -> None:
    source = "import transformers\nclass A:\n    def f(self):\n        from xlmr_core.cli import main\n"
    first, second = imports_in(ast.parse(source), "model.py")
    assert (first.module, first.part, first.function) == ("transformers", None, "")
    assert (second.part, second.function, second.importer) == ("cli", "A.f", "model")
    assert RANK[second.part] > RANK[second.importer]
    guarded = "if TYPE_CHECKING:\n    from xlmr_core.checkpoint import LoadReport\n"
    assert next(imports_in(ast.parse(guarded), "model.py")).for_types_only
