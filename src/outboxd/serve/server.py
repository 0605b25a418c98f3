"""A listener: its connections, its limits, its guards and its table of routes.

Routes are found here and what their handlers raise becomes an answer; nothing
here may raise out of a request without one, but where no answer may be given
at all (after a failed sync). Who may hold how many connections is decided by
the budget, and which of them gives way to a newcomer by `connected`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import ceil
from time import monotonic
from typing import Protocol, TypeVar

from outboxd.budgets import Credit, ListenerLimits, socket_limits
from outboxd.clock import Clock
from outboxd.errors import (
    BadQuery,
    CommitUnknown,
    NotPermitted,
    OutboxdError,
    Refused,
    SyncFailed,
    UnknownId,
)
from outboxd.logger import get_logger
from outboxd.serve.acceptor import Acceptor
from outboxd.serve.answers import (
    Answer,
    EndWithoutAnswer,
    HeadWriter,
    Refusal,
    Response,
    refusal_body,
    reply,
)
from outboxd.serve.connected import Connections
from outboxd.serve.connection import KEEPALIVE_S, STALL_S, PeerConnection
from outboxd.serve.guards import Guard
from outboxd.serve.peer import identify
from outboxd.serve.request import Request
from outboxd.serve.table import RouteTable
from outboxd.serve.tls import TlsFiles

# How often connections are looked at; a limit of time is kept to within this.
_LOOK_S = 1.0

_A = TypeVar("_A", bound=Answer)

_log = get_logger()


class ServeMetrics(Protocol):
    """What listeners count."""

    def limit_met(self, limit: str) -> None: ...


class HttpServer:
    """Serves one table of routes on one listener, which may change its socket."""

    def __init__(
        self,
        table: RouteTable,
        *,
        name: str = "socket",
        guards: Sequence[Guard] = (),
        limits: ListenerLimits | None = None,
        abandoned: Credit | None = None,
        metrics: ServeMetrics | None = None,
        clock: Clock | None = None,
        tls: TlsFiles | None = None,
        stall_s: float = STALL_S,
        keepalive_s: float = KEEPALIVE_S,
        retry_after_spread: Callable[[], float] | None = None,
        has_strangers: bool = False,
    ) -> None:
        self.name = name  # of the listener, in metrics and logs
        self.limits = limits or socket_limits()
        # For connections that are left before an answer; None: nobody counts them.
        self._abandoned = abandoned
        self.connections = Connections(self.limits)
        self.has_strangers = has_strangers  # a guard tells whom a request is from
        self.tls = tls
        self.stall_s = stall_s
        self.keepalive_s = keepalive_s
        self.is_stopping = False
        # A random number from 0 to 1 (below it) for each answer that sends a caller away
        # for a while: by up to half as long again, so that not all come back in one second.
        self._retry_after_spread = retry_after_spread
        self._table = table
        self._guards = guards  # raise Refusal; they may say whom a request is from
        self._metrics = metrics
        self._heads = HeadWriter(clock or Clock())
        self._acceptors: list[Acceptor] = []
        self._joining: dict[PeerConnection, asyncio.Task[None]] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- listening ---

    async def start(self, listening: socket.socket) -> None:
        """Take connections on a socket that is bound; it is ours from here on."""
        self._acceptors.append(Acceptor(listening, self._arrived))

    async def move(self, listening: socket.socket) -> None:
        """Take new connections on another socket; those that are open stay."""
        before, self._acceptors = self._acceptors, []
        await self.start(listening)
        for acceptor in before:
            acceptor.close()

    def stop_accepting(self) -> None:
        """No new connections; those that are open finish their requests."""
        self.is_stopping = True
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for connection in self.connections:
            if connection not in self._joining:
                connection.close_when_idle()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Answer what is in hand for at most `timeout_s`, then close."""
        self.stop_accepting()
        if self.connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._emptied}, timeout=timeout_s)
        for connection in self.connections:
            self._end(connection)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- connections ---

    @property
    def connection_count(self) -> int:
        return self.limits.connections.used

    def _arrived(self, connected: socket.socket) -> Callable[[], bytes] | None:
        """Take a connection, or tell what it is refused with."""
        try:
            peer, holder = identify(connected)
        except OSError:
            return bytes
        if not (self._has_credit(holder) and self._admit(holder)):
            # Before the handshake no answer could be read.
            return bytes if self.tls is not None else self._busy
        connected.setblocking(False)
        connection = PeerConnection(self, peer, holder)
        self.connections.add(connection)
        joining = asyncio.create_task(self._join(connection, connected))
        self._joining[connection] = joining
        joining.add_done_callback(partial(self._joined, connection, connected))
        if self._timer is None:
            self._look_later()
        return None

    async def _join(self, connection: PeerConnection, connected: socket.socket) -> None:
        """Give the connection its transport; with TLS that is once it has shaken hands."""
        tls = self.tls
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: connection,
            connected,
            ssl=None if tls is None else tls.context,
            ssl_handshake_timeout=None if tls is None else self.stall_s,
            ssl_shutdown_timeout=None if tls is None else 1.0,
        )

    def _joined(
        self, connection: PeerConnection, connected: socket.socket, joining: asyncio.Task[None]
    ) -> None:
        self._joining.pop(connection, None)
        if joining.cancelled() or joining.exception() is not None:
            self.limited("handshake")
            connected.close()
            self.forget(connection)

    def _has_credit(self, holder: Hashable) -> bool:
        if self._abandoned is None or self._abandoned.has(holder, monotonic()):
            return True
        self.limited("abandoned")
        return False

    def _admit(self, holder: Hashable) -> bool:
        """Whether there is room for one more of the holder's; somebody else may have to go."""
        budget = self.limits.connections
        if budget.take(holder):
            return True
        loser = self.connections.giving_way_to(holder)
        if loser is None:
            self.limited("connections")
            return False
        self.limited("displaced")
        self._end(loser)
        return budget.take(holder)

    def _end(self, connection: PeerConnection) -> None:
        joining = self._joining.get(connection)
        if joining is not None:
            joining.cancel()
            self.forget(connection)
        else:
            connection.abort()

    def forget(self, connection: PeerConnection) -> None:
        """It ended."""
        self.connections.discard(connection)
        if self._abandoned is not None and not connection.has_stayed:
            self._abandoned.spend(connection.holder, monotonic())
        if not self.connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def limited(self, limit: str) -> None:
        """A limit was met: for the metrics."""
        if self._metrics is not None:
            self._metrics.limit_met(limit)

    def _look_later(self) -> None:
        look_s = min(_LOOK_S, self.stall_s / 10)
        self._timer = asyncio.get_running_loop().call_later(look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for connection in self.connections:
            if connection not in self._joining:
                connection.check(now_s)
        if self.connections:
            self._look_later()

    # --- requests ---

    async def answer(self, request: Request) -> Answer:
        """The answer, whatever goes wrong.

        Raises:
            NoAnswer: none may be given.
            ConnectionError: nobody is there to be given one.
        """
        return self.spread(await self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        try:
            for guard in self._guards:
                guard(request)
            coding = request.header("content-encoding")
            if coding is not None and coding.strip().lower() not in ("", "identity"):
                raise _coded(coding)
            route, argument = self._table.find(request.head.method, request.path)
            return await route.handler(request, argument)
        except Refusal as refusal:
            if refusal.limit:
                self.limited(refusal.limit)
            return refusal.response()
        except (SyncFailed, CommitUnknown) as error:
            # What was written may or may not be there: no answer is the only honest one.
            raise EndWithoutAnswer from error
        except OutboxdError as error:
            return _of_error(error)
        except (ConnectionError, EndWithoutAnswer):
            raise
        except Exception as error:
            path = request.path[:200]
            _log.exception("request.failed", method=request.method, path=path)
            return reply(
                500,
                refusal_body(
                    f"internal error: {type(error).__name__}",
                    None,
                    "please report it with the agent's log; the event may or may not be kept: "
                    "send it again with the same dedupKey",
                ),
            )

    def spread(self, answer: _A) -> _A:
        """The answer, with a Retry-After that is not the same for all."""
        after_s = (answer.headers or {}).get("Retry-After")
        if self._retry_after_spread is not None and after_s is not None:
            # Whole seconds: where one is told, half of them are told two.
            more_s = int(self._retry_after_spread() * (ceil(int(after_s) / 2) + 1))
            answer.headers = {**(answer.headers or {}), "Retry-After": str(int(after_s) + more_s)}
        return answer

    def _busy(self) -> bytes:
        """What a connection is refused with."""
        busy = self.spread(self.too_busy().response())
        return self.head(busy, len(busy.body), "close") + busy.body

    def only_reads(self, connection: PeerConnection) -> bool:
        """Whether the request that a connection answers changes nothing."""
        current = connection.current
        return current is not None and current.head.method in ("GET", "HEAD", "OPTIONS")

    def head(
        self,
        answer: Answer,
        length: int | None,
        connection: str | None,
        *more: Mapping[str, str] | None,
    ) -> bytes:
        """The head of an answer, as bytes."""
        return self._heads.head(
            answer.status, answer.content_type, length, connection, answer.headers, *more
        )

    def too_busy(self) -> Refusal:
        """Over a limit of connections or bytes."""
        return Refusal(
            503,
            "too many connections, or too many bytes on their way, for one peer or for all",
            None,
            "try again; keep one connection open instead of many, and read the answers",
            {"Retry-After": "1"},
            close=True,
        )


def _coded(coding: str) -> Refusal:
    return Refusal(
        400,
        f"a body with Content-Encoding {coding[:80]!r} is not taken",
        "Content-Encoding",
        "send it as it is, without a Content-Encoding",
        {"Accept-Encoding": "identity"},
    )


def _of_error(error: OutboxdError) -> Response:
    body = refusal_body(error.message, getattr(error, "field", None), error.hint)
    if isinstance(error, UnknownId):
        return reply(404, body)
    if isinstance(error, BadQuery):
        return reply(400, body)
    if isinstance(error, NotPermitted):
        return reply(403, body)
    if isinstance(error, Refused):
        return reply(503, body, {"Retry-After": str(error.retry_after_s)})
    _log.error("request.failed", error=str(error))
    return reply(500, body)
