"""Paths: the type of a path argument, and the data that comes with the package, by name."""

from importlib import resources
from os import PathLike
from pathlib import Path

from xlmr_core.errors import CheckpointError

StrPath = str | PathLike[str]

BUNDLED = "xlmr-tiny"  # the masked language model that comes with the package
BUNDLED_LANGUAGE = "xlmr-langid"  # the classifier that comes with it
BUNDLED_EMBEDDER = "xlmr-embed"  # the sentence embedder that comes with it
ALL_BUNDLED = (BUNDLED, BUNDLED_LANGUAGE, BUNDLED_EMBEDDER)


def package_data(name: str) -> Path:
    """A file or folder of `weights`: in the package when installed from a wheel, in the repository otherwise.

    Raises:
        CheckpointError: This installation does not have it.
    """
    package = Path(str(resources.files("xlmr_core")))
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{name} is not in this installation ({package}). Install xlmr-core again")
