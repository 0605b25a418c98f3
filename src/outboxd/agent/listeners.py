"""The agent's listeners: its Unix socket and, where it is wanted, the page's.

Opens them, each with its routes, guards and limits, and goes on looking after
them: a socket whose path was removed or replaced is bound anew, and a page
whose address was taken is tried again. The socket is the agent's one necessity;
a page that cannot be served never stops it.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from outboxd.agent.systemd import PassedSocket
from outboxd.budgets import page_limits, socket_limits
from outboxd.clock import Clock
from outboxd.config.load import Config
from outboxd.errors import OutboxdError
from outboxd.observe.logs import get_logger
from outboxd.serve import sockets
from outboxd.serve.guards import browser_guard
from outboxd.serve.server import HttpServer, ServeMetrics
from outboxd.serve.table import Route, RouteTable

LOOK_S = 2.0  # how often the sockets' paths are looked at
PAGE_RETRY_S = 20.0  # how often an address that was taken is tried again
# More than the listeners and the destination need; the usual soft limit of 1024 is for select().
DESCRIPTORS_WANTED = 4096
SOCKET_PART, PAGE_PART = 0.75, 0.15  # of the descriptors that are not kept back

UNIX = "unix:"


class Listeners:
    """The socket, open from `open` on, and the page's listener, open when it can be."""

    def __init__(
        self,
        config: Config,
        metrics: ServeMetrics,
        clock: Clock,
        socket_routes: Iterable[Route],
        page_routes: Iterable[Route],
    ) -> None:
        self._config = config
        self._clock = clock
        self._log = get_logger("agent")
        descriptors = raise_descriptor_limit()
        self._server = HttpServer(
            RouteTable(socket_routes),
            limits=socket_limits().fit(descriptors, SOCKET_PART),
            metrics=metrics,
            clock=clock,
        )
        # Read only: nothing that comes in here changes anything.
        self._page = HttpServer(
            RouteTable(page_routes),
            name="page",
            guards=[browser_guard([config.http.listen.rpartition(":")[0]])],
            limits=page_limits().fit(descriptors, PAGE_PART),
            metrics=metrics,
            clock=clock,
        )
        self._bound: sockets.BoundSocket | None = None
        self._page_bound: sockets.BoundSocket | None = None
        self._page_tried_s = 0.0  # only looked at once it was tried
        self._told: dict[str, str] = {}  # troubles that were told, by listener
        self.page_address: str | None = None

    async def open(self, passed: Sequence[PassedSocket]) -> None:
        """Open the socket and try to open the page; raises ConfigError for the socket alone."""
        handed_in = next((p for p in passed if p.socket.family == socket.AF_UNIX), None)
        if handed_in is not None:
            self._bound = sockets.adopt(handed_in.socket.detach())
        else:
            self._bound = self._bind_socket()
        await self._server.start(self._bound.socket)
        await self._open_page()

    async def watch(self) -> None:
        """Look after them until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._bound = await self._look_after(self._server, self._bound)
            self._page_bound = await self._look_after(self._page, self._page_bound)
            due_s = self._page_tried_s + PAGE_RETRY_S
            if self._page_bound is None and self._clock.monotonic_s() >= due_s:
                await self._open_page()

    def connection_count(self) -> int:
        """Connections open now."""
        return self._server.connection_count + self._page.connection_count

    def stop_accepting(self) -> None:
        """The paths go, and no new connection is taken."""
        for bound in (self._bound, self._page_bound):
            if bound is not None:
                sockets.remove(bound)
        self._server.stop_accepting()
        self._page.stop_accepting()

    async def stop(self) -> None:
        """Answer what is in hand, then close."""
        await self._server.stop()
        await self._page.stop()

    # --- the socket ---

    def _bind_socket(self) -> sockets.BoundSocket:
        intake = self._config.intake
        return sockets.bind_unix(intake.socket, intake.socket_mode_bits, intake.socket_group)

    async def _look_after(
        self, server: HttpServer, bound: sockets.BoundSocket | None
    ) -> sockets.BoundSocket | None:
        """Bind anew where the path no longer leads to this agent."""
        if bound is None or bound.path is None:
            return bound
        found = await asyncio.to_thread(sockets.in_place, bound)
        if found is not None:
            self._told.pop(server.name, None)
            return found
        if not bound.is_ours:
            self._tell(
                server.name,
                f"{bound.path} was removed or replaced; it belongs to systemd's socket unit",
                "run `systemctl restart outboxd.socket`; producers spool until then",
            )
            return bound
        try:
            again = self._bind_socket() if server is self._server else self._bind_page()
            await server.move(again.socket)
        except OutboxdError as error:
            self._tell(server.name, error.message, error.hint)
            return bound
        self._told.pop(server.name, None)
        self._log.warning("socket.rebound", path=bound.path, reason="it was removed or replaced")
        return again

    def _tell(self, listener: str, error: str, hint: str | None) -> None:
        """A trouble that lasts is told once."""
        if self._told.get(listener) != error:
            self._told[listener] = error
            self._log.error("socket.lost", listener=listener, error=error, hint=hint)

    # --- the page ---

    async def _open_page(self) -> None:
        if not self._config.http.listen:
            return
        self._page_tried_s = self._clock.monotonic_s()
        try:
            bound = self._bind_page()
        except OutboxdError as error:
            self._tell("page", error.message, error.hint)
            return
        await self._page.start(bound.socket)
        self._page_bound = bound
        self.page_address = _address(bound)
        if self._told.pop("page", None) is not None:
            self._log.info("http.opened", address=self.page_address)
        if bound.path is None and not ip_address(bound.socket.getsockname()[0]).is_loopback:
            self._log.warning(
                "http.exposed",
                address=self.page_address,
                hint="who reaches it can read every event; [http] listen on 127.0.0.1 is safe",
            )

    def _bind_page(self) -> sockets.BoundSocket:
        listen, intake = self._config.http.listen, self._config.intake
        if not listen.startswith(UNIX):
            return sockets.bind_tcp(listen)
        # Who may hand in over the one may read on the other.
        mode, group = intake.socket_mode_bits, intake.socket_group
        return sockets.bind_unix(listen.removeprefix(UNIX), mode, group, "[http] listen")


def raise_descriptor_limit() -> int:
    """Take as many descriptors as are wanted and allowed; how many there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = (value for value in (DESCRIPTORS_WANTED, hard) if value != resource.RLIM_INFINITY)
    wanted = min(known)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def _address(bound: sockets.BoundSocket) -> str:
    if bound.path is not None:
        return f"{UNIX}{bound.path}"
    host, port = bound.socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
