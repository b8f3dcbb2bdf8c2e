"""Asks a server for vectors, scores or ids, in the protocols that embedding servers speak.

Only the address that the user names is asked: redirects are not followed. Requests, responses and waiting are bounded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import urlsplit

from xlmr_core.served.files import as_numbers

LARGEST_RESPONSE = 64 * 2**20  # bytes; 32 vectors of 4096 numbers as text have 3 MB
CHUNK = 2**16
NO_ROUTE = (404, 405, 501)  # statuses: not found, another method only, not implemented


class ServerError(ValueError):
    """A server did not answer with vectors or scores. The message says which request, and what came back."""


class NoRouteError(ServerError):
    """The server has no such route, or has it switched off."""


@dataclass(frozen=True)
class Client:
    """One server.

    url: with http or https, and the path up to the route. api: a name in APIS. model: the name that the server has for
    the model, where the protocol asks for one. key: sent as a bearer token.
    """

    url: str
    api: str
    model: str = ""
    key: str | None = None
    timeout: float = 60.0  # seconds for one request, in all

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{self.url!r} is not an address: expected http://host:port or https://host")
        if parts.username is not None:
            raise ServerError("the address holds a user name: name an environment variable with the key instead")
        if self.api not in APIS:
            raise ServerError(f"the protocol {self.api!r} is not one of {', '.join(APIS)}")

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """The vector of each text, asked for in one request."""
        path, body, read = APIS[self.api].embed(list(texts), self.model)
        return self._each(texts, path, read, self.post(path, body))

    def scores(self, query: str, passages: Sequence[str], *, raw: bool = False) -> list[list[float]]:
        """The score of each passage, asked for in one request. raw: ask for logits, where the protocol can."""
        rerank = APIS[self.api].rerank
        if rerank is None:
            raise ServerError(f"the protocol {self.api!r} has no route for scores")
        path, body, read = rerank(query, list(passages), self.model, raw)
        return self._each(passages, path, read, self.post(path, body))

    def ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The ids of each text, special tokens included, each asked for in a request of its own.

        None if the protocol has no route for them, or the server does not offer it.
        """
        tokenize = APIS[self.api].tokenize
        if tokenize is None:
            return None
        found: list[list[int]] = []
        for text in texts:
            path, body, read = tokenize(text, self.model)
            try:
                answer = self.post(path, body)
            except NoRouteError:
                return None
            [row] = self._each([text], path, read, answer)
            if not all(float(number).is_integer() and number >= 0 for number in row):
                raise ServerError(f"{path} answered with {_short(row)} where ids are expected")
            found.append([int(number) for number in row])
        return found

    def _each(
        self, texts: Sequence[str], path: str, read: Callable[[Any], list[Any]], answer: Any
    ) -> list[list[float]]:
        try:
            found = read(answer)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ServerError(f"{path} answered in another form than {self.api} has: {_short(answer)}") from error
        if len(found) != len(texts):
            raise ServerError(f"{path} answered with {len(found)} results for {len(texts)} texts")
        try:
            return [as_numbers(row, f"result {index} of {path}") for index, row in enumerate(found)]
        except (ValueError, OverflowError) as error:
            raise ServerError(str(error)) from error

    def post(self, path: str, body: Any) -> Any:
        """The JSON that a route answers with.

        Raises:
            ServerError: No answer in time, another status than 200, too much, or not JSON.
        """
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        late = threading.Event()
        timer: threading.Timer | None = None
        try:
            connection.connect()
            timer = threading.Timer(self.timeout, _end, (connection.sock, late))
            timer.start()
            connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            content = _content(response, path)
        except TimeoutError as error:
            raise self._late(path) from error
        except (OSError, HTTPException) as error:
            if late.is_set():
                raise self._late(path) from error
            raise ServerError(f"{self.url}{path} cannot be asked: {error or type(error).__name__}") from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if late.is_set():
            raise self._late(path)
        if 300 <= response.status < 400:
            target = _short(response.getheader("Location", ""))
            raise ServerError(f"{path} redirects to {target}; redirects are not followed: name that address yourself")
        if response.status != 200:
            shown = _short(content.decode("utf-8", errors="replace"))
            kind_of_error = NoRouteError if response.status in NO_ROUTE else ServerError
            raise kind_of_error(f"{path} answered with status {response.status}: {shown}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{path} did not answer with JSON: {_short(content[:200])}") from error

    def _late(self, path: str) -> ServerError:
        return ServerError(f"{path} did not answer within {self.timeout:g} s (--timeout)")


def _end(connected: socket, late: threading.Event) -> None:
    """Ends a request that takes too long. A time-out of the socket does not: each byte that comes starts it again."""
    late.set()
    with suppress(OSError):  # the server was faster
        socket.shutdown(connected, SHUT_RDWR)  # not TLS's own: another thread is reading


def _content(response: HTTPResponse, path: str) -> bytes:
    content = bytearray()
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > LARGEST_RESPONSE:
            raise ServerError(f"{path} answered with more than {LARGEST_RESPONSE} bytes")
    return bytes(content)


# ---- protocols -------------------------------------------------------------------------------------------------------

Request = tuple[str, Any, Callable[[Any], list[Any]]]  # the route, the body, and what reads the answer


@dataclass(frozen=True)
class Api:
    """How a kind of server is asked."""

    embed: Callable[[list[str], str], Request]
    rerank: Callable[[str, list[str], str, bool], Request] | None = None
    tokenize: Callable[[str, str], Request] | None = None  # of one text


def _by_index(items: Any, name: str) -> list[Any]:
    found = {item["index"]: item[name] for item in items}
    if sorted(found) != list(range(len(items))):
        raise KeyError("index")
    return [found[index] for index in range(len(items))]


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise TypeError("not a list")
    return found


def _openai(texts: list[str], model: str) -> Request:
    body = {"model": model, "input": texts, "encoding_format": "float"}
    return "/v1/embeddings", body, lambda answer: _by_index(answer["data"], "embedding")


def _tei(texts: list[str], _model: str) -> Request:
    return "/embed", {"inputs": texts, "truncate": True}, _list


def _tei_rerank(query: str, passages: list[str], _model: str, raw: bool) -> Request:
    body = {"query": query, "texts": passages, "raw_scores": raw, "truncate": True}
    return "/rerank", body, lambda answer: [[score] for score in _by_index(answer, "score")]


def _tei_tokenize(text: str, _model: str) -> Request:
    body = {"inputs": text, "add_special_tokens": True}
    return "/tokenize", body, lambda answer: [[token["id"] for token in row] for row in _list(answer)]


def _llamacpp(texts: list[str], _model: str) -> Request:
    # Of one text the server gives a list with the one pooled vector.
    return "/embedding", {"content": texts}, lambda answer: [row[0] for row in _by_index(answer, "embedding")]


def _llamacpp_rerank(query: str, passages: list[str], model: str, _raw: bool) -> Request:
    body = {"model": model, "query": query, "documents": passages}
    return "/rerank", body, lambda answer: [[score] for score in _by_index(answer["results"], "relevance_score")]


def _llamacpp_tokenize(text: str, _model: str) -> Request:
    body = {"content": text, "add_special": True, "parse_special": True}
    return "/tokenize", body, lambda answer: [answer["tokens"]]


def _ollama(texts: list[str], model: str) -> Request:
    return "/api/embed", {"model": model, "input": texts, "truncate": True}, lambda answer: _list(answer["embeddings"])


APIS: dict[str, Api] = {
    "openai": Api(_openai),
    "tei": Api(_tei, _tei_rerank, _tei_tokenize),
    "llamacpp": Api(_llamacpp, _llamacpp_rerank, _llamacpp_tokenize),
    "ollama": Api(_ollama),
}


def _short(found: Any) -> str:
    shown = repr(found)
    return shown if len(shown) <= 100 else shown[:97] + "..."
