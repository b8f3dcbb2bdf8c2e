"""`xlmr models`"""

import json
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

import click

from xlmr_core.checkpoint.catalogue import Published, read_catalogue

MARK = "?"  # behind what is from memory
TITLES = ("name", "layers x hidden", "vocabulary", "tokens", "head", "labels", "stored as", "licence")


@click.command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON: a list of all, or one object.")
def command(name: str | None, as_json: bool) -> None:
    """List the published checkpoints, or tell all that is known of NAME: a hub id or its last part."""
    entries = list(read_catalogue().values())
    if name is not None:
        entry = _find(name, entries)
        click.echo(json.dumps(_values(entry), ensure_ascii=False, indent=2) if as_json else _sheet(entry))
    elif as_json:
        click.echo(json.dumps([_values(entry) for entry in entries], ensure_ascii=False, indent=2))
    else:
        click.echo(_table(entries))


def _find(name: str, entries: list[Published]) -> Published:
    for entry in entries:
        if name in (entry.id, entry.name):
            return entry
    near = get_close_matches(name, [known for entry in entries for known in (entry.id, entry.name)], n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise click.ClickException(f"{name!r} is not in the catalogue{hint}")


def _values(entry: Published) -> dict[str, Any]:
    return {"name": entry.name, "head": entry.head, **asdict(entry)}


def _table(entries: list[Published]) -> str:
    rows = [TITLES, *(_row(entry) for entry in entries if entry.supported)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "Refused, and why:"]
    lines += [f"{entry.name}: {entry.reason}" for entry in entries if not entry.supported]
    return "\n".join([*lines, "", f"{MARK} from memory, not checked. `xlmr models NAME` tells more."])


def _row(entry: Published) -> tuple[str, ...]:
    def mark(*names: str) -> str:
        return MARK if set(names) & set(entry.unverified) else ""

    sizes = entry.geometry
    return (
        entry.name,
        f"{sizes['num_hidden_layers']} x {sizes['hidden_size']}{mark('geometry')}",
        f"{entry.vocab_size:,}{mark('vocab_size')}",
        f"{entry.max_tokens:,}{mark('max_tokens')}",
        f"{entry.head}{mark('architecture')}",
        f"{'' if entry.labels is None else entry.labels}{mark('labels')}",
        f"{entry.dtype or ''}{mark('dtype')}",
        f"{entry.licence or 'not seen'}{MARK if entry.licence_from == 'memory' else ''}",
    )


def _sheet(entry: Published) -> str:
    """One fact a line; what is not known is left out."""
    lines: list[tuple[str, str]] = []
    for name, value in _values(entry).items():
        mark = f" {MARK}" if name in entry.unverified else ""
        if value is None or value in ((), {}) or name == "unverified":
            continue
        if name == "files":
            lines += [(file, _file(**pinned)) for file, pinned in value.items()]
        elif isinstance(value, dict):
            lines.append((name, ", ".join(f"{key} {item!r}" for key, item in value.items()) + mark))
        elif isinstance(value, tuple):
            lines.append((name, "; ".join(value) + mark))
        else:
            lines.append((name, f"{value:,}{mark}" if type(value) is int else f"{value}{mark}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def _file(size: int | None, sha256: str | None) -> str:
    known = [f"{size:,} bytes"] if size is not None else []
    return ", ".join(known + ([f"sha256 {sha256}"] if sha256 is not None else []))
