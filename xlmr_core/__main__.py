"""The command `xlmr`, also as `python -m xlmr_core`. Ctrl-C ends it without a traceback, while it is starting too."""

import gc
import os
import signal
import sys
from types import FrameType

from xlmr_core.exit_status import INTERRUPTED


def run() -> None:
    """Runs the command line."""
    gc.disable()  # what imports make stays: to look for garbage in it takes a sixth of the start. cli enables it again
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell ignores it in the background
        signal.signal(signal.SIGINT, interrupt)
    try:
        from xlmr_core.cli import main  # here: a Ctrl-C during this import is caught as well

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def interrupt(_number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt in a command. Before it begins, and during an import, the process ends at once.

    There click would end with another status, and imports of C libraries drop exceptions.
    """
    has_begun = False
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(INTERRUPTED)
        has_begun |= frame.f_code.co_name == "invoke" and frame.f_globals.get("__name__") == "xlmr_core.cli"
        frame = frame.f_back
    if not has_begun:
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
