"""Exit statuses of a command that a signal ended, as shells have them: 128 and the number of the signal."""

INTERRUPTED = 130  # SIGINT, as from Ctrl-C
TERMINATED = 143  # SIGTERM
