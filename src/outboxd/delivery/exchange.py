"""One connection, and the exchanges on it: a request at a time, parsed by llhttp.

It says what came back, as soon as that is certain, and nothing of what it means.
It never sends a request twice, never takes bytes that nobody asked for as an
answer, and reads no answer without end: bytes, interim answers and time each
have a limit here.
"""

from __future__ import annotations

import asyncio
import re
import socket
import zlib
from collections.abc import Callable
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from outboxd.delivery.faults import lost
from outboxd.delivery.outcome import BODY_START_BYTES, Answer, Fault

KEEPALIVE_S = 15.0  # below every server's own limit, so that seldom a stale one is used
# Once the status is known the rest is worth no longer wait. It is waited for at
# all because a captive portal answers 200 as well: only its page tells.
REST_S = 5.0
ANSWER_BYTES_MAX = 128 * 1024  # more than this is read no further
INTERIM_MAX = 32  # of 1xx answers before the final one
_DECODE_LAYERS_MAX = 4

# What is kept of an answer's headers.
_KEPT = {
    name.encode(): name
    for name in ("content-type", "content-encoding", "retry-after", "date", "location")
}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_GZIP, _ZLIB = b"\x1f\x8b", b"\x78"
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # as zlib's documentation has it: found by the header
_SPACE_AND_BOM = b"\xef\xbb\xbf \t\r\n\f\v"


class Connection(asyncio.Protocol):
    """A connection to the endpoint.

    Args:
        sock: the connected socket beneath it
        released: called when it is idle again and may take another request
        closed: called once, when it has ended
    """

    __slots__ = (
        "_body",
        "_busy",
        "_closed",
        "_complete",
        "_deadline_s",
        "_framed",
        "_gone",
        "_head",
        "_headers",
        "_interim",
        "_keep",
        "_loop",
        "_lost",
        "_parser",
        "_read_bytes",
        "_released",
        "_socket",
        "_status",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_unasked",
        "_unreadable",
        "_used",
        "_waiter",
        "generation",
    )

    def __init__(
        self,
        sock: socket.socket,
        released: Callable[[Connection], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self.generation = 0  # its pool's: one of an older generation is not used again
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._released = released
        self._closed = closed
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser: Any = HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = self._deadline_s = 0.0
        self._gone = self._used = self._busy = False
        self._lost: Exception | None = None  # what ended it
        # Of the answer that is being read:
        self._status = 0  # the final one, once its head is read
        self._headers: dict[str, str] = {}
        self._body = b""  # its start
        self._head = b""  # raw, kept only while the head comes in pieces or is unreadable
        self._read_bytes = self._interim = 0
        self._framed = self._keep = False  # whether a length is given; may go on afterwards
        self._complete = False  # whether it came to its end
        self._unasked = False  # something came behind it
        self._unreadable = False  # the parser has given up: the rest is taken raw

    # --- what the pool and the transport ask ---

    @property
    def open(self) -> bool:
        """Whether it has not ended yet."""
        return not self._gone

    def usable(self) -> bool:
        """Whether an idle one may take a request: it is open, and nothing lies on it unread.

        What lies there was sent before the request that would take it for its answer.
        """
        return not (self._gone or self._transport.is_closing()) and self._peeked() is None

    def exchange(self, request: bytes, deadline_s: float) -> asyncio.Future[Answer]:
        """Send a whole request; the future gets an Answer, at `deadline_s` (of the
        loop's clock) at the latest. Without status it may lack the fault's place."""
        assert not self._busy, "one request at a time"
        waiter = self._waiter = self._loop.create_future()
        fresh, self._used = not self._used, True
        if self._gone or self._transport.is_closing():
            self._resolve(self._without_answer(sent=False))
        elif fresh and not self._over_tls() and self._peeked():
            self._fail(Fault.GARBAGE, "it spoke before it was asked", sent=False)
        else:
            self._forget_answer()
            self._busy = True
            self._until(deadline_s)
            self._transport.write(request)
        return waiter

    def close(self) -> None:
        """End it in order; whatever is being read of an answer is read no further."""
        self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    # --- what the loop tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()  # nobody asked: it is no answer of anything
            return
        if self._unreadable:
            self._read_on(data)
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._not_parsed(data, error)
            return
        if self._complete:
            self._ended()
        else:
            self._read_on(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self._lost = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:
            self._busy = False
            # Without a length the end of the connection is the end of the body.
            whole = error is None and bool(self._status) and not (self._framed or self._unreadable)
            self._resolve(self._answer(whole) or self._without_answer(sent=True))
        self._closed(self)

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._unasked = True

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _KEPT:
            if not self._status:  # else a trailer
                self._headers.setdefault(_KEPT[name], value.decode("latin-1").strip())
        elif name in _FRAMING:
            self._framed = True

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status: int = self._parser.get_status_code()
        if status < 200 and status != 101:
            self._interim += 1
            if self._interim > INTERIM_MAX:
                raise _TooManyInterim
            self._headers = {}
            self._framed = False
            return
        self._keep = self._parser.should_keep_alive()
        self._status = status

    def on_body(self, data: bytes) -> None:
        if len(self._body) < BODY_START_BYTES and not self._complete:
            self._body += data[: BODY_START_BYTES - len(self._body)]

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True

    # --- reading an answer ---

    def _forget_answer(self) -> None:
        self._status = self._read_bytes = self._interim = 0
        self._headers = {}
        self._body = self._head = b""
        self._complete = self._unasked = self._framed = self._keep = self._unreadable = False

    def _ended(self) -> None:
        """The answer is whole."""
        self._busy = False
        # A success for a request that we still hold in part is none of this request.
        early = 200 <= self._status <= 299 and self._transport.get_write_buffer_size() > 0
        if early:
            self._fail(Fault.GARBAGE, "it answered before it had the request", sent=True)
            return
        self._resolve(self._answer(True))
        if self._keep and not self._unasked and not self._transport.get_write_buffer_size():
            self._until(self._loop.time() + KEEPALIVE_S)
            self._released(self)
        else:
            self._end()

    def _read_on(self, data: bytes) -> None:
        """More is to come; perhaps what there is says enough."""
        self._read_bytes += len(data)
        if self._unreadable or not self._status:
            self._head += data
        status = self._known_status()
        if self._read_bytes > ANSWER_BYTES_MAX:
            self._cut("the answer has no end")
        elif status:
            self._until(min(self._deadline_s, self._loop.time() + REST_S))
            if self._says_enough(status):
                # The connection goes on as soon as the rest is read, or ends.
                self._resolve(self._answer(False))
                if self._unreadable:
                    self._busy = False
                    self._end()

    def _not_parsed(self, data: bytes, error: Exception) -> None:
        """What came is no HTTP, or not as it should be. A status line that could be
        read counts all the same; of the rest only the start of the body matters."""
        if self._complete:  # it is what follows the answer that cannot be read
            self._unasked = True
            self._ended()
        elif self._status:
            self._cut("")
        elif isinstance(error.__context__, _TooManyInterim):
            self._busy = False
            self._fail(Fault.GARBAGE, f"more than {INTERIM_MAX} interim answers", sent=True)
        elif _status_line(self._head + data, self._parser.get_status_code()):
            self._unreadable = True
            self._read_on(data)
        else:
            self._busy = False
            self._fail(Fault.GARBAGE, str(error), sent=True)

    def _known_status(self) -> int:
        """The final status as far as it is certain, else 0."""
        return self._status or _status_line(self._head, self._parser.get_status_code())

    def _says_enough(self, status: int) -> bool:
        """Whether nothing that may follow can change what the answer means."""
        body = self._body_start()
        if len(body) >= BODY_START_BYTES:
            return True
        if not 200 <= status <= 299 or "content-encoding" in self._headers:
            return False  # the text of an error is worth its wait
        begins = body.lstrip(_SPACE_AND_BOM)[:1]
        return begins not in (b"", b"<", _GZIP[:1], b"\xff", b"\xfe")

    def _body_start(self) -> bytes:
        if self._status:
            return self._body
        start = re.search(rb"\r?\n\r?\n", self._head[self._final_head_at() :])
        if start is None:
            return b""
        at = self._final_head_at() + start.end()
        return self._head[at : at + BODY_START_BYTES]

    def _final_head_at(self) -> int:
        found = _line_pattern(self._parser.get_status_code()).search(self._head)
        return found.start() if found else 0

    def _cut(self, why: str) -> None:
        """Read no further: what is known has to do."""
        self._busy = False
        answer = self._answer(False)
        if answer is None:
            self._fail(Fault.GARBAGE, why, sent=True)
        else:
            self._resolve(answer)
            self.abort()

    # --- how it ends ---

    def _answer(self, complete: bool) -> Answer | None:
        status = self._known_status()
        if not status:
            return None
        body, readable = decoded(self._body_start(), self._headers.get("content-encoding", ""))
        return Answer(status, self._headers, body, complete=complete and readable)

    def _without_answer(self, sent: bool) -> Answer:
        fault, text, sent = lost(self._lost, sent)
        return Answer(fault=fault, fault_text=text, sent=sent)

    def _fail(self, fault: Fault, text: str, sent: bool) -> None:
        self._resolve(Answer(fault=fault, fault_text=text, sent=sent))
        self.abort()

    def _resolve(self, answer: Answer | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(cast(Answer, answer))

    def _end(self) -> None:
        # In order only where that cannot take long.
        if self._transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def _until(self, deadline_s: float) -> None:
        """One timer for every wait. It is moved only forward: a later deadline
        waits for it to fire, so that an exchange seldom touches it."""
        self._deadline_s = deadline_s
        if self._timer is not None:
            if self._timer_at_s <= deadline_s:
                return
            self._timer.cancel()
        self._timer_at_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline_s:
            self._until(self._deadline_s)
        elif not self._busy:
            self.close()
        elif self._known_status():
            self._cut("")
        else:
            self._busy = False
            self._fail(Fault.TIMEOUT, "", sent=True)

    def _over_tls(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    def _peeked(self) -> bytes | None:
        """What lies on the socket unread: None for nothing, b"" for its end."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""


class _TooManyInterim(Exception):
    """More interim answers than anyone has a use for."""


def _line_pattern(status: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?m:^)HTTP/\d\.\d %d(?: [^\r\n]*)?\r?\n" % status)


def _status_line(head: bytes, status: int) -> int:
    """The final status if its line came to its end, else 0.

    The parser knows the number before that, and an interim one is not final.
    """
    final = status >= 200 or status == 101
    return status if final and _line_pattern(status).search(head) else 0


def decoded(body: bytes, coding: str) -> tuple[bytes, bool]:
    """The start of a body, read through a content coding that nobody asked for, and
    whether it could be read."""
    for _ in range(_DECODE_LAYERS_MAX):
        if coding in ("", "identity") and not body.startswith(_GZIP):
            return body, True
        raw = coding == "deflate" and body[:1] != _ZLIB
        coding = ""
        try:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS if raw else _GZIP_OR_ZLIB)
            body = unpacker.decompress(body, BODY_START_BYTES)
        except zlib.error:
            break
    return b"", False
