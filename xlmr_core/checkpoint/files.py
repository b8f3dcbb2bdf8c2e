"""Files of weights: where they lie in a folder, how they are opened, how they are written.

Reading maps a file into memory: a tensor costs no memory until it is used, and then only what the system's file cache
already holds. Overwriting a mapped file in place would change the model under its user, so writing never does that:
it writes a new file and renames it.
"""

import json
import os
import warnings
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from xlmr_core.checkpoint.mapping import CheckpointError
from xlmr_core.config import XLMRobertaConfig

CONFIG = "config.json"
TOKENIZER = "sentencepiece.bpe.model"
BUNDLED = "xlmr-tiny"
# In order of preference: safetensors before pickles, one file before shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX_LIMIT = 32 * 2**20  # bytes of an index; that of XXL has 100 kB


@dataclass(frozen=True)
class Files:
    """The two files a model is loaded from."""

    config: Path
    weights: Path


def bundled() -> Path:
    """The folder of xlmr-tiny: in the package when installed from a wheel, in the repository's `weights` otherwise."""
    package = Path(str(resources.files("xlmr_core")))
    for folder in (package / "weights" / BUNDLED, package.parent / "weights" / BUNDLED):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"the bundled checkpoint {BUNDLED} is not in this installation ({package})")


def local_path(source: str | os.PathLike[str]) -> Path | None:
    """The file or folder that `source` means, or None if it can only be a hub id.

    What exists on disk wins, then the bundled name. Raises CheckpointError for what looks like a path and is not there.
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path) and str(source):  # unlike path.exists, this is False for a name no file can have
        return path
    if source == BUNDLED:
        return bundled()
    name = str(source)
    looks_like_path = name.startswith((".", "~")) or "\\" in name or path.is_absolute() or name.count("/") > 1
    if not isinstance(source, str) or looks_like_path or path.suffix in (".safetensors", ".bin", ".pt", ".json"):
        raise CheckpointError(f"there is no file or folder {name!r}")
    return None


def files_in(path: Path) -> Files:
    """The files in a folder, or the weights file itself with the config.json beside it."""
    if path.is_file():
        return Files(sibling(path, CONFIG), path)
    for name in WEIGHTS:
        if (path / name).is_file():
            return Files(sibling(path / name, CONFIG), path / name)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:20]) or "nothing"
    raise CheckpointError(f"{path} has no weights that can be read: none of {', '.join(WEIGHTS)}. It holds {found}")


def sibling(path: Path, name: str) -> Path:
    """The file `name` in the folder of `path`, or in `path` if that is a folder. Raises CheckpointError without it."""
    folder = path if path.is_dir() else path.parent
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder} has no {name}")
    return folder / name


def read_config(path: Path) -> XLMRobertaConfig:
    """The config, or a CheckpointError that says what is wrong with it."""
    try:
        return XLMRobertaConfig.from_json(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from error


def open_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, or of the shards that an index names, mapped into memory.

    Raises CheckpointError, naming the file, if it is not what its name says. Nothing in a file is ever executed.
    """
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    try:
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path, start)
    except CheckpointError:
        raise
    except Exception as error:  # each library has errors of its own, and a corrupt file finds them all
        raise CheckpointError(f"{path} cannot be read: {_cause(start)} ({type(error).__name__}: {error})") from error


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def _open_pickle(path: Path, start: bytes) -> dict[str, Tensor]:
    zipped = zipfile.is_zipfile(path)  # since torch 1.6. Only such a file can be mapped; an older one is read
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a file that is then refused
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        refusals = [line for line in str(error).splitlines() if "Unsupported" in line]
        if refusals and (zipped or start.startswith(b"\x80")):  # every pickle starts so
            raise CheckpointError(
                f"{path} is refused: it is a pickle that asks for more than tensors, and such a file can run any code. "
                f"Nothing was run. {refusals[0].strip()}"
            ) from error
        raise
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a plain mapping of names to tensors")
    return dict(state)


def read_index(index: Path) -> dict[str, str]:
    """Which file holds which key. Raises CheckpointError for a file that is no index, or reaches out of its folder."""
    if index.stat().st_size > INDEX_LIMIT:
        raise CheckpointError(f"{index} has {index.stat().st_size} bytes; an index has at most {INDEX_LIMIT}")
    try:
        shard_of: dict[str, Any] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({type(error).__name__}: {error})") from error
    for key, name in shard_of.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index} says that {key!r} lies in {name!r}, which is no weights file beside it")
    return shard_of


def _open_shards(index: Path) -> dict[str, Tensor]:
    keys_of: dict[str, set[str]] = {}
    for key, shard in read_index(index).items():
        keys_of.setdefault(shard, set()).add(key)
    tensors: dict[str, Tensor] = {}
    for shard, keys in sorted(keys_of.items()):
        tensors |= _open_shard(sibling(index, shard), keys)
    return tensors


def _open_shard(path: Path, expected: set[str]) -> dict[str, Tensor]:
    tensors = open_weights(path)
    odd = sorted(expected ^ tensors.keys())
    if odd:
        raise CheckpointError(f"{path} and its index do not list the same tensors: {odd[0]!r} is in one of them only")
    return tensors


def _cause(start: bytes) -> str:
    """What a file that cannot be read looks like, by its first bytes."""
    start = start.lstrip()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file it points to; run `git lfs pull`"
    if start.startswith(b"<"):
        return "it looks like a web page"
    if start.startswith((b"{", b"[")):
        return "it looks like JSON text"
    return "it is truncated, corrupt, or of another format; fetch it again"


@contextmanager
def written_as(path: Path) -> Generator[Path, None, None]:
    """A temporary file beside `path` to write to: it becomes `path` at the end, or goes away if that is not reached."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes the tensors; the same tensors give the same bytes."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors would keep the file from other users
