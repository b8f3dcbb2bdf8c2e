"""The three ports, right or with a bug: a bug is a list of changes of the port's own text.

from heldout_ports import BUGS, dump

dump("torch", folder, ids, mask)                               # the right port: (B, S, H) at every tap
dump("torch", folder, ids, mask, changes=BUGS["torch-01"].changes)
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PORTS = {"torch": ("float32", "bfloat16"), "numpy": ("float32",), "jax": ("float32", "bfloat16")}
Array = np.ndarray[Any, Any]
Change = tuple[str, str]  # right text, wrong text


@dataclass(frozen=True)
class Bug:
    """first: the first wrong tap in reading order. truth: what is wrong, where, in which layers."""

    id: str
    first: str
    truth: str
    changes: tuple[Change, ...]

    @property
    def port(self) -> str:
        return self.id.split("-")[0]


def read_bugs(pattern: str) -> dict[str, Bug]:
    files = sorted(HERE.glob(pattern))
    table = [b for file in files for b in tomllib.loads(file.read_text(encoding="utf-8"))["bug"]]
    bugs = [Bug(b["id"], b["first"], b["truth"], tuple((old, new) for old, new in b["changes"])) for b in table]
    return {bug.id: bug for bug in bugs}


BUGS = {name: bug for port in PORTS for name, bug in read_bugs(f"bugs_{port}*.toml").items()}
VARIANTS = {name: bug for port in PORTS for name, bug in read_bugs(f"variants_{port}.toml").items()}


def source(port: str, changes: tuple[Change, ...] = ()) -> str:
    """The port's text after the changes. Each right text must occur once: at the line that is meant."""
    text = (HERE / f"port_{port}.py").read_text(encoding="utf-8")
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"port_{port}.py has {text.count(old)} times {old!r}, expected once")
        text = text.replace(old, new)
    return text


def dump(
    port: str, folder: Path, ids: Array, mask: Array, *, dtype: str = "float32", changes: tuple[Change, ...] = ()
) -> dict[str, Array]:
    """What the port computes, with padding: packed tensors are put in the places of their tokens."""
    made = ModuleType(f"port_{port}")
    exec(compile(source(port, changes), f"port_{port}.py", "exec"), made.__dict__)
    taps = made.run(made.load(folder, dtype), ids, mask)
    return {name: padded(values, mask) for name, values in taps.items()}


def padded(values: Array, mask: Array) -> Array:
    if values.ndim != 2:
        return values
    spread = np.zeros((*mask.shape, values.shape[-1]), values.dtype)
    spread[mask.astype(bool)] = values
    return spread
