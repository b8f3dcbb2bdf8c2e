"""Files and folders appear complete under their name, or not at all; the files of running writers are not removed."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from xlmr_core import atomic
from xlmr_core.atomic import clear_leftovers, folder_written_as, written_as, written_together

needs_namespaces = pytest.mark.skipif(
    atomic._namespace() == atomic.UNKNOWN, reason="the system shows no process namespaces: run it on Linux"
)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ended_process() -> int:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def make_old(path: Path) -> None:
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(path, (two_days_ago, two_days_ago))


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with written_as(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    with folder_written_as(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("inside")
        assert not (tmp_path / "folder").exists()
    assert names_in(tmp_path) == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "inside"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX: run it on Linux or macOS")
def test_without_a_folder_the_error_names_it_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        message = re.escape(f"{folder} is not a folder: make it first, or name another for page.html")
        with pytest.raises(FileNotFoundError, match=message), written_as(folder / "page.html"):
            pass


def test_the_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with written_as(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("writer", [written_as, folder_written_as])
def test_an_interrupted_block_leaves_nothing(
    writer: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    def interrupted() -> None:
        with writer(tmp_path / "out") as temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path) == set()


def test_files_written_together_replace_the_old_ones_after_all_were_written(tmp_path: Path) -> None:
    for name in ("weights", "config"):
        (tmp_path / name).write_text("old")
    with written_together(tmp_path, "weights", "config") as (weights, config):
        weights.write_text("new")
        config.write_text("new")
        assert {(tmp_path / name).read_text() for name in ("weights", "config")} == {"old"}
    assert {(tmp_path / name).read_text() for name in ("weights", "config")} == {"new"}
    assert names_in(tmp_path) == {"weights", "config"}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_stopped_between_the_renames_the_last_file_is_missing(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("weights", "head", "config")
    for name in names:
        (tmp_path / name).write_text("old")
    done: list[Path] = []
    rename = os.replace

    def stopped(source: Path, destination: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(destination)
        rename(source, destination)

    def write() -> None:
        with written_together(tmp_path, *names) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.name for path in done] == list(names[:renames])
    assert names_in(tmp_path) == {"weights", "head"}


def test_links_that_wait_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one under the very name that is drawn next."""
    (tmp_path / "precious").write_text("precious")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda count: "0" * 2 * count)
    waiting = atomic._temporary(tmp_path / "out")
    waiting.symlink_to(tmp_path / "precious")

    def write() -> None:
        with written_as(tmp_path / "out") as temporary:
            temporary.write_text("new")

    with pytest.raises(FileExistsError):
        write()
    waiting.unlink()
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    write()
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    def write(letter: str) -> None:
        for _ in range(10):
            with written_as(tmp_path / "out") as temporary, temporary.open("w") as file:
                for _ in range(20):
                    file.write(letter * 1000)
                    file.flush()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "out").exists():
            assert (tmp_path / "out").read_text() in ("a" * 20_000, "b" * 20_000)
    for thread in threads:
        thread.join()
    assert names_in(tmp_path) == {"out"}


@needs_namespaces
def test_what_an_ended_process_left_is_cleared(tmp_path: Path) -> None:
    here, ended = atomic._namespace(), ended_process()
    dead, folder = (tmp_path / f".{name}.{here}.{ended}.00.tmp" for name in ("out", "out[1]"))
    running = tmp_path / f".out.{here}.{os.getppid()}.00.tmp"
    elsewhere = tmp_path / f".out.{'0' * 12}.{ended}.00.tmp"  # of another machine or container
    others = [tmp_path / f".outer.{here}.{ended}.00.tmp", tmp_path / ".out.notes.tmp", tmp_path / ".out.tmp"]
    for path in (dead, running, elsewhere, *others):
        path.touch()
    folder.mkdir()
    (folder / "half").touch()
    clear_leftovers(tmp_path / "out")
    assert names_in(tmp_path) == {path.name for path in (folder, running, elsewhere, *others)}
    clear_leftovers(tmp_path / "out[1]")
    assert not folder.exists()


def test_what_was_not_changed_for_a_day_is_cleared(tmp_path: Path) -> None:
    left, folder, busy = (tmp_path / f".out.{'0' * 12}.1.0{number}.tmp" for number in range(3))
    left.touch()
    for path in (folder, busy):
        path.mkdir()
        (path / "half").touch()
    for path in (left, folder / "half", folder, busy):  # a file in the third is being written
        make_old(path)
    clear_leftovers(tmp_path / "out")
    assert names_in(tmp_path) == {busy.name}
