"""TOML: `tomllib` is part of Python from 3.11; `tomli` is the same library for Python 3.10."""

import importlib
import sys
from typing import Any

LIBRARY = "tomllib" if sys.version_info >= (3, 11) else "tomli"


def parse_toml(text: str) -> dict[str, Any]:
    """Parses a TOML text.

    Args:
        text: The content of a TOML file.

    Returns:
        The table that the text describes.

    Raises:
        ValueError: The text is not TOML, or its arrays and tables are nested too deep to be read.
    """
    toml: Any = importlib.import_module(LIBRARY)
    try:
        return toml.loads(text)
    except RecursionError as error:
        raise ValueError("its arrays and tables are nested too deep") from error
