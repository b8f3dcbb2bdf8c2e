"""A lock on a folder, so that only one process writes there. The lock ends with the process that holds it."""

import os
import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

LOCK = "run.lock"
LONGEST = 1_000  # bytes of a lock that are read


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Locks a folder for this process while the context is open.

    The file `run.lock` names the process that holds the folder, and the system locks that file until the process ends.
    So the lock of a killed process on this host is taken over, with a message. Windows has no such locks: there, the
    folder is not locked.

    Args:
        folder: The folder. It is made if it does not exist, and removed at the end if it was made here and is empty.

    Raises:
        ValueError: Another process holds the folder, or `run.lock` names a process on another host.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        holder = os.read(descriptor, LONGEST).decode("utf-8", "replace").strip()
        is_free = _take(descriptor) and _is_at(descriptor, path)
        host = f" on {platform.node()}"
        if not is_free or (holder and not holder.endswith(host)):
            raise ValueError(
                f"{folder} is in use by {holder or 'another process'}: two runs in one folder would overwrite each "
                f"other's files. Wait for it, or choose another folder. If that process has ended, remove {path}"
            )
        if holder:
            tqdm.write(f"{folder} was held by {holder}, which has ended: this process takes it over", file=sys.stderr)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}{host}".encode(), 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _take(descriptor: int) -> bool:
    """Locks the open file without waiting; False if another process holds the lock."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: the run before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
