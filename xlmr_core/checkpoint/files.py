"""Files of weights: where they lie in a folder and how they are opened.

Reading maps a file into memory: a tensor costs no memory until it is used, and then only what the system's file cache
already holds. Overwriting a mapped file in place would change the model under its user, so writing never does that:
it writes a new file and renames it (`xlmr_core.atomic`).
"""

import os
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from xlmr_core.checkpoint.archive import TARS, unpack
from xlmr_core.checkpoint.fairseq import check_dictionary, check_settings, config_from, note_on, pieces_of
from xlmr_core.checkpoint.pickles import check_tensors, read_pickle
from xlmr_core.config import HONOURED, XLMRobertaConfig
from xlmr_core.config_fields import unknown_fields
from xlmr_core.errors import CheckpointError
from xlmr_core.json_files import read_json_object
from xlmr_core.paths import ALL_BUNDLED, BUNDLED, StrPath, package_data
from xlmr_core.spec import files_beside

CONFIG = "config.json"
TOKENIZER = "sentencepiece.bpe.model"
# In order of preference: safetensors before pickles, one file before shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".index.json", ".bin", ".pt", *TARS)  # of files of weights
FAIRSEQ = "model.pt"  # what fairseq publishes; it needs no config.json
DICTIONARY = "dict.txt"
INDEX_LIMIT = 32 * 2**20  # bytes of an index; that of XXL has 100 kB
HEADER_LIMIT = 16 * 2**20  # bytes of a header of safetensors; that of XXL has 100 kB
LONGEST_KEY = 1_000  # characters; those of XL have about 80
LISTED = 20  # entries of a folder, or characters of a key, shown in one message
Result = TypeVar("Result")


@dataclass(frozen=True)
class Files:
    """The two files a model is loaded from. `config` is the weights file where there is no config.json."""

    config: Path
    weights: Path
    root: Path  # the folder of the checkpoint; in a sentence-transformers folder it may be above that of the weights
    more: tuple[Path, ...] = ()  # what was fetched from the hub besides
    unknown: tuple[str, ...] = ()  # names of files that the hub may have: offline, the cache does not show


def bundled(name: str = BUNDLED) -> Path:
    """The folder of a checkpoint that comes with the package. Raises CheckpointError if there is none."""
    return package_data(name)


def local_path(source: StrPath) -> Path | None:
    """The file or folder that `source` means, or None if it can only be a hub id.

    What exists on disk wins, then the bundled names. A tar is unpacked to a temporary folder, which is gone when Python
    ends. Raises CheckpointError for what looks like a path and is not there, and for a tar that is refused.
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path) and str(source):  # unlike path.exists, this is False for a name no file can have
        is_tar = path.is_file() and path.name.endswith(TARS)
        heads = files_beside().values()
        return unpack(path, (FAIRSEQ, *WEIGHTS, *heads, CONFIG, TOKENIZER, DICTIONARY)) if is_tar else path
    if source in ALL_BUNDLED:
        return bundled(str(source))
    name = str(source)
    looks_like_path = name.startswith((".", "~")) or "\\" in name or path.is_absolute() or name.count("/") > 1
    if not isinstance(source, str) or looks_like_path or name.endswith((*SUFFIXES, ".json")):
        raise CheckpointError(f"there is no file or folder {name!r}")
    return None


def files_in(path: Path) -> Files:
    """The files in a folder, or the weights file itself, with the config.json beside it; a .pt may do without."""
    if path.is_file():
        return Files(config_for(path), path, path.parent)
    for name in (*WEIGHTS, FAIRSEQ):
        if (path / name).is_file():
            return Files(config_for(path / name), path / name, path)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:LISTED]) or "nothing"
    known = ", ".join((*WEIGHTS, FAIRSEQ))
    raise CheckpointError(f"{path} has no weights that can be read: none of {known}. It holds {found}")


def config_for(path: Path) -> Path:
    """Where the config of a folder or a weights file is: config.json, or a fairseq file, which contains its own."""
    weights = path / FAIRSEQ if path.is_dir() else path
    if weights.suffix == ".pt" and weights.is_file() and not (weights.parent / CONFIG).is_file():
        return weights
    return sibling(path, CONFIG)


def sibling(path: Path, name: str) -> Path:
    """The file `name` in the folder of `path`, or in `path` if that is a folder. Raises CheckpointError without it."""
    folder = path if path.is_dir() else path.parent
    if (folder / name).is_file():
        return folder / name
    if path.is_dir():
        raise CheckpointError(f"{path} has no {name}")
    if not path.name.endswith((*SUFFIXES, TOKENIZER)):
        raise CheckpointError(f"{path} is not a weights file (one that ends in {', '.join(SUFFIXES)})")
    raise CheckpointError(f"there is no {name} beside {path}")


def read_config(path: Path) -> XLMRobertaConfig:
    """The config that `config_for` found, or a CheckpointError that says what is wrong with it."""
    if path.name != CONFIG:
        pickled = _reading(path, lambda: read_pickle(path, headers_only=True))
        return config_from(pickled.settings, pickled.tensors, path)
    try:
        return XLMRobertaConfig.from_json(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from error


def read_config_object(path: Path) -> dict[str, Any]:
    """All of config.json, or a CheckpointError that says what is wrong with the file."""
    try:
        return read_json_object(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from error


def check_dictionary_beside(tokenizer: Path) -> None:
    """Raises CheckpointError if a dict.txt lies beside the SentencePiece model and does not belong to it."""
    dictionary = tokenizer.parent / DICTIONARY
    if dictionary.is_file():
        check_dictionary(dictionary, pieces_of(tokenizer))


def notes_on_config(path: Path) -> tuple[str, ...]:
    """What a report should say about a config: unknown fields of config.json, or settings of fairseq."""
    if path.name == CONFIG:
        return notes_on_fields(path)
    return note_on(_reading(path, lambda: read_pickle(path, headers_only=True)).settings)


def notes_on_fields(path: Path) -> tuple[str, ...]:
    """The note on unknown fields of config.json; nothing for another file, which is not read."""
    unknown = unknown_fields(read_json_object(path), HONOURED) if path.name == CONFIG else []
    listed = ", ".join(unknown[:LISTED]) + ", ..." * (len(unknown) > LISTED)
    return (f"note: config.json has fields that are not known here and were not used: {listed}",) * bool(unknown)


def open_weights(path: Path, *, headers_only: bool = False) -> dict[str, Tensor]:
    """Every tensor of the file, or of the shards that an index names, mapped into memory.

    An old file of PyTorch's (before 1.6, not a zip) cannot be mapped and is read; headers_only leaves its numbers out.
    Raises CheckpointError, naming the file, if it is not what its name says. Nothing in a file is ever executed.
    """
    if path.name.endswith(".index.json"):
        return _open_shards(path, headers_only)
    if path.suffix == ".safetensors":
        tensors = _reading(path, lambda: _open_safetensors(path))
    else:
        pickled = _reading(path, lambda: read_pickle(path, headers_only=headers_only))
        check_settings(pickled.settings, pickled.tensors, path)
        tensors = pickled.tensors
    longest = max(tensors, key=len, default="")
    if len(longest) > LONGEST_KEY:
        raise CheckpointError(
            f"{path} is refused: it has a key of {len(longest)} characters, {longest[:LISTED]!r}...; a key has at most "
            f"{LONGEST_KEY}"
        )
    return tensors


def open_beside(
    weights: Path, groups: Collection[str] | None = None, *, headers_only: bool = False
) -> dict[str, Tensor]:
    """The tensors of those of `groups`, or of all, that lie in files beside `weights`, the group before each key."""
    tensors: dict[str, Tensor] = {}
    for group, file in files_beside().items():
        if groups is not None and group not in groups:
            continue
        path = weights.parent / file
        if path.is_file():
            found = open_weights(path, headers_only=headers_only)
            tensors |= {f"{group}.{key}": tensor for key, tensor in found.items()}
    return tensors


def _reading(path: Path, read: Callable[[], Result]) -> Result:
    """What `read` gives. Whatever a library makes of a corrupt file becomes a CheckpointError that names the file."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:  # a corrupt file can raise any error of these libraries
        raise CheckpointError(f"{path} cannot be read: {_cause(start)} ({type(error).__name__}: {error})") from error


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and (length := struct.unpack("<Q", start)[0]) > HEADER_LIMIT:
        raise ValueError(f"its header claims {length} bytes; at most {HEADER_LIMIT} are read")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    check_tensors(path, tensors)
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """Which file holds which key. Raises CheckpointError for a file that is no index, or reaches out of its folder."""
    try:
        shard_of: dict[str, Any] = dict(read_json_object(index, INDEX_LIMIT)["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({type(error).__name__}: {error})") from error
    for key, name in shard_of.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index} says that {key!r} lies in {name!r}, which is not a weights file beside it")
    return shard_of


def _open_shards(index: Path, headers_only: bool) -> dict[str, Tensor]:
    keys_of: dict[str, set[str]] = {}
    for key, shard in read_index(index).items():
        keys_of.setdefault(shard, set()).add(key)
    tensors: dict[str, Tensor] = {}
    for shard, keys in sorted(keys_of.items()):
        tensors |= _open_shard(sibling(index, shard), keys, headers_only)
    return tensors


def _open_shard(path: Path, expected: set[str], headers_only: bool) -> dict[str, Tensor]:
    tensors = open_weights(path, headers_only=headers_only)
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
