"""One connection, and the exchanges on it: a request at a time.

It says what came back as soon as that is certain, and nothing of what it means.
It never sends a request twice, never takes bytes that nobody asked for as an
answer, and waits for nothing without end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from outboxd.delivery.faults import lost
from outboxd.delivery.outcome import Answer, Fault
from outboxd.delivery.reading import AnswerReader, Reading

KEEPALIVE_S = 15.0  # below every server's own limit, so that seldom a stale one is used
# Once the status is known the rest is worth no longer wait. It is waited for at
# all because a captive portal answers 200 as well: only its page tells.
REST_S = 5.0
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


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
