"""Downloads of published checkpoints by name, verified."""

from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import Unpack

from xlmr_core.checkpoint.cache import NOT_CHECKED, discard, hash_of, verify
from xlmr_core.checkpoint.catalogue import PinnedFile, check_on_hub, find_published, near_names
from xlmr_core.checkpoint.files import read_index
from xlmr_core.checkpoint.hub import Hub
from xlmr_core.errors import CheckpointError
from xlmr_core.hub_options import HubOptions, check_hub_options
from xlmr_core.spec import files_beside


@dataclass(frozen=True)
class Downloaded:
    """One file of a download."""

    path: Path
    verified: str  # "verified: ...", "size only, ..." or "not checked: ..."


def download(
    name: str,
    **hub: Unpack[HubOptions],
) -> list[Downloaded]:
    """Model and tokenizer of a catalogue name or a hub id, fetched to the cache or found there, and verified.

    With the model come heads in files of their own (BGE-M3), tokenizer.json, and the configuration of
    sentence-transformers, where the repository has them. Files whose size or sha256 the catalogue has are compared with
    that, cached or fresh, at the pinned revision, which is the one taken unless `revision` says otherwise. Every file
    is compared once with the hash that the hub promised. What differs leaves the cache. A download that was cut goes on
    where it stopped.

    Args:
        name: a name in the catalogue, or a hub id.
        hub: how to ask the hub. Without a revision, the pinned one is taken, or main. With local_files_only, what is in
            the cache is verified.

    Returns:
        The files, each with what it was compared with: "verified: ...", "size only, ...", or "not checked: ...".

    Raises:
        CheckpointError: there is no such model, it cannot be fetched, or a file differs.
    """
    entry = find_published(name)
    if entry is None and "/" not in name:
        near = near_names(name)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise CheckpointError(f"{name!r} is neither in the catalogue (see `xlmr models`) nor a hub id{hint}")
    if entry is not None:
        check_on_hub(entry)
    repo = entry.id if entry else name
    check_hub_options(hub)
    hub["revision"] = hub.get("revision") or (entry.revision if entry else None)
    asked = Hub.of(repo, **hub)
    model = asked.model_files([*files_beside().values(), "tokenizer.json"], whole=True)
    commit = model.root.name  # the cache keeps a commit in a folder of its name: the rest is of the same
    tokenizer, _ = replace(asked, revision=commit).tokenizer_files()
    paths = [model.config, model.weights, tokenizer]
    if model.weights.name.endswith(".index.json"):
        paths += [model.weights.with_name(shard) for shard in sorted(set(read_index(model.weights).values()))]
    paths += replace(asked, revision=commit).other_files(entry.extra_files if entry else ())
    paths += [path for path in model.more if path not in paths]
    pinned = entry.files if entry is not None and commit == entry.revision else {}
    names = [path.relative_to(model.root).as_posix() for path in paths]
    known = [pinned.get(name, PinnedFile()) for name in names]
    return [Downloaded(path, _verify(path, pin, repo)) for path, pin in zip(paths, known, strict=True)]


def _verify(path: Path, pinned: PinnedFile, repo: str) -> str:
    """Compares a file with what the catalogue has of it, and says what it was compared with."""
    size = path.stat().st_size
    wrong_size = pinned.size not in (None, size)
    wrong_hash = not wrong_size and pinned.sha256 is not None and hash_of(path, "sha256") != pinned.sha256
    if wrong_size or wrong_hash:
        discard(path)
        raise CheckpointError(
            f"{repo} ({path.name}): its {size} bytes are not those in the catalogue (size {pinned.size}, sha256 "
            f"{pinned.sha256}). They were thrown away. Run it again; if that does not help, either the file was "
            "tampered with on its way, or the catalogue is wrong"
        )
    if pinned.sha256 is not None:
        return "verified: sha256 as in the catalogue"
    compared = verify(path)
    if compared != NOT_CHECKED:
        return f"verified: {compared}"
    return "size only, as in the catalogue" if pinned.size is not None else NOT_CHECKED
