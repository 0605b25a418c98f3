"""One connection: the order of requests and answers, and how long each may take.

What a server of strangers needs, each rule in one place:
- requests that are pipelined wait in line, a bounded number of them, and the
  rest stays in the kernel (`_feed`, `_read_on`);
- a head, a body or the reading of an answer that stalls or drips is ended
  (`check`); so is an idle connection, after longer;
- an answer that nobody reads holds back the requests behind it (`_drained`);
- a peer that closes its sending side still gets its answers (`eof_received`),
  and nobody's reading goes on for a peer that left (`_leave`);
- what is refused before it was sent whole is read away for a moment, so that
  the refusal arrives (`_finish`);
- bytes held for a peer come out of its budget (`_hold`).
Handlers know nothing of it. Whatever happens, the bytes of an answer are either
sent in order or the connection ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, cast

from outboxd.budgets import Patience
from outboxd.serve import peer as peers
from outboxd.serve.answers import (
    BODILESS,
    ClientGone,
    EndWithoutAnswer,
    Refusal,
    Response,
    Streamed,
)
from outboxd.serve.reader import PIECE_BYTES, SMALL_PIECE_BYTES, Head, RequestReader
from outboxd.serve.request import AHEAD_BYTES, Body, Request, stalled

if TYPE_CHECKING:
    from outboxd.serve.server import HttpServer

STALL_S = 10.0  # without a byte, while a request or an answer is on its way
# Waiting is paid for by what arrives: a long body has more time, a drip has not.
DRIP_BYTES_PER_S = 16 * 1024
DRAGGING_S = 1.0  # of standing still, after which it may be ended where there is no room
KEEPALIVE_S = 75.0  # an idle connection
LINGER_S = 0.5  # how long a refused body is read and thrown away
LINGER_BYTES = 256 * 1024 * 1024
PIPELINE_MAX = 16  # requests that wait for the one before them
FREE_BYTES = 16 * 1024  # held for a connection without asking its budget


class PeerConnection(asyncio.Protocol):
    """Made for each connection by its server; ends with `connection_lost`."""

    __slots__ = (
        "_blocked_bytes",
        "_blocked_since_s",
        "_certificate",
        "_current",
        "_drain",
        "_ends_at_s",
        "_half_closed",
        "_head_since_s",
        "_held_bytes",
        "_idle_since_s",
        "_is_tls",
        "_lingered_bytes",
        "_loop",
        "_lost",
        "_open_ended",
        "_patience",
        "_paused",
        "_reader",
        "_receiving",
        "_server",
        "_task",
        "_transport",
        "_unfed",
        "_wait_began_s",
        "_waiting",
        "has_stayed",
        "holder",
        "is_stranger",
        "peer",
    )  # fmt: skip

    def __init__(
        self, server: HttpServer, peer: peers.Peer | None = None, holder: Hashable = None
    ) -> None:
        self._server = server
        self.peer = peer
        self.holder = holder  # who answers for what it uses
        self.has_stayed = False  # for the answer to a whole request
        # Nothing that came by it has told whom it is from, where that is asked for.
        self.is_stranger = server.has_strangers
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(self)
        self._waiting: deque[Request | Refusal] = deque()  # to be answered, in this order
        self._receiving: Request | None = None  # the one whose body is not complete
        self._current: Request | None = None  # the one that is being answered
        self._task: asyncio.Task[None] | None = None  # answers, while there is something to
        self._unfed = b""  # read from the socket, and not parsed yet
        self._paused = False
        self._half_closed = False  # the peer sends no more
        self._lost = False
        self._is_tls = False
        self._open_ended = False  # the answer that is being sent has no end of its own
        self._ends_at_s: float | None = None  # lingering until then
        self._lingered_bytes = 0
        self._idle_since_s = self._loop.time()
        self._head_since_s: float | None = None
        self._wait_began_s = 0.0  # for the body, while it is awaited
        self._patience = Patience(server.stall_s, DRIP_BYTES_PER_S)
        self._blocked_since_s: float | None = None  # the peer does not read
        self._blocked_bytes = 0
        self._drain: asyncio.Future[None] | None = None
        self._held_bytes = 0
        self._certificate: Mapping[str, object] | None = None

    # --- the transport tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # `pause_writing` then means: the kernel would not take all of it.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self._certificate = transport.get_extra_info("peercert")
        self._idle_since_s = self._loop.time()
        if self._lost:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._lost:
            return
        if self._ends_at_s is not None:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        self._feed(self._unfed + data if self._unfed else data)

    def eof_received(self) -> bool:
        # Closing now would lose the receipt of a producer that shuts down its
        # sending side after the request (nc -N, socat).
        self._half_closed = True
        if self._receiving is not None:
            self._receiving.body.fail(ClientGone("the peer closed in the middle of a body"))
        if self._task is None or self._is_tls:  # TLS has no half-closed connections here
            return False
        if self._open_ended or peers.has_hung_up(self._transport):
            self._leave()
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._server.forget(self)
        self._release(self._held_bytes)
        gone = ClientGone("the connection ended")
        if self._receiving is not None:
            self._receiving.body.fail(gone)
        for request in (self._current, *self._waiting):
            if isinstance(request, Request):
                request.is_gone = True
        self._waiting.clear()
        self._unfed = b""
        self._wake_drain()
        if self._current is not None and self._task is not None and self._server.only_reads(self):
            self._task.cancel()

    def pause_writing(self) -> None:
        if self._blocked_since_s is None:
            self._blocked_since_s = self._loop.time()
            self._blocked_bytes = self._transport.get_write_buffer_size()
            self._patience = Patience(self._server.stall_s, DRIP_BYTES_PER_S)

    def resume_writing(self) -> None:
        self._blocked_since_s = None
        self._wake_drain()

    # --- the reader tells ---

    def request_began(self, head: Head) -> None:
        body = Body(self, head.length)
        request = Request(head, body, self.peer, self._certificate, self.holder)
        self._receiving = request
        self._waiting.append(request)

    def body_came(self, data: bytes) -> None:
        assert self._receiving is not None, "a body belongs to a request"
        body = self._receiving.body
        if body.has_failed:
            return  # a piece of it is missing
        if not self._hold(len(data)):
            self._server.limited("bytes")
            body.fail(self._server.too_busy())
            return
        body.held_bytes += len(data)
        if body.is_awaited:
            now_s = self._loop.time()
            in_time = self._patience.moved(now_s - self._wait_began_s, len(data))
            self._wait_began_s = now_s
            if not in_time:
                self._body_stalled(body)
        body.add(data)

    def request_ended(self) -> None:
        assert self._receiving is not None, "an end belongs to a request"
        self._receiving.body.end()
        self._receiving = None

    # --- reading ---

    def _feed(self, data: bytes) -> None:
        """Parse, but no further than there is room for requests."""
        self._unfed = b""
        reader, waiting = self._reader, self._waiting
        if len(data) <= SMALL_PIECE_BYTES and len(waiting) < PIPELINE_MAX:
            reader.feed(data)
        else:
            view = memoryview(data)
            at = 0
            while at < len(data) and len(waiting) < PIPELINE_MAX and reader.refusal is None:
                # Few requests fit into a small piece; a body may come in large ones.
                end = at + (PIECE_BYTES if reader.is_in_body else SMALL_PIECE_BYTES)
                reader.feed(view[at:end])
                at = end
            self._unfed = data[at:]
        if reader.refusal is not None:
            self._refuse(reader.refusal)
        self._head_since_s = (
            (self._head_since_s or self._loop.time()) if reader.is_in_head else None
        )
        self._start_answering()
        self._throttle_reading()

    def _refuse(self, refusal: Refusal) -> None:
        """What was read is no request: told behind the answers to those before it."""
        self._unfed = b""
        if self._receiving is not None:
            self._receiving.body.fail(refusal)
        elif not (self._waiting and self._waiting[-1] is refusal):
            self._server.limited("malformed")
            self._waiting.append(refusal)
            self._head_since_s = None

    def _throttle_reading(self) -> None:
        """Leave in the kernel what nobody has a use for yet."""
        receiving = self._receiving
        full = bool(self._unfed) or len(self._waiting) >= PIPELINE_MAX
        ahead = receiving is not None and receiving.body.unread_bytes > AHEAD_BYTES
        if (full or ahead) != self._paused and not self._lost:
            self._paused = not self._paused
            if self._paused:
                if full:
                    self._server.limited("pipelined")
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _read_on(self) -> None:
        """There is room again."""
        if self._unfed and len(self._waiting) < PIPELINE_MAX:
            self._feed(self._unfed)
        elif self._paused:
            self._throttle_reading()

    def body_wanted(self) -> None:
        """A handler waits for the body: it must come, or go on coming, in time."""
        current = self._current
        if current is None or self._lost:
            return
        if current.body.held_bytes == 0 and not current.body.is_complete:
            self._patience = Patience(self._server.stall_s, DRIP_BYTES_PER_S)
            if current.header("expect") is not None and current.head.version == "1.1":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._wait_began_s = self._loop.time()
        self._read_on()

    def body_consumed(self, body: Body, count: int) -> None:
        body.held_bytes -= count
        self._release(count)

    def _body_stalled(self, body: Body) -> None:
        self._server.limited("body_stalled")
        body.fail(stalled(self._server.stall_s))

    # --- answering ---

    def _start_answering(self) -> None:
        if self._task is None and self._waiting:
            self._server.connections.works(self)
            self._task = self._loop.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        """Answer what waits, one after the other."""
        try:
            while self._waiting and not self._lost:
                item = self._waiting.popleft()
                goes_on = await (
                    self._answer_refusal(item) if isinstance(item, Refusal) else self._answer(item)
                )
                if not goes_on:
                    return
                self._read_on()
                if self._waiting:
                    await asyncio.sleep(0)  # other connections get their turn
        finally:
            self._task = None
            self._current = None
        if self._lost:
            return
        self._idle_since_s = self._loop.time()
        self._server.connections.waits(self)
        if self._half_closed or self._server.is_stopping:
            self._transport.close()

    async def _answer_refusal(self, refusal: Refusal) -> bool:
        response = refusal.response()
        self._transport.write(self._server.head(response, len(response.body), "close"))
        self._transport.write(response.body)
        return self._finish(linger=refusal.linger)

    async def _answer(self, request: Request) -> bool:
        """Have it handled and send the answer; whether the connection goes on."""
        self._current = request
        try:
            answer = await self._server.answer(request)
            if request.identity is not None:
                self.is_stranger = False
            if self._lost:
                return False
            self.has_stayed = self.has_stayed or not peers.has_hung_up(self._transport)
            if isinstance(answer, Response):
                return await self._send(request, answer)
            return await self._stream(request, answer)
        except EndWithoutAnswer as none:
            peers.reset(self._transport) if none.reset else self._transport.abort()
            return False
        except ConnectionError:
            self._transport.abort()
            return False
        finally:
            self._current = None
            self._open_ended = False
            self._let_go(request.body)

    def _let_go(self, body: Body) -> None:
        """Its handler is done with it."""
        if body.held_bytes and not self._lost:
            self._release(body.held_bytes)
            body.held_bytes = 0

    async def _send(self, request: Request, answer: Response) -> bool:
        self._let_go(request.body)
        # A few words go out though the budget is used up: they may be the receipt of
        # what was committed, which must not be told as refused.
        held = len(answer.body) if len(answer.body) > FREE_BYTES else 0
        if held and not self._hold(held):
            self._server.limited("bytes")
            answer, held = self._server.spread(self._server.too_busy().response()), 0
        size = len(answer.body)
        close = answer.close or self._is_last(request)
        head = self._server.head(answer, size, _connection(request, close), request.answer_headers)
        if request.method == "HEAD" or answer.status in BODILESS:
            self._transport.write(head)
        else:
            self._transport.write(head + answer.body if size < FREE_BYTES else head)
            if size >= FREE_BYTES:
                self._transport.write(answer.body)
        if self._blocked_since_s is not None:
            await self._drained()
        if not self._lost:
            self._release(held)
        return self._finish(linger=answer.linger, request=request) if close else True

    async def _stream(self, request: Request, answer: Streamed) -> bool:
        chunked = answer.length is None and request.head.version == "1.1"
        close = answer.close or self._is_last(request) or (answer.length is None and not chunked)
        coding = {"Transfer-Encoding": "chunked"} if chunked else None
        connection = _connection(request, close)
        self._transport.write(
            self._server.head(answer, answer.length, connection, request.answer_headers, coding)
        )
        self._open_ended = answer.length is None
        parts = answer.parts
        try:
            if request.method != "HEAD":
                async for part in parts:
                    if part:
                        await self._write_part(
                            b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
                        )
                if chunked:
                    await self._write_part(b"0\r\n\r\n")
        finally:
            if (end := getattr(parts, "aclose", None)) is not None:
                await end()
        return self._finish(request=request) if close else True

    async def _write_part(self, data: bytes) -> None:
        if self._lost:
            raise ClientGone("the connection ended")
        if not self._hold(len(data)):
            self._server.limited("bytes")
            raise ClientGone("too much is on its way to this peer")
        self._transport.write(data)
        if self._blocked_since_s is not None:
            await self._drained()
        if self._lost:
            raise ClientGone("the connection ended")
        self._release(len(data))

    async def _drained(self) -> None:
        """Until the kernel has taken all; `check` sees to it that this ends."""
        while self._blocked_since_s is not None and not self._lost:
            self._drain = self._loop.create_future()
            try:
                await self._drain
            finally:
                self._drain = None

    def _wake_drain(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def _is_last(self, request: Request) -> bool:
        return (
            not request.head.keep_alive
            or not request.body.is_complete
            or self._server.is_stopping
            or (self._half_closed and not self._waiting)
        )

    def _finish(self, *, linger: bool = True, request: Request | None = None) -> bool:
        """No further request is taken. Always False, for its callers."""
        unfinished = request is None or not request.body.is_complete
        if not self._lost:
            self._waiting.clear()
            self._unfed = b""
            if linger and unfinished and not self._half_closed:
                self._ends_at_s = self._loop.time() + LINGER_S
                if not self._is_tls:  # which cannot be closed on one side alone here
                    self._transport.write_eof()
                if self._paused:
                    self._paused = False
                    self._transport.resume_reading()
            else:
                self._transport.close()
        return False

    # --- time ---

    def check(self, now_s: float) -> None:
        """Called by the server every now and then: ends what has taken too long."""
        if self._lost:
            return
        if self._ends_at_s is not None:
            if now_s >= self._ends_at_s:
                self._transport.abort()
        elif self._blocked_since_s is not None:
            left_bytes = self._transport.get_write_buffer_size()
            moved = max(0, self._blocked_bytes - left_bytes)
            in_time = self._patience.moved(now_s - self._blocked_since_s, moved)
            self._blocked_since_s, self._blocked_bytes = now_s, left_bytes
            if not in_time:
                self._server.limited("answer_unread")
                self._transport.abort()
        elif self._current is not None:
            body = self._current.body
            if body.is_awaited and now_s - self._wait_began_s >= self._patience.left_s:
                self._body_stalled(body)
            elif (self._half_closed or self._paused) and peers.has_hung_up(self._transport):
                self._leave()  # nobody reads, so nobody else sees it
        elif self._task is None:
            self._check_idle(now_s)

    def _check_idle(self, now_s: float) -> None:
        if self._head_since_s is not None:
            if now_s - self._head_since_s >= self._server.stall_s:
                self._server.limited("head_stalled")
                refusal = Refusal(
                    408, "the request's head did not arrive in time", close=True, linger=False
                )
                self._waiting.append(refusal)
                self._start_answering()
        elif now_s - self._idle_since_s >= self._server.keepalive_s:
            self._server.limited("idle")
            self._transport.close()

    # --- for the server ---

    @property
    def current(self) -> Request | None:
        """The request that is being answered."""
        return self._current

    def has_waited(self, for_s: float, head_s: float) -> bool:
        """Whether it has had no request in hand for so long, and no head that began to
        come in the last `head_s` seconds."""
        now_s = self._loop.time()
        coming = self._head_since_s is not None and now_s - self._head_since_s < head_s
        return self._task is None and not coming and now_s - self._idle_since_s >= for_s

    @property
    def is_dragging(self) -> bool:
        """Whether its peer alone is waited for, and has used up more than a second of its
        patience: one that moves its bytes in time never has."""
        if self._blocked_since_s is not None:
            since_s = self._blocked_since_s
        elif self._current is not None and self._current.body.is_awaited:
            since_s = self._wait_began_s
        else:
            return False
        left_s = self._patience.left_s - (self._loop.time() - since_s)
        return left_s < self._server.stall_s - DRAGGING_S

    def close_when_idle(self) -> None:
        """The server stops; whoever is in the middle of a request gets its answer."""
        if not self._lost and self._task is None and self._receiving is None:
            self._transport.close()

    def abort(self) -> None:
        """End it now. What it has handed in may still be committed; no answer tells of it."""
        if not self._lost:
            self._transport.abort()
            self.connection_lost(None)

    def _leave(self) -> None:
        self._transport.abort()

    # --- budgets ---

    def _hold(self, count: int) -> bool:
        """Count bytes in memory; what a connection has for nothing is not asked for."""
        held = self._held_bytes + count
        if held > FREE_BYTES:
            more = held - max(FREE_BYTES, self._held_bytes)
            if not self._server.limits.bytes.take(self.holder, more):
                return False
        self._held_bytes = held
        return True

    def _release(self, count: int) -> None:
        held = self._held_bytes - count
        over = self._held_bytes - max(FREE_BYTES, held)
        if over > 0:
            self._server.limits.bytes.give(self.holder, over)
        self._held_bytes = held


def _connection(request: Request, close: bool) -> str | None:
    if close:
        return "close"
    return "keep-alive" if request.head.version == "1.0" else None
