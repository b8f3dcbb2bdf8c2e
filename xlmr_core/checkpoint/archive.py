"""Archives are looked at before they are trusted: what a tar or a zip declares is bounded, and nothing else is written.

An archive is never extracted as a whole. Of a tar the few files that are needed are copied out under names of our own.
"""

import atexit
import gzip
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from xlmr_core.errors import CheckpointError

TARS = (".tar.gz", ".tgz", ".tar")
MEMBER_LIMIT = 64 * 2**30  # bytes in a tar, unpacked; the largest model, XXL, has 43 GB
RATIO_LIMIT = 20  # bytes unpacked for each byte of a tar; weights are hardly compressible: published tars have 1 to 2
SMALL = 64 * 2**20  # bytes that any tar may unpack to, whatever it packs them to
MEMBERS_LIMIT = 1_000
CHUNK = 2**20  # bytes copied at a time
READ_LIMIT = 64 * 2**20  # bytes of a directory or a header that are read in one go
GZIP = b"\x1f\x8b"


class BoundedReads:
    """A file for a parser. A read of more than READ_LIMIT bytes, or beyond the byte `end`, is an error.

    Only a hostile file asks for either; `end` is the most bytes that it may unpack to.
    """

    def __init__(self, file: BinaryIO, path: Path, end: int) -> None:
        self.file = file
        self.path = path
        self.end = end

    def read(self, size: int = -1) -> bytes:
        if self.file.tell() > self.end:
            raise CheckpointError(f"{self.path} is refused: it unpacks to more than {self.end} bytes")
        if size > READ_LIMIT:
            raise CheckpointError(
                f"{self.path} is refused: it has a header of {size} bytes; at most {READ_LIMIT} are read"
            )
        return self.file.read(READ_LIMIT if size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True


# ---- zip ------------------------------------------------------------------------------------------------------------


def check_zip(path: Path) -> None:
    """Raises CheckpointError for a zip that torch did not write: one that would unpack to more than it is."""
    size = path.stat().st_size
    with path.open("rb") as file, zipfile.ZipFile(cast(Any, BoundedReads(file, path, size))) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path} is refused: {member.filename!r} in it is compressed, as torch never does")
        is_tensor = "/data/" in member.filename
        if member.file_size > READ_LIMIT and not is_tensor:
            raise CheckpointError(f"{path} is refused: {member.filename!r} in it claims {member.file_size} bytes")
    claimed = sum(member.file_size for member in members)
    if claimed > size:
        raise CheckpointError(f"{path} is refused: its members claim {claimed} bytes, more than the {size} it has")


# ---- tar ------------------------------------------------------------------------------------------------------------


_unpacked: dict[tuple[Path, int, int], Path] = {}  # by path, size and time of the tar: one copy a process


def unpack(path: Path, names: Collection[str]) -> Path:
    """A temporary folder with the files of the tar that have one of `names`. It goes away when Python ends.

    The tar may have them in a folder of its own. Raises CheckpointError, naming the member, for a tar with absolute
    paths, `..`, links, devices, control characters or absurd sizes, whether or not that member is needed.
    """
    stat = path.stat()
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns)
    if key not in _unpacked:
        folder = Path(tempfile.mkdtemp(prefix="xlmr-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            _copy_members(path, names, folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)):
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(
                    f"{path} cannot be unpacked: it is truncated, corrupt, or not a tar "
                    f"({type(error).__name__}: {error})"
                ) from error
            raise
        _unpacked[key] = folder
    return _unpacked[key]


def _copy_members(path: Path, names: Collection[str], folder: Path) -> None:
    with path.open("rb") as raw:
        zipped = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else cast(BinaryIO, raw)
        limit = min(MEMBER_LIMIT, max(SMALL, RATIO_LIMIT * path.stat().st_size))
        with tarfile.TarFile(fileobj=cast(Any, BoundedReads(stream, path, limit + SMALL))) as archive:
            total = 0
            for count, member in enumerate(archive, start=1):
                total += member.size
                _check_member(path, member, count, total, limit)
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
                name = PurePosixPath(member.name).name
                if member.isfile() and name in names:
                    _copy_member(path, archive, member, folder / name)


def _check_member(path: Path, member: tarfile.TarInfo, count: int, total: int, limit: int) -> None:
    name = PurePosixPath(member.name)
    reason = None
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        reason = "its path leaves the archive"
    elif not member.name.isprintable():
        reason = "its name has control characters"
    elif member.issym() or member.islnk():
        reason = f"it is a link (to {member.linkname!r})"
    elif member.issparse() or not (member.isreg() or member.isdir()):
        reason = "it is neither a plain file nor a folder"
    elif total > limit or member.size < 0:
        reason = f"with it the archive claims {total} bytes; at most {limit} are unpacked from a file of its size"
    elif count > MEMBERS_LIMIT:
        reason = f"it is one of more than {MEMBERS_LIMIT} members"
    if reason is not None:
        raise CheckpointError(f"{path} is refused because of its member {member.name!r}: {reason}")


def _copy_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, destination: Path) -> None:
    source = archive.extractfile(member)
    if source is None or destination.exists():
        raise CheckpointError(f"{path} is refused because of its member {member.name!r}: it has that file twice")
    free = shutil.disk_usage(destination.parent).free
    if member.size > free:
        raise CheckpointError(
            f"{path} cannot be unpacked: its member {member.name!r} has {member.size} bytes, and {destination.parent} "
            f"has room for {free}. Set TMPDIR to a folder with more room, or unpack it by hand and give the folder"
        )
    with source, destination.open("xb") as out:
        left = member.size
        while left:
            chunk = source.read(min(CHUNK, left))
            if not chunk:
                raise EOFError(f"{member.name!r} ends {left} bytes early")
            out.write(chunk)
            left -= len(chunk)
