"""A request, as a handler sees it: method, path, query, headers, peer, and its body.

Plain data and one body that is still on its way; a handler never sees the
connection. What a caller says about itself is never believed: who it is comes
from the kernel (`peer`) or from a guard (`identity`).

The connection fills the `Body` and decides how long it may take; a handler reads
it by the functions here, whole or in parts. More than `AHEAD_BYTES` that nobody
reads are not taken from the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from outboxd.serve.answers import Refusal

if TYPE_CHECKING:
    from outboxd.serve.peer import Peer
    from outboxd.serve.reader import Head

AHEAD_BYTES = 64 * 1024

EVENT_HINT = "send a smaller event, or raise [intake] event_bytes_max"


class Request:
    """One request. `is_gone` turns true when nobody waits for its answer any more."""

    __slots__ = (
        "_query",
        "answer_headers",
        "body",
        "certificate",
        "head",
        "holder",
        "identity",
        "is_gone",
        "peer",
    )

    def __init__(
        self,
        head: Head,
        body: Body,
        peer: Peer | None,
        certificate: Mapping[str, object] | None = None,
        holder: Hashable = None,
    ) -> None:
        self.head = head
        self.body = body
        self.peer = peer  # the process at the other end of a Unix socket; None on TCP
        self.holder = holder  # who answers for what it uses: a uid, or an address on TCP
        self.certificate = certificate  # the TLS client's, verified; as `ssl` gives it
        self.identity: Any = None  # whom a guard found it to be from, in the guard's words
        self.answer_headers: Mapping[str, str] | None = None  # set by a guard, for any answer
        self.is_gone = False
        self._query: list[tuple[str, str]] | None = None

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def path(self) -> str:
        """The path as it was sent, without the query; "*" for the whole server."""
        return _origin_form(self.head.target)[1].partition("?")[0]

    @property
    def host(self) -> str:
        """The host that was asked for: of the target if it names one, else the Host header."""
        return _origin_form(self.head.target)[0] or self.header("host") or ""

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's names and values in their order; what is not UTF-8 is kept as surrogates."""
        if self._query is None:
            text = _origin_form(self.head.target)[1].partition("?")[2].partition("#")[0]
            self._query = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
        return self._query

    def header(self, name: str) -> str | None:
        """The header of this name (in small letters); the first of several."""
        values = self.head.headers.get(name)
        return None if values is None else values[0]

    def header_values(self, name: str) -> list[str]:
        """All of them."""
        return self.head.headers.get(name, [])


def _origin_form(target: str) -> tuple[str, str]:
    """(host, path with query) of a target; the host is "" where the target has none.

    A proxy's clients send `http://host/path` (RFC 9112, 3.2.2), and then the
    target's host goes before the Host header.
    """
    if target.startswith("/") or "://" not in target:
        return "", target
    host, slash, rest = target.partition("://")[2].partition("/")
    return host.rpartition("@")[2], slash + rest or "/"


class BodySource(Protocol):
    """The connection that a body comes by."""

    def body_wanted(self) -> None:
        """The handler waits for (more of) the body: go on reading, answer `Expect`."""
        ...

    def body_consumed(self, body: Body, count: int) -> None:
        """So many bytes of it are no longer held."""
        ...


class Body:
    """The bytes that came and are not read yet, and the end or the fault behind them."""

    __slots__ = (
        "_data",
        "_fault",
        "_parts",
        "_source",
        "_waiter",
        "held_bytes",
        "is_complete",
        "length",
        "unread_bytes",
    )

    def __init__(self, source: BodySource, length: int | None) -> None:
        self._source = source
        self._data = b""  # a body in one piece, which is nearly every one
        self._parts: list[bytes] | None = None
        self._fault: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.length = length  # as declared; None: chunked
        self.is_complete = False
        self.unread_bytes = 0
        self.held_bytes = 0  # counted by the connection

    # --- for the connection ---

    @property
    def is_awaited(self) -> bool:
        """Whether a handler waits for the peer."""
        return self._waiter is not None

    def add(self, data: bytes) -> None:
        self.unread_bytes += len(data)
        if self._parts is not None:
            self._parts.append(data)
        elif self._data:
            self._parts = [self._data, data]
        else:
            self._data = data
        self._wake()

    def end(self) -> None:
        """All of it came; of one that has failed a piece is missing, and it stays so."""
        self.is_complete = self._fault is None
        self._wake()

    @property
    def has_failed(self) -> bool:
        return self._fault is not None

    def fail(self, fault: BaseException) -> None:
        """There is no more: whoever waits for it is told."""
        if not self.is_complete and self._fault is None:
            self._fault = fault
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # --- for handlers, through the functions below ---

    def take(self) -> bytes:
        """What is there now."""
        self.unread_bytes = 0
        if self._parts is None:
            data, self._data = self._data, b""
            return data
        data, self._parts, self._data = b"".join(self._parts), None, b""
        return data

    async def more(self) -> bytes:
        """The next bytes; b"" at the end. Raises the fault that ended it."""
        while True:
            data = self.take()
            if data or self.is_complete:
                return data
            if self._fault is not None:
                raise self._fault
            self._waiter = asyncio.get_running_loop().create_future()
            self._source.body_wanted()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def consumed(self, count: int) -> None:
        """So many bytes that were read are no longer in memory."""
        self._source.body_consumed(self, count)


async def read_body(request: Request, bytes_max: int, hint: str = EVENT_HINT) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413, 408 or 503, without reading the rest.
        ClientGone: it ended in the middle.
    """
    body = request.body
    if body.is_complete:
        # The usual case: it all came with the head.
        data = body.take()
        if len(data) > bytes_max:
            raise too_large(bytes_max, hint)
        return data
    _check_declared(request, bytes_max, hint)
    parts: list[bytes] = []
    size = 0
    while part := await body.more():
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max, hint)
    return b"".join(parts)


async def body_parts(
    request: Request, declared_max: int, hint: str = EVENT_HINT
) -> AsyncIterator[bytes]:
    """The body as it comes; the caller says when a part is no longer held
    (`request.body.consumed`).

    A length declared over `declared_max` is refused unread (413); the caller
    counts where no length was declared.
    """
    _check_declared(request, declared_max, hint)
    while part := await request.body.more():
        yield part


def too_large(bytes_max: int, hint: str = EVENT_HINT) -> Refusal:
    return Refusal(413, f"the body is larger than {bytes_max} bytes", None, hint, close=True)


def stalled(stall_s: float) -> Refusal:
    return Refusal(
        408,
        f"the body did not arrive within {stall_s:g} seconds",
        None,
        "send it again, whole; nothing of an unfinished event was kept",
        close=True,
        linger=False,
    )


def _check_declared(request: Request, bytes_max: int, hint: str) -> None:
    length = request.body.length
    if length is not None and length > bytes_max:
        raise too_large(bytes_max, hint)
    expect = request.header("expect")
    if expect is not None and expect.strip().lower() != "100-continue":
        raise Refusal(417, f"cannot meet Expect: {expect[:80]}", None, "leave the header out")
