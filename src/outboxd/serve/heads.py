"""The head of an answer: status line and headers as bytes.

Every answer carries what keeps a browser from taking it for something else
(`nosniff`, `Cross-Origin-Resource-Policy`), and its `Date`. Nothing that a
caller sent can begin a new line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from outboxd.clock import Clock

COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A status that has no body, and so no length either (RFC 9110, 8.6).
BODILESS = (204, 304)

_COMMON = "".join(f"{name}: {value}\r\n" for name, value in COMMON_HEADERS.items())


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
