"""Names of a package that are imported when they are first asked for (PEP 562)."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy(package: str, exports: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        exports: {module: names in it}; a module that does not begin with xlmr_core is one of the package.

    Returns:
        The two functions, to be assigned in the package's `__init__.py`.
    """
    home = {
        name: module if module.startswith("xlmr_core.") else f"{package}.{module}"
        for module, names in exports.items()
        for name in names
    }

    def get(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return get, lambda: sorted(home)
