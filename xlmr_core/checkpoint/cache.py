"""Files in huggingface_hub's cache: what each was compared with, and how a wrong one leaves the cache.

    models--org--name/
        blobs/<ETag>                the contents
        snapshots/<commit>/<name>   a link to a blob; a file of its own where the system has no links
        .xlmr-verified/             our marks, see `verify`

The ETag of a large file is its sha256, that of a small one the sha1 that git gives it. So the name of a blob is also
the promise of its contents, and can be checked without the network.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from xlmr_core.atomic import written_as
from xlmr_core.errors import CheckpointError

CHUNK = 16 * 2**20  # bytes hashed at a time
COMMIT = "[0-9a-f]{40}"
HASHES = {40: "git sha1", 64: "sha256"}  # by the number of hexadecimal digits
MARKS = ".xlmr-verified"
NOT_CHECKED = "not checked: no hash of it is known"


def hash_kind(etag: str) -> str | None:
    """What the hub's ETag is: "sha256", "git sha1", or None for anything else."""
    return HASHES.get(len(etag)) if re.fullmatch("[0-9a-f]+", etag) else None


def repository_folder(path: Path) -> Path | None:
    """The cache folder of the repository that `path`, a file or folder in a snapshot, belongs to; None outside."""
    for folder in (path, *path.parents):
        if re.fullmatch(COMMIT, folder.name) and folder.parent.name == "snapshots":
            return folder.parents[1]
    return None


def verify(path: Path, promised: str | None = None) -> str:
    """Compares a file of a snapshot with the hash that the hub promised, once.

    A file that was compared gets a mark, which holds as long as the file keeps its size and its modification time. A
    cache that cannot be written to gets no marks, and its files are compared each time.

    Args:
        path: the file in the snapshot.
        promised: its ETag, if the hub was asked. Where the snapshot is made of links, the name of the blob is taken.

    Returns:
        What was compared, for a report: "sha256 as the hub promised", "git sha1 as the hub promised" or NOT_CHECKED.

    Raises:
        CheckpointError: the file is another one than promised, or a link out of the cache. It left the cache.
    """
    folder = repository_folder(path)
    blob = _blob(path)
    if folder is None or (blob is not None and blob.parent != _absolute(folder / "blobs")):
        discard(path)
        raise CheckpointError(f"{path} leads out of the cache, to {blob or path}. The link was removed; fetch it again")
    status = path.stat()
    stamp = f"{status.st_size} {status.st_mtime_ns}"
    mark = folder / MARKS / (blob or _absolute(path)).relative_to(_absolute(folder))
    marked = _marked(mark, stamp)
    etag = blob.name if blob is not None else promised or marked
    kind = hash_kind(etag) if etag is not None else None
    if etag is None or kind is None:
        return NOT_CHECKED
    if etag != marked:
        if hash_of(path, kind) != etag:
            discard(path)
            raise CheckpointError(
                f"its {status.st_size} bytes are not those the hub promised ({kind} {etag}). "
                "They were thrown away; run it again"
            )
        with suppress(OSError):  # a cache that belongs to another user
            mark.parent.mkdir(parents=True, exist_ok=True)
            with written_as(mark) as temporary:
                temporary.write_text(f"{etag} {stamp}\n", encoding="utf-8")
    return f"{kind} as the hub promised"


def discard(path: Path) -> None:
    """Removes a file of a snapshot, and its blob, but nothing outside the folder of its repository."""
    folder, blob = repository_folder(path), _blob(path)
    for entry in (path, blob):
        if folder and entry and entry.parent.resolve().is_relative_to(folder.resolve()):
            entry.unlink(missing_ok=True)


def check_link(path: Path, folder: Path) -> Path:
    """The file itself, which is about to be copied from the checkpoint in `folder`.

    Raises:
        CheckpointError: it is a link that leads out of the folder and, for a snapshot, out of the cache. The copy may
            be published, and what the link leads to may not be meant for that.
    """
    repository = repository_folder(path)
    allowed = [folder, *([repository, repository.parent / "blobs"] if repository else [])]
    if not any(path.resolve().is_relative_to(place.resolve()) for place in allowed):
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, outside of the folder: it is not copied. "
            "Put the file itself there, or remove the link"
        )
    return path


def hash_of(path: Path, kind: str) -> str:
    """The hash of a file of any size, in hexadecimal digits.

    Args:
        path: the file.
        kind: "sha256", or "git sha1": that of git's object, which has the size before the contents.
    """
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        if kind != "sha256":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _blob(path: Path) -> Path | None:
    """Where the link `path` leads, one step; None if it is not a link."""
    return _absolute(path.parent / os.readlink(path)) if path.is_symlink() else None


def _absolute(path: Path) -> Path:
    """Without "..", and without following links."""
    return Path(os.path.abspath(path))


def _marked(mark: Path, stamp: str) -> str | None:
    """The hash that the file had when it was compared, if it did not change since."""
    try:
        etag, _, was = mark.read_text(encoding="utf-8").strip().partition(" ")
    except (OSError, ValueError):
        return None
    return etag if was == stamp else None
