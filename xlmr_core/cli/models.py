"""`xlmr models`"""

import json
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

import click

from xlmr_core.checkpoint.catalogue import Catalogue, Published, find_published, read_catalogue, short_name
from xlmr_core.formatting import aligned

TITLES = ("name", "layers x hidden", "vocabulary", "tokens", "head", "labels", "stored as")


@click.command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of all checkpoints, or one object.")
def command(name: str | None, as_json: bool) -> None:
    """List the published checkpoints, or show what is known of NAME: a hub id or its last part."""
    catalogue = read_catalogue()
    if name is not None:
        entry = _find(name, catalogue)
        click.echo(json.dumps(_values(entry), ensure_ascii=False, indent=2) if as_json else _sheet(entry))
    elif as_json:
        click.echo(json.dumps([_values(entry) for entry in catalogue.published.values()], ensure_ascii=False, indent=2))
    else:
        click.echo(_table(catalogue))


def _find(name: str, catalogue: Catalogue) -> Published:
    entry = find_published(name)
    if entry is not None:
        return entry
    near = get_close_matches(name, [*catalogue.published, *map(short_name, catalogue.published)], n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise click.ClickException(f"{name!r} is not in the catalogue{hint}")


def _values(entry: Published) -> dict[str, Any]:
    return {"name": entry.name, "head": entry.head, **asdict(entry)}


def _table(catalogue: Catalogue) -> str:
    lines = aligned([TITLES, *map(_row, catalogue.published.values())])
    lines += ["", "Refused, and why:", *(f"{short_name(id)}: {reason}" for id, reason in catalogue.refused.items())]
    return "\n".join([*lines, "", "`xlmr models NAME` shows all that is known of one."])


def _row(entry: Published) -> tuple[str, ...]:
    return (
        entry.name,
        f"{entry.geometry['num_hidden_layers']} x {entry.geometry['hidden_size']}",
        f"{entry.vocab_size:,}",
        f"{entry.max_tokens:,}",
        entry.head,
        "" if entry.labels is None else str(entry.labels),
        entry.dtype or "",
    )


def _sheet(entry: Published) -> str:
    """One fact a line; what is not known is left out."""
    lines: list[tuple[str, str]] = []
    for name, value in _values(entry).items():
        if value is None or value in ((), {}):
            continue
        if name == "files":
            lines += [(file, _file(**pinned)) for file, pinned in value.items()]
        elif isinstance(value, dict):
            lines.append((name, ", ".join(f"{key} {item!r}" for key, item in value.items())))
        elif isinstance(value, tuple):
            lines.append((name, "; ".join(value)))
        else:
            lines.append((name, f"{value:,}" if type(value) is int else str(value)))
    return "\n".join(aligned(lines))


def _file(size: int | None, sha256: str | None) -> str:
    known = [f"{size:,} bytes"] if size is not None else []
    return ", ".join(known + ([f"sha256 {sha256}"] if sha256 is not None else []))
