"""Checks between huggingface_hub and the server it asks.

huggingface_hub (seen in 0.30 to 2.4) makes paths of the ETag and the commit that a server sends, writes a body of any
length, and waits as long as the server says. A server can be hostile, or a mirror broken. Inside `guarded()` these
answers are checked before they are used. hf_hub_download has no argument for that, so the two functions by which it
asks for metadata and fetches a body are wrapped. Outside `guarded()`, and in other threads, they act as before.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from xlmr_core.checkpoint.cache import COMMIT, hash_kind
from xlmr_core.errors import CheckpointError

LONGEST_WAIT = 60  # seconds: the sum of the waits that a server may ask for during one file
SILENCE = 60  # seconds without new data after which a message is shown
QUICK = 3  # seconds to wait for an answer about a name that is probably mistyped
LARGEST_UNPROMISED = 64 * 2**20  # bytes of a file whose size the server does not send; a tokenizer.json has 17 MB
BUSY = (408, 429, 500, 502, 503, 504)  # the status codes after which huggingface_hub waits and asks again


class HubBusyError(CheckpointError):
    """The server asks for a longer wait than is granted."""


@dataclass
class Question:
    """One file that is asked for."""

    patient: bool  # False: ask once
    etag: str | None = None  # what the server promised, once it answered
    failure: Exception | None = None  # of the last time that the server was asked
    waited: float = 0.0  # seconds that the server asked for so far


_question: ContextVar[Question | None] = ContextVar("question", default=None)


@contextmanager
def guarded(*, patient: bool = True) -> Generator[Question, None, None]:
    """Checks what the server answers to huggingface_hub in this thread while the block runs.

    Args:
        patient: whether to ask again, several times, where the server cannot be reached.

    Yields:
        What is known of the file.

    Raises:
        CheckpointError: the server answered with an ETag that is not a hash, with a commit that is not one, or with a
            body longer than promised.
        HubBusyError: it asks to wait for more than LONGEST_WAIT.
    """
    _install()
    question = Question(patient)
    token = _question.set(question)
    try:
        yield question
    finally:
        _question.reset(token)


def _install() -> None:
    """Wraps huggingface_hub's functions, unless they are wrapped already, and watches its present session."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import get_session

    module: Any = file_download
    for name, wrapper in (("get_hf_file_metadata", _checked_metadata), ("http_get", _checked_body)):
        function = getattr(module, name)
        if not hasattr(function, "__wrapped_by_xlmr_core__"):
            wrapped = wrapper(function)
            wrapped.__wrapped_by_xlmr_core__ = True
            setattr(module, name, wrapped)
    hooks: Any = getattr(get_session(), "event_hooks", None)  # versions before 1.0 have none, and wait for 8 s at most
    if hooks is not None and _check_wait not in hooks["response"]:
        hooks["response"].append(_check_wait)


def _checked_metadata(ask: Callable[..., Any]) -> Any:
    @wraps(ask)
    def asked(*arguments: Any, **options: Any) -> Any:
        question = _question.get()
        if question is None:
            return ask(*arguments, **options)
        if question.failure is not None and not question.patient:  # huggingface_hub is about to ask six times more
            raise question.failure
        if not question.patient:
            options["timeout"] = QUICK
        try:
            answer = ask(*arguments, **options)
        except Exception as error:
            question.failure = error
            headers = getattr(getattr(error, "response", None), "headers", {})
            _check_commit(headers.get("X-Repo-Commit"))  # that of a 404 becomes a path, too
            raise
        _check_commit(answer.commit_hash)
        if answer.etag is not None and hash_kind(answer.etag) is None:
            raise CheckpointError(
                f"the hub answered with the ETag {answer.etag!r}, which is neither a sha256 nor a sha1 "
                "of git. Nothing was fetched: do not trust this server"
            )
        question.etag = answer.etag
        return answer

    return asked


def _check_commit(commit: str | None) -> None:
    if commit is not None and re.fullmatch(COMMIT, commit) is None:
        raise CheckpointError(
            f"the hub answered with the commit {commit!r}, which is not one. "
            "Nothing was fetched: do not trust this server"
        )


def _checked_body(fetch: Callable[..., None]) -> Any:
    @wraps(fetch)
    def fetched(url: str, temp_file: Any, **options: Any) -> None:
        question = _question.get()
        if question is None or isinstance(temp_file, _Bounded):  # it calls itself after a cut
            return fetch(url, temp_file, **options)
        promised = options.get("expected_size")
        file = _Bounded(temp_file, LARGEST_UNPROMISED if promised is None else promised)
        with _watched(file):
            return fetch(url, file, **options)

    return fetched


class _Bounded:
    """A file that refuses to become longer than promised."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.limit = file, limit
        self.changed = time.monotonic()

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.limit:
            raise CheckpointError(f"the hub sent more than {self.limit} bytes, the most that were expected")
        self.changed = time.monotonic()
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def _watched(file: _Bounded) -> Generator[None, None, None]:
    """Tells on stderr when next to nothing arrives: a server can hold a connection open for hours."""
    from huggingface_hub import constants

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SILENCE):
            if time.monotonic() - file.changed >= SILENCE:
                print(
                    f"the hub sent less than {constants.DOWNLOAD_CHUNK_SIZE:,} bytes in the last {SILENCE} s. "
                    "Ctrl-C stops the download",
                    file=sys.stderr,
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _check_wait(response: Any) -> None:
    """Looks at how long an overloaded server asks to wait, before huggingface_hub does."""
    question = _question.get()
    if question is None or response.status_code not in BUSY:
        return
    rate_limit = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", ""))
    after = response.headers.get("Retry-After", "")
    seconds = max(int(after) if after.isdecimal() else 0, int(rate_limit[1]) if rate_limit else 0)
    question.waited += seconds
    if question.waited > LONGEST_WAIT:
        raise HubBusyError(
            f"the hub answered with an error ({response.status_code}) and asks to wait {seconds} s; "
            f"at most {LONGEST_WAIT} s in all are waited. Try again later"
        )
    if seconds:
        print(f"the hub asks to wait {seconds} s ({response.status_code})", file=sys.stderr)
