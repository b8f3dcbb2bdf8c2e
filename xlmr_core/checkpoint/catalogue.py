"""The catalogue of published checkpoints: weights/catalogue.toml, read, checked and typed."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.errors import CheckpointError

StrPath = str | PathLike[str]
CATALOGUE = "catalogue.toml"
BUNDLED = "xlmr-tiny"  # the checkpoint that comes with the package
HEADS = {  # the end of the reference's class name: what the model is for
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tagging",
    "ForQuestionAnswering": "question-answering",
    "Model": "encoder",
}
ALLOWED = {
    "layout": ("hf", "fairseq"),
    "dtype": ("float32", "float16", "bfloat16"),
    "pooling": ("mean", "cls"),
    "licence_from": ("tag", "listed", "memory", "not seen"),
}


@dataclass(frozen=True)
class PinnedFile:
    """What is known of one file at the pinned revision."""

    size: int | None = None  # bytes
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """One published checkpoint. The fields are explained in weights/catalogue.toml; None: not known."""

    id: str
    architecture: str
    layout: str
    geometry: Mapping[str, Any]  # fields of XLMRobertaConfig
    vocab_size: int
    max_position_embeddings: int
    max_tokens: int
    licence_from: str
    licence: str | None = None
    url: str | None = None
    revision: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    pooler: bool | None = None
    labels: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    supported: bool = True
    reason: str | None = None
    note: str | None = None
    label_names: tuple[str, ...] = ()
    extra_files: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, PinnedFile] = field(default_factory=dict[str, PinnedFile])

    @property
    def name(self) -> str:
        """The last part of the hub id, by which the command line knows it."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def head(self) -> str:
        """What stands on top of the encoder; "other" for a class that is none of the reference's XLM-R classes."""
        return next((head for end, head in HEADS.items() if self.architecture.endswith(end)), "other")

    @property
    def config(self) -> XLMRobertaConfig:
        """Sizes and labels as a config. Raises ValueError for a checkpoint that is not supported."""
        if not self.supported:
            raise ValueError(f"{self.id} has no config here: {self.reason}")
        return XLMRobertaConfig(
            **self.geometry,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            labels=self.label_names or tuple(f"LABEL_{i}" for i in range(self.labels or 2)),
        )


# ---- reading ---------------------------------------------------------------------------------------------------------


def catalogue_file() -> Path:
    """The catalogue: in the package when installed from a wheel, in the repository's `weights` otherwise."""
    package = Path(str(resources.files("xlmr_core")))
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / CATALOGUE).is_file():
            return folder / CATALOGUE
    raise CheckpointError(f"{CATALOGUE} is not in this installation ({package})")


def read_catalogue(path: StrPath | None = None) -> dict[str, Published]:
    """Every published checkpoint by its hub id. Raises CheckpointError that names the file, the entry and the fault."""
    path = catalogue_file() if path is None else Path(path)
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
        geometries, tables = content.pop("geometries"), content.pop("checkpoints")
        _demand(not content, f"unknown: {', '.join(content)}")
        entries: dict[str, Published] = {}
        for table in tables:
            _demand(isinstance(table.get("id"), str), f"a checkpoint without an id: {table}")
            try:
                entry = _entry(table, geometries)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{table['id']}: {error}") from error
            _demand(entry.name not in {known.name for known in entries.values()}, f"{entry.name} is in it twice")
            entries[entry.id] = entry
    except (KeyError, TypeError, ValueError) as error:
        cause = f"there is no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: {cause}") from error
    return entries


def find_published(name: str) -> Published | None:
    """The checkpoint with this hub id or short name; None if the catalogue does not have it."""
    entries = read_catalogue()
    by_name = {entry.name: entry for entry in entries.values()}
    return entries.get(name) or by_name.get(name)


def hub_id(name: str) -> str:
    """The hub id of a short name in the catalogue; any other name is taken for a hub id.

    Raises CheckpointError for a short name of a checkpoint that is refused, or that is not on the hub.
    """
    entry = None if "/" in name else find_published(name)
    if entry is None:
        return name
    check_on_hub(entry)
    return entry.id


def near_names(name: str) -> list[str]:
    """Short names that `name` may have been meant for."""
    return get_close_matches(name, [BUNDLED, *(entry.name for entry in read_catalogue().values())], n=3)


def check_on_hub(entry: Published) -> None:
    if not entry.supported:
        raise CheckpointError(f"{entry.id} cannot be used here: {entry.reason}")
    if entry.url is not None:
        raise CheckpointError(f"{entry.id} is not on the hub: fetch {entry.url} yourself and give the path of the file")


def _entry(table: Mapping[str, Any], geometries: Mapping[str, Mapping[str, Any]]) -> Published:
    """The entry in a table of the file. Raises ValueError that names the field."""
    hints = get_type_hints(Published)
    missing = [f.name for f in fields(Published) if f.default is f.default_factory is MISSING and f.name not in table]
    _demand(not missing, f"there is no {', '.join(missing)}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        _demand(name in hints, f"unknown field {name!r}")
        if name == "geometry":
            _demand(value in geometries, f"geometry {value!r} is not one of {', '.join(geometries)}")
            value = geometries[value]
        elif name == "files":
            value = {file: _pinned(file, pinned) for file, pinned in value.items()}
        elif name == "prompts":
            _demand(all(type(prompt) is str for prompt in value.values()), f"prompts must be strings, not {value}")
        elif type(value) is list:
            _demand(hints[name] == tuple[str, ...] and all(type(item) is str for item in value), f"{name} is {value}")
            value = tuple(value)
        else:
            _demand(type(value) in (get_args(hints[name]) or (hints[name],)), f"{name} cannot be {value!r}")
        _demand(name not in ALLOWED or value in ALLOWED[name], f"{name} {value!r} is not one of {ALLOWED.get(name)}")
        values[name] = value
    entry = Published(**values)
    _check(entry)
    return entry


def _pinned(file: str, pinned: Mapping[str, Any]) -> PinnedFile:
    known = PinnedFile(**pinned)
    _demand(known.size is None or (type(known.size) is int and known.size > 0), f"{file}: size {known.size!r}")
    is_hash = known.sha256 is None or re.fullmatch("[0-9a-f]{64}", known.sha256)
    _demand(is_hash is not None, f"{file}: sha256 {known.sha256!r} is not 64 hexadecimal digits")
    return known


def _check(entry: Published) -> None:
    """What fields must be to each other."""
    _demand(entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision) is not None, "revision is no commit")
    _demand(not entry.files or entry.revision is not None, "files are pinned, but there is no revision")
    _demand(entry.supported == (entry.reason is None), "a reason belongs to what is not supported, and only there")
    _demand(bool(entry.licence) == (entry.licence_from != "not seen"), "licence and licence_from do not agree")
    _demand(not entry.label_names or len(entry.label_names) == entry.labels, "labels and label_names do not agree")
    strange = set(entry.unverified) - {f.name for f in fields(Published)}
    _demand(not strange, f"unverified names no field: {', '.join(sorted(strange))}")
    if entry.supported:
        _demand(entry.head != "other", f"architecture {entry.architecture!r} is not one that is supported")
        _demand(entry.config.max_tokens == entry.max_tokens, f"max_tokens should be {entry.config.max_tokens}")


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# ---- downloading -----------------------------------------------------------------------------------------------------
