"""What a handler answers with, and the head that goes before it.

Nothing here writes to anybody. Every answer carries what keeps a browser from
taking it for something else (`nosniff`, `Cross-Origin-Resource-Policy`), and its
`Date`. Nothing that a caller sent can begin a new line in a head.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from outboxd.clock import Clock

JSON = "application/json"


COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A status that has no body, and so no length either (RFC 9110, 8.6).
BODILESS = (204, 304)

_COMMON = "".join(f"{name}: {value}\r\n" for name, value in COMMON_HEADERS.items())


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


class HeadWriter:
    """Writes heads; the line of the date is made once a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._dated_s = -1
        self._date = b""

    def head(
        self,
        status: int,
        content_type: str,
        length: int | None,
        connection: str | None,
        *more: Mapping[str, str] | None,
    ) -> bytes:
        """Up to the empty line. `length` None: chunked, or to the end; the caller says by `more`.

        `connection` is the header's value, None for no such header.
        """
        lines = [_start(status, content_type)]
        if length is not None and status not in BODILESS:
            lines.append(b"Content-Length: %d\r\n" % length)
        if connection is not None:
            lines.append(b"Connection: %s\r\n" % connection.encode())
        is_dated = False
        for headers in more:
            if headers:
                for name, value in headers.items():
                    is_dated = is_dated or name == "Date"
                    if name not in COMMON_HEADERS:
                        lines.append(f"{name}: {_one_line(value)}\r\n".encode("latin-1", "replace"))
        if not is_dated:
            lines.append(self._date_line())
        lines.append(b"\r\n")
        return b"".join(lines)

    def _date_line(self) -> bytes:
        now_s = self._clock.wall_ms() // 1000
        if now_s != self._dated_s:
            self._dated_s = now_s
            self._date = f"Date: {formatdate(now_s, usegmt=True)}\r\n".encode()
        return self._date


@lru_cache(128)
def _start(status: int, content_type: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Status"
    typed = "" if status in BODILESS and not content_type else f"Content-Type: {content_type}\r\n"
    return f"HTTP/1.1 {status} {phrase}\r\n{typed}{_COMMON}".encode("latin-1", "replace")


def _one_line(value: str) -> str:
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)
