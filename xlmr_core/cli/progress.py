"""Progress on stderr: a bar at a terminal, elsewhere a line from time to time."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import click
from tqdm import tqdm

from xlmr_core.progress import Tick


@contextmanager
def progress(
    what: str, *, total: int | None = None, unit: str = "run", every: float = 10.0
) -> Generator[Tick, None, None]:
    """While the context is open, shows how much is done.

    Args:
        what: What is being done: "measuring".
        total: How many units there are, where that is known.
        unit: What is counted.
        every: Seconds from one line to the next, where stderr is not a terminal.

    Yields:
        A function that is called with the number of units done since the last call.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit) as bar:
            yield bar.update
        return
    done, last = 0, time.monotonic()

    def tick(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= every:
            last = time.monotonic()
            click.echo(f"{what}: {done} of {total} {unit}s" if total else f"{what}: {done} {unit}s", err=True)

    yield tick
