"""The notebooks of the course: each is valid, and two run in a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from xlmr_course.notebook import write_notebooks
from xlmr_course.steps import STEPS

nbformat = pytest.importorskip("nbformat", reason="needs jupytext: the extra `notebooks`")
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=sys.argv[2])
nbformat.write(notebook, sys.argv[1])
"""
POSITIONS = STEPS[1]


def printed(file: Path) -> str:
    """What the cells of a notebook print when a kernel runs them."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = [sys.executable, "-c", RUN, str(file), str(file.parent)]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(file, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def without_installing(file: Path) -> None:
    """Takes the first cell away: what it installs is here, and a test has no network."""
    notebook = nbformat.read(file, as_version=4)
    assert notebook.cells[0].source == '%pip install --quiet "xlmr-core"'
    del notebook.cells[0]
    nbformat.write(notebook, file)


def test_every_step_has_a_valid_notebook_with_its_page_and_file(tmp_path: Path) -> None:
    names = [step.name for step in STEPS]
    files = write_notebooks([*names, "walkthrough"], tmp_path / "notebooks", "git+https://example.org/xlmr-core")
    assert [file.name for file in files[:2]] == ["01-ids.ipynb", "02-positions.ipynb"]
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        assert "git+https://example.org/xlmr-core" in notebook.cells[0].source
    for step, file in zip(STEPS, files, strict=False):
        texts = [cell.source for cell in nbformat.read(file, as_version=4).cells]
        assert f"%%writefile {step.file}\n{step.stub.read_text(encoding='utf-8')}".rstrip() in texts
        assert f"!xlmr course check {step.name}" in texts
        page = next(text for text in texts if text.startswith("# "))
        assert "(data:image/svg+xml;base64," in page
        assert "(pictures/" not in page


def test_the_same_files_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_notebooks(["ids", "walkthrough"], tmp_path / folder, "xlmr-core")
    for name in ("01-ids.ipynb", "walkthrough.ipynb"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_a_step_runs_in_a_kernel_and_is_passed_with_the_solution(tmp_path: Path) -> None:
    [file] = write_notebooks(["positions"], tmp_path, "xlmr-core")
    without_installing(file)
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.source.startswith("%%writefile"):
            cell.source = f"%%writefile {POSITIONS.file}\n{POSITIONS.solution.read_text(encoding='utf-8')}"
    nbformat.write(notebook, file)
    shown = printed(file)
    assert "position_ids: right" in shown
    assert "Passed. Next: " in shown


def test_the_walkthrough_runs_in_a_kernel(tmp_path: Path) -> None:
    [file] = write_notebooks(["walkthrough"], tmp_path, "xlmr-core")
    without_installing(file)
    shown = printed(file)
    assert "layers.3.feed_forward.residual" in shown
    assert "The house is very big." in shown


@pytest.mark.parametrize(("name", "lines"), [("ids", 0), ("output", 1), ("stack", 7)])
def test_files_of_earlier_steps_can_be_taken_from_the_solutions(name: str, lines: int, tmp_path: Path) -> None:
    [file] = write_notebooks([name], tmp_path, "xlmr-core")
    assert file.read_text(encoding="utf-8").count("# !xlmr course solution") == lines


def test_a_notebook_that_exists_is_kept(tmp_path: Path) -> None:
    [file] = write_notebooks(["ids"], tmp_path, "xlmr-core")
    file.write_text("my work", encoding="utf-8")
    (tmp_path / "03-embeddings.ipynb").mkdir()
    with pytest.raises(ValueError, match=r"03-embeddings\.ipynb exists"):
        write_notebooks(["embeddings"], tmp_path, "xlmr-core")
    with pytest.raises(ValueError, match=r"01-ids\.ipynb exists: it may have your work"):
        write_notebooks(["positions", "ids"], tmp_path, "xlmr-core")
    assert not (tmp_path / "02-positions.ipynb").exists()


def test_a_run_that_was_interrupted_can_be_repeated(tmp_path: Path) -> None:
    [first] = write_notebooks(["ids"], tmp_path, "xlmr-core")
    content = first.read_bytes()
    assert write_notebooks(["ids", "positions", "ids"], tmp_path, "xlmr-core") == [
        first,
        tmp_path / "02-positions.ipynb",
    ]
    assert first.read_bytes() == content


@pytest.mark.parametrize("package", ['xlmr-core"\n!rm -r ~', "xlmr\udcff"])
def test_a_package_that_no_cell_can_hold_is_refused(package: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a name or an address without quotes"):
        write_notebooks(["ids"], tmp_path, package)
    assert list(tmp_path.iterdir()) == []


def test_without_jupytext_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(ValueError, match=r"jupytext, which is not installed: pip install 'xlmr-core\[notebooks\]'"):
        write_notebooks(["ids"], tmp_path, "xlmr-core")
