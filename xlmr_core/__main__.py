"""The command `xlmr`, also as `python -m xlmr_core`. Ctrl-C ends it without a traceback, while it is starting too."""

import gc
import sys

from xlmr_core.exit_status import INTERRUPTED


def run() -> None:
    """Runs the command line."""
    gc.disable()  # what imports make stays: to look for garbage in it takes a sixth of the start. cli enables it again
    try:
        from xlmr_core.cli import main  # here: a Ctrl-C during this import is caught as well

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
