"""Bytes in, requests out: the rules of HTTP/1.1, without a socket or a clock.

llhttp (the parser of Node and uvicorn) reads; this adds what it leaves to its
user: how large a head may be, and what may not be ambiguous (a request that two
servers read differently is how one is smuggled past the other). Whatever is
fed, in pieces of whatever size, either becomes requests or ends in one Refusal.
It must never let a peer choose how much memory a head takes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from outboxd.serve.answers import Refusal

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
# What is fed is parsed, so a piece that may hold several requests is a small one.
PIECE_BYTES = 64 * 1024
SMALL_PIECE_BYTES = 2 * 1024


class Head(NamedTuple):
    """What stands before the body."""

    method: str
    target: str
    version: str  # "1.0" or "1.1"
    headers: dict[str, list[str]]  # names in small letters
    length: int | None  # of the body as declared; None: chunked
    keep_alive: bool


class Sink(Protocol):
    """Whom the reader tells, in the order of the bytes."""

    def request_began(self, head: Head) -> None: ...

    def body_came(self, data: bytes) -> None: ...

    def request_ended(self) -> None: ...


class RequestReader:
    """Feed it what arrives; it calls the sink."""

    __slots__ = ("_headers", "_overhead", "_parser", "_plain_left", "_sink", "_target", "_too_many",
                 "is_in_body", "is_in_head", "is_last", "refusal")  # fmt: skip

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parser = HttpRequestParser(self)
        self._headers: dict[str, list[str]] = {}
        self._target = b""
        self._too_many = 0  # headers
        self._overhead = 0  # bytes since the last that a body or a next step was made of
        self._plain_left: int | None = None  # of a body behind a request for an upgrade
        self.is_in_head = False  # a request has begun whose head is not complete
        self.is_in_body = False
        self.is_last = False  # no request may follow the one that was read last
        self.refusal: Refusal | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """At most PIECE_BYTES. After a Refusal, or behind the last request, nothing is read."""
        if self.refusal is not None or (self.is_last and not self.is_in_body):
            return
        if self._plain_left is not None:
            self._read_plain(bytes(data))
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._read_plain(bytes(data[upgrade.args[0] :]))
        except HttpParserError as error:
            if self.refusal is None and not (self.is_last and not self.is_in_body):
                self.refusal = self._malformed(error)
        if self.refusal is None and self._overhead > HEAD_BYTES_MAX:
            self.refusal = _head_too_large(f"more than {HEAD_BYTES_MAX} bytes")

    # --- called by llhttp ---

    def on_message_begin(self) -> None:
        self.is_in_head = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_in_body:
            return  # a trailer: nothing here needs one
        self._too_many += 1
        key = name.decode("latin-1").lower()
        # What surrounds a value is no part of it (RFC 9110, 5.5); llhttp leaves what is behind.
        text = value.decode("utf-8", "surrogateescape").strip(" \t")
        values = self._headers.get(key)
        if values is None:
            self._headers[key] = [text]
        elif len(values) < HEADERS_MAX:
            values.append(text)

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        self.is_in_head = False
        upgrade = parser.should_upgrade()
        head = Head(
            parser.get_method().decode(),
            self._target.decode("utf-8", "surrogateescape"),
            parser.get_http_version(),
            headers,
            _length(headers),
            parser.should_keep_alive() and not upgrade,
        )
        self._target, self._headers = b"", {}
        if self._too_many > HEADERS_MAX or self._overhead > HEAD_BYTES_MAX + PIECE_BYTES:
            self.refusal = _head_too_large(f"{self._too_many} headers")
            return
        self._too_many = 0
        self.refusal = _ambiguity(head)
        if self.refusal is not None:
            return
        self._overhead = 0
        self.is_in_body = True
        self.is_last = not head.keep_alive
        if upgrade:
            # Nothing else is spoken here: it is answered as if it had not asked.
            self._plain_left = head.length or 0
        self._sink.request_began(head)

    def on_body(self, data: bytes) -> None:
        if self.refusal is None:
            self._overhead = 0
            self._sink.body_came(data)

    def on_chunk_header(self) -> None:
        self._overhead = 0

    def on_message_complete(self) -> None:
        if self.refusal is None and self._plain_left is None:
            self._end()

    # --- helpers ---

    def _end(self) -> None:
        self._overhead = 0
        self.is_in_body = False
        self._sink.request_ended()

    def _read_plain(self, data: bytes) -> None:
        """The body of a request for an upgrade, which llhttp takes for another protocol."""
        if self.refusal is not None or not self.is_in_body:
            return
        left = self._plain_left or 0
        if data and left:
            self._sink.body_came(data[:left])
        self._plain_left = max(0, left - len(data))
        if not self._plain_left:
            self._end()

    def _malformed(self, error: HttpParserError) -> Refusal:
        what = " ".join(str(error).split())[:200]
        return Refusal(
            400,
            f"this is no HTTP request: {what}",
            None,
            "speak HTTP/1.1 here, with one length for each body",
            close=True,
        )


def _length(headers: dict[str, list[str]]) -> int | None:
    if "transfer-encoding" in headers:
        return None
    values = headers.get("content-length")
    # llhttp has checked that it is a number, and that it stands there once.
    return int(values[0]) if values else 0


def _ambiguity(head: Head) -> Refusal | None:
    """What another server may read differently: refused, and nothing behind it is read."""
    headers = head.headers
    if head.version not in ("1.0", "1.1"):
        what = f"HTTP/{head.version} is not spoken here"
        return Refusal(505, what, None, "speak HTTP/1.1", close=True)
    if len(headers.get("host", ())) > 1:
        return Refusal(400, "there are several Host headers", "Host", "send one", close=True)
    codings = headers.get("transfer-encoding")
    if codings is None:
        return None
    if "content-length" in headers:
        return Refusal(
            400,
            "the body has a Content-Length and a Transfer-Encoding",
            "Content-Length",
            "send one of them",
            close=True,
        )
    if head.version == "1.0" or len(codings) > 1 or codings[0].strip().lower() != "chunked":
        return Refusal(
            400 if head.version == "1.0" else 501,
            f"Transfer-Encoding {', '.join(codings)[:80]!r} is not understood here",
            "Transfer-Encoding",
            "send the body with a Content-Length, or plainly chunked in HTTP/1.1",
            close=True,
        )
    return None


def _head_too_large(what: str) -> Refusal:
    return Refusal(
        431,
        f"the request's head is too large: {what}",
        None,
        f"at most {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes",
        close=True,
    )
