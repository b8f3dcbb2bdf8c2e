"""Errors that callers may want to catch by name."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or accounted for. The message says why, and what to do next."""
