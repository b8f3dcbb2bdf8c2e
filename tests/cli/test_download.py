"""`xlmr download`: what was fetched, where it lies, how it was verified. test_catalogue.py tests the work itself."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xlmr_core.checkpoint.download import Downloaded
from xlmr_core.cli import download, main


def xlmr_download(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["download", *map(str, arguments)])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: Any) -> list[Any]:
    """What the command asked for; it is given one file."""
    calls: list[Any] = []

    def answer(name: str, **options: Any) -> list[Downloaded]:
        calls.append((name, options))
        (tmp_path / "config.json").write_text("{}")
        return [Downloaded(tmp_path / "config.json", "verified: sha256 as in the catalogue")]

    monkeypatch.setattr(download, "download", answer)
    return calls


def test_it_prints_path_size_and_check(asked: list[Any], tmp_path: Path) -> None:
    result = xlmr_download("bge-m3", "--cache-dir", tmp_path, "--revision", "v1", "--offline")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'config.json'}  2 bytes, verified: sha256 as in the catalogue\n"
    assert asked == [("bge-m3", {"revision": "v1", "cache_dir": str(tmp_path), "local_files_only": True})]


def test_an_error_is_one_line() -> None:
    result = xlmr_download("multilingual-e5-small")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: intfloat/multilingual-e5-small cannot be used here: it is BERT")
