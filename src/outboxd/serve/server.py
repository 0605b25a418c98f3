"""Connections: one aiohttp server per listener, dispatching by the table.

The low-level server is used, not the application framework: on the path of
a receipt the framework's middlewares and resolvers cost more than the event.
Nothing here may raise out of a request without an answer, but for one case:
after a failed sync no answer may be given at all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.web import BaseRequest, StreamResponse
from aiohttp.web_protocol import RequestHandler

from outboxd.errors import NotPermitted, OutboxdError, Refused, SyncFailed, UnknownId
from outboxd.serve.body import STALL_S
from outboxd.serve.table import Refusal, RouteTable, refusal_body, reply

KEEPALIVE_S = 75.0  # an idle connection; a request on its way has STALL_S
LINGER_S = 0.5  # how long a refused body is read and thrown away, so that the answer arrives
BACKLOG = 1024

_log = structlog.get_logger()


class HttpServer:
    """Serves one table of routes on one listening socket."""

    def __init__(
        self,
        table: RouteTable,
        *,
        guard: Callable[[BaseRequest], None] | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self._table = table
        self._guard = guard  # raises Refusal: the Host check of the TCP listener
        self._stall_s = stall_s
        self._server: asyncio.AbstractServer | None = None
        self._connections: _Connections | None = None

    async def start(self, listening: socket.socket) -> None:
        """Take connections on a socket that is bound; it is ours from here on."""
        self._connections = _Connections(self._dispatch, self._stall_s)
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        if listening.family != socket.AF_UNIX:
            self._server = await loop.create_server(
                self._connections, sock=listening, backlog=BACKLOG
            )
            return
        create = partial(
            loop.create_unix_server, self._connections, sock=listening, backlog=BACKLOG
        )
        try:
            # asyncio from 3.13 on removes the path at the end, even that of a
            # socket that systemd handed in; `sockets.remove` looks first.
            self._server = await create(cleanup_socket=False)  # type: ignore[call-arg]
        except TypeError:
            self._server = await create()

    def stop_accepting(self) -> None:
        """No new connections; those that are open finish their requests."""
        if self._server is not None:
            self._server.close()
        if self._connections is not None:
            self._connections.pre_shutdown()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Answer what is in hand for at most `timeout_s`, then close."""
        self.stop_accepting()
        if self._connections is not None:
            await self._connections.shutdown(timeout_s)
        self._server = None

    async def _dispatch(self, request: BaseRequest) -> StreamResponse:
        try:
            if self._guard is not None:
                self._guard(request)
            path = request.raw_path
            if not path.startswith("/"):
                path = request.path  # the absolute form, as for a proxy
            elif "?" in path:
                path = path.partition("?")[0]
            handler, argument = self._table.find(request.method, path)
            response = await handler(request, argument)
        except Refusal as refusal:
            response = refusal.response()
            if refusal.status == 408 and isinstance(request.protocol, _Connection):
                request.protocol.do_not_linger()
        except SyncFailed as error:
            # What was written may or may not be there: no answer is the only honest one.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError from error
        except OutboxdError as error:
            response = _of_error(error)
        except ConnectionError:
            raise
        except Exception as error:
            _log.exception("request.failed", method=request.method, path=request.raw_path[:200])
            response = reply(
                500,
                refusal_body(
                    f"internal error: {type(error).__name__}",
                    None,
                    "please report it with the agent's log; the event may or may not be kept: "
                    "send it again with the same dedupKey",
                ),
            )
        if response.headers.get("Connection") == "close" or (
            isinstance(request.protocol, _Connection) and request.protocol.peer_is_done()
        ):
            response.force_close()
        return response


def _of_error(error: OutboxdError) -> StreamResponse:
    body = refusal_body(error.message, getattr(error, "field", None), error.hint)
    if isinstance(error, UnknownId):
        return reply(404, body)
    if isinstance(error, NotPermitted):
        return reply(403, body)
    if isinstance(error, Refused):
        return reply(503, body, {"Retry-After": str(error.retry_after_s)})
    _log.error("request.failed", error=str(error))
    return reply(500, body)


class _Connections(web.Server):
    """All connections of one listener."""

    def __init__(self, handler: Any, stall_s: float) -> None:
        super().__init__(handler)
        self._stall_s = stall_s

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._stall_s)


class _Connection(RequestHandler):
    """One connection, with what a server of strangers needs beside HTTP.

    Headers that never end are cut after the stall time; a peer that closes
    its writing side still gets its answers; what is not HTTP is refused in
    the same JSON as everything else.
    """

    __slots__ = ("_answered", "_header_timer", "_newest_body", "_peer_closed", "_stall_s")

    def __init__(self, connections: _Connections, stall_s: float) -> None:
        super().__init__(
            connections,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,  # type: ignore[arg-type]  # None is how it is switched off
            logger=logging.getLogger("outboxd.serve"),
            lingering_time=LINGER_S,
            tcp_keepalive=False,
            max_field_size=16 * 1024,
            max_line_size=16 * 1024,
        )
        self._stall_s = stall_s
        self._header_timer: asyncio.TimerHandle | None = None
        self._peer_closed = False
        self._answered = 0  # requests
        self._newest_body: StreamReader | None = None

    def peer_is_done(self) -> bool:
        """Whether the peer has closed its side and waits for no further answer."""
        return self._peer_closed and not self._messages

    def do_not_linger(self) -> None:
        """The rest of the body is not worth waiting for."""
        self._lingering_time = 0.0

    def data_received(self, data: bytes) -> None:
        requests_before = self._request_count
        super().data_received(data)
        if self._messages:
            self._newest_body = self._messages[-1][1]
        if self._request_count == requests_before:
            if data and self._header_timer is None and self._is_idle():
                self._header_timer = self._loop.call_later(self._stall_s, self._headers_stalled)
        elif self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def eof_received(self) -> bool:  # type: ignore[override]
        # Closing the transport here would lose the receipt of a producer that
        # shuts down its writing side after the request (nc -N, socat).
        self._peer_closed = True
        body = self._newest_body
        return self._request_count > self._answered and body is not None and body.is_eof()

    async def _handle_request(self, *request: Any) -> tuple[StreamResponse, bool]:
        try:
            return await super()._handle_request(*request)
        finally:
            self._answered += 1
            if self.peer_is_done():
                self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """What is not HTTP; our own handlers' errors never come this far."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun")
        what = " ".join((message or type(exc).__name__).split())[:200]
        response = reply(
            status,
            refusal_body(f"this is no HTTP request: {what}", None, "speak HTTP/1.1 to this socket"),
        )
        response.force_close()
        return response

    def _is_idle(self) -> bool:
        return not self._messages and not self._request_in_progress

    def _headers_stalled(self) -> None:
        self._header_timer = None
        if self._is_idle():
            self.force_close()
