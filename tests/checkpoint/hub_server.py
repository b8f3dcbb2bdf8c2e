"""A server on this machine that speaks enough of the hub's protocol for huggingface_hub, and can misbehave.

`GET` and `HEAD /{repo}/resolve/{revision}/{file}` answer with the headers that huggingface_hub reads: X-Repo-Commit,
ETag, and for large files X-Linked-ETag (the sha256), X-Linked-Size and a redirect to `/cdn/...`, which knows byte
ranges. Errors carry X-Error-Code, as the hub's do.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".model", ".pt")  # kept by their sha256, like the hub's LFS files
CHUNK = 2**20  # bytes


@dataclass
class Behaviour:
    """What the server has, what it does, and what it was asked."""

    repos: dict[str, Path]
    gated: frozenset[str] = frozenset()
    token: str | None = None  # opens the gated ones
    fail_with: int | None = None  # answer everything with this status
    cuts: list[int] = field(default_factory=list)  # drop the connection after so many bytes, once each
    headers: dict[str, str] = field(default_factory=dict)  # to send with an error
    corrupt: bool = False  # send other bytes than promised
    etags: list[str | None] = field(default_factory=list)  # send these, once each; None: the true one
    commit: str = COMMIT
    requests: list[str] = field(default_factory=list)  # "GET /path" or "GET /path bytes=10-"
    url: str = ""

    def downloads(self) -> list[str]:
        """The files that were fetched, and from which byte on. Other questions huggingface_hub asks are left out."""
        gets = [request for request in self.requests if request.startswith("GET") and "/resolve/" in request]
        return [request.partition("/resolve/")[2] for request in gets]


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[Behaviour]:
    """Runs the server while the context is open; its address is `behaviour.url`."""

    class Handler(_Handler):
        state = behaviour

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    behaviour.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Behaviour

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        """No log."""

    def answer(self) -> None:
        wanted = self.headers.get("Range")
        self.state.requests.append(f"{self.command} {self.path}" + (f" {wanted}" if wanted else ""))
        if self.state.fail_with is not None:
            return self.error(self.state.fail_with)
        match = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None or match[2] not in self.state.repos:
            return self.error(404, "RepoNotFound")
        on_cdn, repo, revision, name = match.groups()
        if on_cdn and self.headers.get("Authorization"):
            return self.error(400, "a token has no business on another host")
        if repo in self.state.gated and not on_cdn and not self.authorised():
            return self.error(401, "GatedRepo")
        if revision not in ("main", COMMIT):
            return self.error(404, "RevisionNotFound")
        path = self.state.repos[repo] / name
        if not path.is_file():
            return self.error(404, "EntryNotFound")
        if name.endswith(LARGE) and not on_cdn:
            return self.redirect(path)
        return self.send(path, large=name.endswith(LARGE))

    def authorised(self) -> bool:
        return self.state.token is not None and self.headers.get("Authorization") == f"Bearer {self.state.token}"

    def error(self, status: int, code: str | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", self.state.commit)
        for name, value in self.state.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def etag(self, path: Path, *, large: bool) -> str:
        """With the quotes."""
        etag = self.state.etags.pop(0) if self.state.etags else None
        return f'"{etag or (sha256(path) if large else git_sha1(path))}"'

    def redirect(self, path: Path) -> None:
        """To another address, with the promise of size and hash. `localhost` is another host than 127.0.0.1."""
        self.send_response(302)
        self.send_header("X-Repo-Commit", self.state.commit)
        self.send_header("X-Linked-ETag", self.etag(path, large=True))
        self.send_header("X-Linked-Size", str(path.stat().st_size))
        self.send_header("Location", f"{self.state.url.replace('127.0.0.1', 'localhost')}/cdn{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, path: Path, *, large: bool) -> None:
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("X-Repo-Commit", self.state.commit)
        self.send_header("ETag", self.etag(path, large=large))
        self.end_headers()
        if self.command == "GET":
            self.send_body(path, start, large)

    def send_body(self, path: Path, start: int, large: bool) -> None:
        left = self.state.cuts.pop(0) if large and self.state.cuts else None
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
                if large and self.state.corrupt:
                    chunk = bytes(len(chunk))
                self.wfile.write(chunk)
                if left is not None:
                    left -= len(chunk)
        if left is not None:
            self.close_connection = True


def sha256(path: Path) -> str:
    """Cached by path, size and time: a large file is asked for many times."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _DIGESTS:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        _DIGESTS[key] = digest.hexdigest()
    return _DIGESTS[key]


def git_sha1(path: Path) -> str:
    """The name that git gives the contents."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


_DIGESTS: dict[tuple[Path, int, int], str] = {}
