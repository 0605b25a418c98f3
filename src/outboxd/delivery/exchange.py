"""One connection to the endpoint: the exchanges on it, a request at a time.

It says what came back as soon as that is certain, and nothing of what it means.
It never sends a request twice, never takes bytes that nobody asked for as an
answer, and waits for nothing without end. What is read of an answer
(`AnswerReader`) is decided without socket or clock: llhttp parses, what it cannot
parse is read as far as it matters, and a status is never taken back once its line
has come, since what follows it cannot unmake a delivery.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from outboxd.delivery.faults import lost
from outboxd.delivery.outcome import (
    BODY_START_BYTES,
    PACKED_STARTS,
    SPACE_AND_MARKS,
    Answer,
    Fault,
    decoded,
)
from outboxd.event.hop import GREETING, STATE

KEEPALIVE_S = 15.0  # below every server's own limit, so that seldom a stale one is used
# Once the status is known the rest is worth no longer wait. It is waited for at
# all because a captive portal answers 200 as well: only its page tells.
REST_S = 5.0
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
ANSWER_BYTES_MAX = 128 * 1024  # more than this is read no further
BEFORE_STATUS_BYTES_MAX = 32 * 1024
INTERIM_MAX = 32  # of 1xx answers before the final one

# What is kept of an answer's headers.
_KEPT = {
    name.encode(): name
    for name in (
        *("content-type", "content-encoding", "retry-after", "date", "location"),
        GREETING.lower(),  # by which a gateway says that it is one
        STATE.lower(),  # its answer to what became of an event
    )
}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_STATUS_LINE = rb"(?m:^)HTTP/\d\.\d %d(?: [^\r\n]*)?\r?\n"
_EMPTY_LINE = re.compile(rb"\n\r?\n")
# What a body may begin with that turns out to be a page; "" for none so far.
_MAY_BE_MARKUP = (b"", b"<", *PACKED_STARTS)


class EndpointConnection(asyncio.Protocol):
    """A connection to the endpoint.

    Args:
        sock: the connected socket beneath it
        released: called when it is idle again and may take another request
        closed: called once, when it has ended
    """

    __slots__ = (
        "_busy",
        "_closed",
        "_deadline_s",
        "_gone",
        "_loop",
        "_lost",
        "_reader",
        "_released",
        "_socket",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_used",
        "_waiter",
        "generation",
    )

    def __init__(
        self,
        sock: socket.socket,
        released: Callable[[EndpointConnection], None],
        closed: Callable[[EndpointConnection], None],
    ) -> None:
        self.generation = 0  # its pool's: one of an older generation is not used again
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._released = released
        self._closed = closed
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader = AnswerReader()
        self._waiter: asyncio.Future[Answer] | None = None
        self._busy = False  # an answer is to come, or is not yet read to its end
        self._used = False
        self._gone = False
        self._lost: Exception | None = None  # what ended it
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = self._deadline_s = 0.0

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
        loop's clock) at the latest."""
        assert not self._busy, "one request at a time"
        waiter = self._waiter = self._loop.create_future()
        fresh, self._used = not self._used, True
        if self._gone or self._transport.is_closing():
            fault, text, _ = lost(self._lost, False)
            self._resolve(Answer(fault=fault, fault_text=text, sent=False))
        elif fresh and not self._over_tls() and self._peeked():
            text = "it spoke before it was asked"
            self._resolve(Answer(fault=Fault.GARBAGE, fault_text=text, sent=False))
            self.abort()
        else:
            self._busy = True
            self._reader.begin()
            self._until(deadline_s)
            self._transport.write(request)
        return waiter

    def close(self) -> None:
        """End it in order, or at once where that could take long."""
        if self._transport.get_write_buffer_size():
            self.abort()
        else:
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
        reader = self._reader
        reading = reader.feed(data)
        if reading is Reading.WHOLE:
            self._ended()
        elif reading is Reading.BROKEN:
            self._cut(Fault.GARBAGE, reader.problem)
        else:
            if reader.status:
                self._until(min(self._deadline_s, self._loop.time() + REST_S))
            if reading is Reading.ENOUGH and self._waiter is not None:
                # The connection is used again once the rest has been read.
                self._resolve(self._known(False))

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self._lost = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:
            self._busy = False
            whole = error is None and self._reader.ends_with_connection
            self._resolve(self._known(whole, *lost(error, True)))
        self._closed(self)

    # --- how an exchange ends ---

    def _ended(self) -> None:
        """The answer is whole."""
        self._busy = False
        self._resolve(self._known(True))
        if self._reader.reusable and not self._transport.get_write_buffer_size():
            self._until(self._loop.time() + KEEPALIVE_S)
            self._released(self)
        else:
            self.close()

    def _cut(self, fault: Fault, text: str) -> None:
        """Read no further: what is known has to do."""
        self._busy = False
        self._resolve(self._known(False, fault, text))
        self.abort()

    def _known(
        self, complete: bool, fault: Fault = Fault.LOST, text: str = "", sent: bool = True
    ) -> Answer:
        """The answer as far as it was read, or else why there is none."""
        status = self._reader.status
        if 200 <= status <= 299 and not self._gone and self._transport.get_write_buffer_size():
            # What we still hold in part cannot have been taken.
            fault, text, status = Fault.GARBAGE, "it answered before it had the request", 0
        if status:
            return self._reader.answer(complete)
        return Answer(fault=fault, fault_text=text, sent=sent)

    def _resolve(self, answer: Answer) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    # --- time, and what lies beneath ---

    def _until(self, deadline_s: float) -> None:
        """One timer for every wait. A later deadline waits for it to fire, so that an
        exchange seldom touches it."""
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
        elif self._busy:
            self._cut(Fault.TIMEOUT, "")
        else:
            self.close()

    def _over_tls(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    def _peeked(self) -> bytes | None:
        """What lies on the socket unread: None for nothing, b"" for its end."""
        try:
            return self._socket.recv(1, _PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""


class Reading(Enum):
    """How far an answer is read."""

    MORE = "more"  # what comes next may matter
    ENOUGH = "enough"  # it does not, but the connection is used again only behind it
    WHOLE = "whole"  # the answer came to its end
    BROKEN = "broken"  # it is read no further: not HTTP, or without end


class AnswerReader:
    """The answers on a connection, one after the other; `begin` comes before each."""

    __slots__ = (
        "_body",
        "_complete",
        "_framed",
        "_head",
        "_headers",
        "_interim",
        "_keep",
        "_line",
        "_parser",
        "_read_bytes",
        "_status",
        "_unasked",
        "_unreadable",
        "problem",
    )

    def __init__(self) -> None:
        self._parser: Any = HttpResponseParser(self)
        self._head = bytearray()  # raw, where it comes in pieces or cannot be parsed
        self.begin()

    def begin(self) -> None:
        """An answer is to come."""
        self.problem = ""  # why it is broken, for the operator
        self._status = 0  # the final one, once its head is parsed
        self._headers: dict[str, str] = {}
        self._body = b""  # its start
        self._head.clear()
        self._line: re.Match[bytes] | None = None  # the final status line in it
        self._read_bytes = self._interim = 0
        self._framed = self._keep = False  # a length is given; the connection may be kept
        self._complete = False
        self._unasked = False  # something came behind it
        self._unreadable = False  # the parser has given up: the rest is taken raw

    def feed(self, data: bytes) -> Reading:
        """The next bytes, as they come."""
        if not self._unreadable:
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade) as error:
                if not self._complete:
                    return self._not_parsed(data, error)
                self._unasked = True  # it is what follows the answer
        if self._complete:
            return Reading.WHOLE
        return self._read_on(data)

    @property
    def status(self) -> int:
        """The final status as far as it is certain, else 0.

        Its line must have come to its end: the parser has the number before that.
        """
        if self._status:
            return self._status
        status: int = self._parser.get_status_code()
        if status < 200 and status != 101:
            return 0
        if self._line is None and self._head:
            self._line = re.search(_STATUS_LINE % status, self._head)
        return status if self._line else 0

    @property
    def reusable(self) -> bool:
        """Whether the connection may take another request behind a whole answer."""
        return self._keep and not self._unasked

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the answer: no length was given."""
        return self._status > 0 and not (self._framed or self._unreadable)

    def answer(self, complete: bool) -> Answer:
        """What was read of it; there must be a status."""
        body, readable = decoded(self._body_start(), self._headers.get("content-encoding", ""))
        return Answer(self.status, self._headers, body, complete=complete, readable=readable)

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

    # --- what there is so far ---

    def _read_on(self, data: bytes) -> Reading:
        self._read_bytes += len(data)
        if self._unreadable or not self._status:
            self._head += data
        status = self.status
        if self._read_bytes > (ANSWER_BYTES_MAX if status else BEFORE_STATUS_BYTES_MAX):
            return self._broken("it has no end")
        if not status or not self._says_enough(status):
            return Reading.MORE
        return Reading.BROKEN if self._unreadable else Reading.ENOUGH

    def _not_parsed(self, data: bytes, error: Exception) -> Reading:
        """What came is no HTTP, or not as it should be. A status line that could be
        read counts all the same; of the rest only the start of the body matters."""
        if isinstance(error.__context__, _TooManyInterim):
            return self._broken(f"more than {INTERIM_MAX} interim answers")
        if self._status:
            return self._broken(str(error))
        self._unreadable = True
        reading = self._read_on(data)
        return reading if self.status else self._broken(str(error))

    def _broken(self, problem: str) -> Reading:
        self.problem = problem
        return Reading.BROKEN

    def _says_enough(self, status: int) -> bool:
        """Whether nothing that may follow can change what the answer means."""
        body = self._body_start()
        if len(body) >= BODY_START_BYTES:
            return True
        if not 200 <= status <= 299 or "content-encoding" in self._headers:
            return False  # the text of an error is worth its wait
        return body.lstrip(SPACE_AND_MARKS)[:1] not in _MAY_BE_MARKUP

    def _body_start(self) -> bytes:
        if self._status or self._line is None:
            return self._body
        gap = _EMPTY_LINE.search(self._head, self._line.end() - 1)
        return bytes(self._head[gap.end() : gap.end() + BODY_START_BYTES]) if gap else b""


class _TooManyInterim(Exception):
    """More interim answers than anyone has a use for."""
