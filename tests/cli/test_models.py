"""`xlmr models`: a table, one entry, JSON."""

import json

import pytest
from click.testing import CliRunner, Result

from xlmr_core.checkpoint.catalogue import read_catalogue
from xlmr_core.cli import main

ENTRIES, REFUSED = read_catalogue().published, read_catalogue().refused


def models(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments])


def test_the_table_has_every_checkpoint() -> None:
    result = models()
    assert result.exit_code == 0
    table, _, refused = result.stdout.partition("Refused")
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    for entry in ENTRIES.values():
        assert f"{entry.max_tokens:,}" in lines[entry.name]
    for hub_id, reason in REFUSED.items():
        name = hub_id.rpartition("/")[2]
        assert name not in lines
        assert f"{name}: {reason}" in refused


@pytest.mark.parametrize("name", ["multilingual-e5-base", "intfloat/multilingual-e5-base"])
def test_one_entry_with_all_that_is_known(name: str) -> None:
    result = models(name)
    assert result.exit_code == 0
    for expected in ("query 'query: '", "mean", "278,043,648", "a18a44fad1d0b46ded15", "1,112,201,288 bytes"):
        assert expected in result.stdout
    assert "labels" not in result.stdout  # what is not known is left out


def test_every_entry_prints() -> None:
    for name in ENTRIES:
        assert models(name).exit_code == 0


def test_a_refused_name_gives_the_reason() -> None:
    result = models("multilingual-e5-small")
    assert result.exit_code == 1
    assert "intfloat/multilingual-e5-small cannot be used here: it is BERT" in result.stderr


def test_json() -> None:
    everything = json.loads(models("--json").stdout)
    assert [entry["id"] for entry in everything] == list(ENTRIES)
    one = json.loads(models("bge-m3", "--json").stdout)
    assert one in everything
    assert (one["name"], one["head"], one["pooling"], one["extra_files"][0]) == (
        "bge-m3",
        "encoder",
        "cls",
        "colbert_linear.pt",
    )


def test_an_unknown_name() -> None:
    result = models("xlm-robert-base")
    assert result.exit_code == 1
    assert "'xlm-robert-base' is not in the catalogue; near: xlm-roberta-base" in result.stderr
