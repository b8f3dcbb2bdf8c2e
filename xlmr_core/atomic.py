"""Files and folders that appear under their name complete, or not at all.

Each is written under a temporary name beside the final one, flushed to the disk and renamed. The temporary name is
random and is opened exclusively: two writers never share a file, and a link that waits under the name is not followed.
"""

import glob
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

SUFFIX = ".tmp"
UNKNOWN = "unknown"
ABANDONED_AFTER = 24 * 3600  # seconds without a change, where it is not known whether the writer still runs


@contextmanager
def written_as(path: Path) -> Generator[Path, None, None]:
    """An empty temporary file to write to, which becomes `path` at the end of the block.

    Args:
        path: the file to write; its folder must exist. A file or a link of that name is replaced.

    Yields:
        The temporary file. It is removed if the block raises.
    """
    with written_together(path.parent, path.name) as [temporary]:
        yield temporary


@contextmanager
def written_together(folder: Path, *names: str) -> Generator[list[Path], None, None]:
    """Empty temporary files to write to, which become `names` in `folder` at the end of the block.

    A process that is killed leaves all the old files, all the new ones, or a folder without the last name: that one is
    removed before the first is renamed. Give as the last name the file without which nothing can be read.

    Args:
        folder: where the files go; it must exist.
        names: the final names, in the order of the renames.

    Yields:
        The temporary files, in the order of `names`. They are removed if the block raises.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: make it first, or name another for {names[-1]}")
    for name in names:
        clear_leftovers(folder / name)
    temporaries: list[Path] = []
    try:
        for name in names:
            temporary = _temporary(folder / name)
            temporary.touch(exist_ok=False)  # O_CREAT | O_EXCL
            temporaries.append(temporary)
        yield list(temporaries)
        for temporary in temporaries:
            _flush(temporary)
        with _locked(folder):
            if len(names) > 1:
                (folder / names[-1]).unlink(missing_ok=True)
                _flush(folder)
            for temporary, name in zip(temporaries, names, strict=True):
                os.replace(temporary, folder / name)
            _flush(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_as(path: Path) -> Generator[Path, None, None]:
    """An empty temporary folder to write to, which becomes `path` at the end of the block.

    Args:
        path: the folder to write; it must not exist, or be empty.

    Yields:
        The temporary folder. It is removed with its contents if the block raises.
    """
    clear_leftovers(path)
    temporary = _temporary(path)
    temporary.mkdir()  # raises where the name is taken
    try:
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            _flush(entry)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        _remove(temporary)


def clear_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` left behind.

    A writer counts as killed if it ran in this process namespace of this boot of this machine and its process is gone,
    or if nothing was changed for a day.
    """
    start = f".{path.name}."
    for entry in path.parent.glob(f"{glob.escape(start)}*{SUFFIX}"):
        fields = entry.name[len(start) : -len(SUFFIX)].split(".")
        if len(fields) != 3:  # namespace, process, random: see `_temporary`
            continue
        namespace, process, _ = fields
        with suppress(OSError):  # another process clears it too, or it belongs to another user
            if _is_gone(namespace, process) or time.time() - _last_change(entry) > ABANDONED_AFTER:
                _remove(entry)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_namespace()}.{os.getpid()}.{secrets.token_hex(8)}{SUFFIX}")


def _namespace() -> str:
    """Where a process number means one process: a machine, its boot, and the namespace of a container.

    Containers often share the machine's boot id, and each has a process 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux, or /proc is hidden
        return UNKNOWN
    return hashlib.sha256(f"{platform.node()} {boot} {namespace}".encode()).hexdigest()[:12]


def _is_gone(namespace: str, process: str) -> bool:
    if namespace == UNKNOWN or namespace != _namespace() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _last_change(entry: Path) -> float:
    return max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until the contents of the file, or the names in the folder, are on the disk."""
    if os.name != "posix":  # where only a file that is open for writing can be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems flush no folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Keeps the renames of two writers apart, where the system and the file system can."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
