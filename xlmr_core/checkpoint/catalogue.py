"""The catalogue of published checkpoints: weights/catalogue.toml, read, checked and typed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.errors import CheckpointError
from xlmr_core.paths import ALL_BUNDLED, StrPath, package_data

CATALOGUE = "catalogue.toml"
HEADS = {  # the end of transformers' class name -> what the model is for
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tagging",
    "ForQuestionAnswering": "question-answering",
    "Model": "encoder",
}
ALLOWED = {
    "layout": ("hf", "fairseq"),
    "dtype": (None, "float32", "float16", "bfloat16"),
    "pooling": (None, "mean", "cls"),
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
    url: str | None = None
    revision: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    pooler: bool | None = None
    labels: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    note: str | None = None
    label_names: tuple[str, ...] = ()
    extra_files: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, PinnedFile] = field(default_factory=dict[str, PinnedFile])

    @property
    def name(self) -> str:
        """The last part of the hub id: its name on the command line."""
        return short_name(self.id)

    @property
    def head(self) -> str:
        """The head on the encoder: one of the values of HEADS."""
        return next(head for end, head in HEADS.items() if self.architecture.endswith(end))

    @property
    def config(self) -> XLMRobertaConfig:
        """Sizes and labels as a config."""
        return XLMRobertaConfig(
            **self.geometry,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            labels=self.label_names or tuple(f"LABEL_{i}" for i in range(self.labels or 2)),
        )


@dataclass(frozen=True)
class Catalogue:
    """The published checkpoints by hub id, and those that this package refuses, each with the reason."""

    published: Mapping[str, Published]
    refused: Mapping[str, str]


def short_name(hub_id: str) -> str:
    """The last part of a hub id."""
    return hub_id.rpartition("/")[2]


# ---- reading ---------------------------------------------------------------------------------------------------------


def catalogue_file() -> Path:
    """The path of catalogue.toml. Raises CheckpointError if this installation does not have it."""
    return package_data(CATALOGUE)


def read_catalogue(path: StrPath | None = None) -> Catalogue:
    """Reads and checks the catalogue.

    Args:
        path: A file like weights/catalogue.toml. Default: the one that comes with the package.

    Returns:
        The checkpoints, in the order of the file.

    Raises:
        CheckpointError: The file is not such a catalogue. The message names the file, the entry and the field.
    """
    path = catalogue_file() if path is None else Path(path)
    entries: dict[str, Published] = {}
    entry_id = "no entry read"
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
        geometries, refused = content["geometries"], content.get("refused", {})
        for table in content["checkpoints"]:
            entry_id = table["id"]
            entry = _entry(table, geometries)
            if entry.name in map(short_name, (*entries, *refused)):
                raise ValueError(f"another entry has the name {entry.name}")
            entries[entry.id] = entry
    except (KeyError, TypeError, ValueError) as error:
        cause = f"{error} is missing or not known" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} ({entry_id}): {cause}") from error
    return Catalogue(entries, refused)


def find_published(name: str) -> Published | None:
    """The checkpoint with this hub id or short name, or None if the catalogue does not list it.

    Raises:
        CheckpointError: The catalogue lists it as refused. The message gives the reason.
    """
    catalogue = read_catalogue()
    for hub_id, reason in catalogue.refused.items():
        if name in (hub_id, short_name(hub_id)):
            raise CheckpointError(f"{hub_id} cannot be used here: {reason}")
    return next((entry for entry in catalogue.published.values() if name in (entry.id, entry.name)), None)


def hub_id(name: str) -> str:
    """The hub id of a short name in the catalogue. Any other name is returned as it is.

    Raises:
        CheckpointError: The checkpoint of this short name is refused, or is not on the hub.
    """
    entry = None if "/" in name else find_published(name)
    if entry is None:
        return name
    check_on_hub(entry)
    return entry.id


def near_names(name: str) -> list[str]:
    """Up to three short names that are similar to `name`."""
    catalogue = read_catalogue()
    return get_close_matches(name, [*ALL_BUNDLED, *map(short_name, (*catalogue.published, *catalogue.refused))], n=3)


def check_on_hub(entry: Published) -> None:
    """Raises CheckpointError for a checkpoint that is published elsewhere than on the hub."""
    if entry.url is not None:
        raise CheckpointError(f"{entry.id} is not on the hub: fetch {entry.url} yourself and give the path of the file")


def _entry(table: Mapping[str, Any], geometries: Mapping[str, Mapping[str, Any]]) -> Published:
    """The entry in a table of the file. Raises KeyError, TypeError or ValueError that names the field."""
    values: dict[str, Any] = {name: tuple(value) if type(value) is list else value for name, value in table.items()}
    values["geometry"] = geometries[table["geometry"]]
    values["files"] = {file: PinnedFile(**pinned) for file, pinned in table.get("files", {}).items()}
    entry = Published(**values)
    for name, allowed in ALLOWED.items():
        _check(getattr(entry, name) in allowed, f"{name} {getattr(entry, name)!r} is not one of {allowed}")
    _check(entry.architecture.endswith(tuple(HEADS)), f"architecture {entry.architecture!r} is not supported")
    _check(entry.config.max_tokens == entry.max_tokens, f"max_tokens should be {entry.config.max_tokens}")
    _check(not entry.label_names or len(entry.label_names) == entry.labels, "labels and label_names do not agree")
    _check(entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision), "revision is not a commit hash")
    _check(not entry.files or entry.revision, "files are pinned, but there is no revision")
    for file, pinned in entry.files.items():
        _check(pinned.size is None or pinned.size > 0, f"{file}: size {pinned.size} is not a number of bytes")
        is_hash = pinned.sha256 is None or re.fullmatch("[0-9a-f]{64}", pinned.sha256)
        _check(is_hash, f"{file}: sha256 {pinned.sha256!r} is not 64 hexadecimal digits")
    return entry


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)
