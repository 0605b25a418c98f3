"""What a handler answers with. Plain data: nothing here writes to anybody."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

JSON = "application/json"


class Response:
    """A status and a body that is there as a whole.

    `close` ends the connection behind it; `linger` reads the rest of an
    unfinished body away for a moment first, so that whoever still sends it sees
    the answer.
    """

    __slots__ = ("body", "close", "content_type", "headers", "linger", "status")

    def __init__(
        self,
        body: bytes = b"",
        status: int = 200,
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        linger: bool = True,
    ) -> None:
        self.body = body
        self.close = close
        self.linger = linger
        self.status = status
        self.content_type = content_type
        self.headers = headers  # beside those that every answer has


class Streamed:
    """A body in parts, written as they come; each must be read in time.

    With a `length` the parts must add up to it. Without one they are sent
    chunked, and to HTTP/1.0 until the connection's end.
    """

    __slots__ = ("close", "content_type", "headers", "length", "parts", "status")

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        length: int | None = None,
        status: int = 200,
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        self.parts = parts
        self.length = length
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.close = close  # no further request is taken on this connection


Answer = Response | Streamed


class Refusal(Exception):
    """Raised by a handler or a guard: an answer of `status` with its three fields.

    `limit` names the limit that was met, for the metrics; "" where it is none.
    """

    def __init__(
        self,
        status: int,
        error: str,
        field: str | None = None,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        close: bool = False,
        linger: bool = True,
        limit: str = "",
    ) -> None:
        super().__init__(error)
        self.limit = limit
        self.status = status
        self.body = refusal_body(error, field, hint)
        self.headers = headers
        self.close = close
        self.linger = linger

    def response(self) -> Response:
        return Response(
            self.body, self.status, headers=self.headers, close=self.close, linger=self.linger
        )


class EndWithoutAnswer(Exception):
    """Raised by a handler: the connection ends without a word (`reset`: with a RST)."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("no answer is given")
        self.reset = reset


class ClientGone(ConnectionError):
    """Nobody is left to answer. A handler lets it pass."""


def reply(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """An answer whose body is JSON text."""
    return Response(body, status, headers=headers)


def refusal_body(error: str, field: str | None = None, hint: str | None = None) -> bytes:
    """The three fields that every refusal has."""
    return json.dumps({"error": error, "field": field, "hint": hint}).encode()
