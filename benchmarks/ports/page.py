"""docs/ports.md, from the stored results."""

import json
from pathlib import Path
from typing import Any

from ports import NOT_RUN, PORTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "ports-cpu.json"
PAGE = ROOT / "docs" / "ports.md"

INTRODUCTION = """\
# Other implementations

The parity kit on implementations of XLM-R that others wrote, as they come from PyPI and npm. Each runs in an
environment of its own, on `xlmr-tiny` and on a model of base size with random weights and the vocabulary of XLM-R, and
gives what it can: the ids of the lines of a file, the hidden states of one batch of {rows} texts, and the vectors of
the texts of [`xlmr parity probe`](served-vectors.md).

`benchmarks/ports/run.py` makes the environments, runs the ports and writes this page: Python {python}, CPU,
PyTorch 2.13.0 where a port needs it. `xlmr-tiny` was run {dates[tiny]}, the base size {dates[base]}.

The lines of the file are those of the Universal Declaration of Human Rights in 90 languages that have at most 100
tokens: {lines[tiny]} by the vocabulary of `xlmr-tiny`, {lines[base]} by that of XLM-R.

- *equal* is bit for bit. *agrees* is to the noise of the precision, which is measured
  ([what passes](trace-format.md#what-passes)); the worst tap is named, with its error and its share of the allowance.
- A fault is named only if, made in our model, it gives the numbers of the port at every tap or in every vector. Ids
  must be equal in every line. Vectors are judged with the ids that the port has.
- An empty cell: the port does not give that, or was not run at that size.
"""


def write_page() -> None:
    """Writes the page."""
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The text of the page."""
    known = [(port, results["ports"][port.name]) for port in PORTS if port.name in results["ports"]]
    runs = {size: [entry["models"][size] for _, entry in known if size in entry["models"]] for size in ("tiny", "base")}
    introduction = INTRODUCTION.format(
        rows=5,
        python=results["python"],
        dates={size: period([one["date"] for one in found]) for size, found in runs.items()},
        lines={size: max(one["ids"]["texts"] for one in found if "ids" in one) for size, found in runs.items()},
    )
    lines = [introduction, "## Ids and vectors", ""]
    lines += [
        "| port | versions | ids, tiny | ids, base | vectors, tiny | vectors, base |",
        "|---|---|---|---|---|---|",
    ]
    for port, entry in known:
        models = entry["models"]
        cells = [part(models.get(size, {})) for part in (ids, vectors) for size in ("tiny", "base")]
        if any(cells):
            lines.append(row(port.name, versions(entry), *cells))
    lines += [
        "",
        "## Hidden states",
        "",
        "| port | versions | computes in | xlmr-tiny | base size |",
        "|---|---|---|---|---|",
    ]
    for port, entry in known:
        cells = [states(entry["models"].get(size, {})) for size in ("tiny", "base")]
        if any(cells):
            lines.append(row(port.name, versions(entry), port.dtype or "float32", *cells))
    lines += ["", "## Notes", ""]
    lines += [f"- {port.name}: {port.note}." for port, _ in known if port.note]
    lines += ["", "## Not run", "", *heading("implementation", "why")]
    lines += [row(name, why) for name, why in NOT_RUN.items()]
    return "\n".join(lines) + "\n"


def period(dates: list[str]) -> str:
    """The day of the runs, or the first and the last."""
    first, last = min(dates), max(dates)
    return f"on {first}" if first == last else f"from {first} to {last}"


def heading(*cells: str) -> list[str]:
    return [row(*cells), "|" + "---|" * len(cells)]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def versions(entry: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in entry["versions"].items())


def ids(found: dict[str, Any]) -> str:
    """A cell of the table; empty where the port gives no ids."""
    if "ids" not in found:
        return ""
    verdict = found["ids"]
    if verdict["ok"]:
        return "right"
    return f"wrong in {len(verdict['wrong'])} of {verdict['texts']} lines: {names(verdict['names'])}"


def vectors(found: dict[str, Any]) -> str:
    if "vectors" not in found:
        return ""
    verdict = found["vectors"]
    if verdict["precision"]:
        return f"right, to the noise of {verdict['precision']}"
    return names([candidate["name"] for candidate in verdict["candidates"]])


def states(found: dict[str, Any]) -> str:
    if "states" not in found:
        return ""
    verdict = found["states"]
    counted = f"{verdict['taps']} tap{'s' * (verdict['taps'] > 1)}"
    if verdict["ok"] and verdict["error"] == 0:
        return f"equal at {counted}"
    if verdict["ok"]:
        share = verdict["error"] / verdict["allowed"]
        return f"agrees at {counted}; `{verdict['tap']}` {verdict['error']:.0e}, {share:.2f} of the allowance"
    error, allowed = verdict["error"], verdict["allowed"] or 0
    cause = f": {names(verdict['faults'])}" if verdict["faults"] else ""
    return f"differs first at `{verdict['tap']}`, by {error:.0e}, allowed {allowed:.0e}{cause}"


def names(found: list[str]) -> str:
    return " or ".join(f"`{name}`" for name in found) or "not explained"
