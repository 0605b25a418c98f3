"""Reads the answers on one connection: bytes in, and how far they are certain out.

llhttp parses; what it cannot parse is read as far as it matters. Pure: it knows
no socket and no clock. It reads nothing without end, and never takes the status
back once its line has come: what follows it cannot unmake a delivery.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from outboxd.delivery.coding import BODY_START_BYTES, PACKED_STARTS, SPACE_AND_MARKS, decoded
from outboxd.delivery.outcome import Answer
from outboxd.event.hop import GREETING, STATE

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
