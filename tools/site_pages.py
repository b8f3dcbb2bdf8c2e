"""A hook of mkdocs: pages of the site that are not files of docs. See mkdocs.yml.

The walkthrough and the four files are written by running the package, at each build; the pages of the course are files
of the course.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import annotated
import walkthrough
from mkdocs.structure.files import File, Files
from xlmr_course.steps import STEPS

# How the text of each written page is made, by its path below docs.
PAGES: dict[str, Callable[[], str]] = {
    "walkthrough.md": walkthrough.page,
    **{f"source/{name}.md": partial(annotated.page, name) for name in annotated.FILES},
}
# The files of the course, by their paths below docs.
COURSE: dict[str, Path] = {
    **{f"course/{number:02}-{step.name}.md": step.page for number, step in enumerate(STEPS, start=1)},
    **{f"course/pictures/{step.picture.name}": step.picture for step in STEPS},
}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages. mkdocs calls it before it reads the files of docs."""
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text()))
    for path, file in COURSE.items():
        files.append(File.generated(config, path, abs_src_path=str(file)))
    return files
