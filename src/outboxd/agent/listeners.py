"""The agent's listeners: its Unix socket and, where they are wanted, the page's and a gateway's.

Opens them, each with its routes, guards and limits, and goes on looking after
them: a socket whose path was removed or replaced is bound anew, and one whose
address was taken is tried again. The socket is the agent's one necessity;
another that cannot be opened never stops it.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from outboxd.agent.systemd import PassedSocket
from outboxd.budgets import (
    ListenerLimits,
    abandoned_connections,
    gateway_limits,
    page_limits,
    socket_limits,
)
from outboxd.clock import Clock
from outboxd.config.sections import Config
from outboxd.errors import OutboxdError
from outboxd.findings import Finding, bad, good
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.serve import sockets
from outboxd.serve.guards import browser_guard
from outboxd.serve.server import HttpServer
from outboxd.serve.table import Route, RouteTable

LOOK_S = 2.0  # how often the sockets' paths are looked at
RETRY_S = 10.0  # how often an address that was taken is tried again
# More than the listeners and the destination need; the usual soft limit of 1024 is for select().
DESCRIPTORS_WANTED = 4096
SOCKET_PART, PAGE_PART = 0.75, 0.15  # of the descriptors that are not kept back

UNIX = "unix:"


class SecondaryListener:
    """A listener that the agent can do without for a while: the page's, or a gateway's."""

    def __init__(
        self,
        server: HttpServer,
        bind: Callable[[], sockets.BoundSocket],
        warning: Callable[[str], tuple[str, str] | None],
    ) -> None:
        self.server = server
        self.bind = bind  # raises OutboxdError while the address is taken
        self.warning = warning  # event and hint to log where it is open to this address
        self.bound: sockets.BoundSocket | None = None
        self.tried_s = 0.0  # only looked at once it was tried

    @property
    def address(self) -> str | None:
        """Where it can be reached; None while it is closed."""
        if self.bound is None:
            return None
        scheme = "http" if self.server.tls is None else "https"
        return _address(self.bound, scheme)


class Listeners:
    """The socket, open from `open` on, and the others, open when they can be."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        clock: Clock,
        socket_routes: Iterable[Route],
        page_routes: Iterable[Route],
        gateway: Callable[[ListenerLimits], HttpServer] | None = None,
    ) -> None:
        """`gateway` makes the TCP listener within the limits that are left for it."""
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._log = get_logger("agent")
        descriptors = raise_descriptor_limit(config.intake.connections_max if gateway else 0)
        if gateway is not None:
            descriptors = max(descriptors - config.intake.connections_max, descriptors // 2)
        self._server = HttpServer(
            RouteTable(socket_routes),
            limits=socket_limits().fit(descriptors, SOCKET_PART),
            abandoned=abandoned_connections(),
            metrics=metrics,
            clock=clock,
        )
        self._others: list[SecondaryListener] = []
        listen = config.http.listen
        if listen:
            # Read only: nothing that comes in here changes anything.
            page = HttpServer(
                RouteTable(page_routes),
                name="page",
                guards=[browser_guard([listen.rpartition(":")[0]])],
                limits=page_limits().fit(descriptors, PAGE_PART),
                metrics=metrics,
                clock=clock,
            )
            self._others.append(SecondaryListener(page, self._bind_page, _page_warning))
        if gateway is not None:
            intake = config.intake
            limits = gateway_limits(intake.connections_max, intake.connections_per_peer)
            bind = partial(sockets.bind_tcp, intake.listen, "[intake] listen")
            server = gateway(limits.fit(descriptors, 1.0))
            self._others.append(SecondaryListener(server, bind, lambda _: None))
        self._bound: sockets.BoundSocket | None = None
        self._is_stopping = False
        self._told: dict[str, OutboxdError] = {}  # troubles that were told, by listener

    async def open(self, passed: Sequence[PassedSocket]) -> None:
        """Open the socket and try to open the rest; raises ConfigError for the socket alone."""
        handed_in = next((p for p in passed if p.socket.family == socket.AF_UNIX), None)
        if handed_in is not None:
            self._bound = sockets.adopt(handed_in.socket.detach())
        else:
            self._bound = self._bind_socket()
        await self._server.start(self._bound.socket)
        for other in self._others:
            await self._open(other)

    async def watch(self) -> None:
        """Look after them until they are to take nothing more, or it is cancelled."""
        while not self._is_stopping:
            await asyncio.sleep(LOOK_S)
            self._bound = await self._look_after(self._server, self._bound, self._bind_socket)
            for other in self._others:
                if self._is_stopping:
                    return
                if other.bound is not None:
                    other.bound = await self._look_after(other.server, other.bound, other.bind)
                elif self._clock.monotonic_s() >= other.tried_s + RETRY_S:
                    await self._open(other)

    def address(self, name: str) -> str | None:
        """Where the listener of this name can be reached; None where it cannot."""
        return next((o.address for o in self._others if o.server.name == name), None)

    def findings(self) -> list[Finding]:
        """How they stand, for `check`."""
        found = [
            bad(listener, error.message, error.hint or "choose another", error.exit_code)
            for listener, error in self._told.items()
        ]
        found += [
            good(other.server.name, f"{other.address}")
            for other in self._others
            if other.bound is not None and other.server.name not in self._told
        ]
        return found

    def connection_count(self) -> int:
        """Connections open now."""
        return sum(server.connection_count for server in self._all())

    def stop_accepting(self) -> None:
        """The paths go, and no new connection is taken."""
        self._is_stopping = True
        for bound in (self._bound, *(other.bound for other in self._others)):
            if bound is not None:
                sockets.remove(bound)
        for server in self._all():
            server.stop_accepting()

    async def stop(self) -> None:
        """Answer what is in hand, then close."""
        await asyncio.gather(*(server.stop() for server in self._all()))

    def _all(self) -> list[HttpServer]:
        return [self._server, *(other.server for other in self._others)]

    # --- the socket ---

    def _bind_socket(self) -> sockets.BoundSocket:
        intake = self._config.intake
        return sockets.bind_unix(intake.socket, intake.socket_mode_bits, intake.socket_group)

    async def _look_after(
        self,
        server: HttpServer,
        bound: sockets.BoundSocket | None,
        bind: Callable[[], sockets.BoundSocket],
    ) -> sockets.BoundSocket | None:
        """Bind anew where the path no longer leads to this agent."""
        if bound is None or bound.path is None:
            return bound
        found = await asyncio.to_thread(sockets.in_place, bound)
        if self._is_stopping:
            return bound  # it is gone because it was removed
        if found is not None:
            self._told.pop(server.name, None)
            return found
        if not bound.is_ours:
            told = f"{bound.path} was removed or replaced; it belongs to systemd's socket unit"
            hint = "run `systemctl restart outboxd.socket`; producers spool until then"
            self._tell(server.name, OutboxdError(told, hint))
            return bound
        try:
            again = bind()
            await server.move(again.socket)
        except OutboxdError as error:
            self._tell(server.name, error)
            return bound
        self._told.pop(server.name, None)
        self._log.warning("socket.rebound", path=bound.path, reason="it was removed or replaced")
        return again

    def _tell(self, listener: str, error: OutboxdError) -> None:
        """A trouble that lasts is counted each time, and told once."""
        self._metrics.part_failed(listener)
        before = self._told.get(listener)
        if before is None or before.message != error.message:
            self._log.error("socket.lost", listener=listener, error=error.message, hint=error.hint)
        self._told[listener] = error

    # --- the others ---

    async def _open(self, other: SecondaryListener) -> None:
        name = other.server.name
        other.tried_s = self._clock.monotonic_s()
        try:
            bound = other.bind()
        except OutboxdError as error:
            self._tell(name, error)
            return
        await other.server.start(bound.socket)
        other.bound = bound
        if self._told.pop(name, None) is not None:
            self._log.info("listener.opened", listener=name, address=other.address)
        if bound.path is None:
            warning = other.warning(bound.socket.getsockname()[0])
            if warning is not None:
                self._log.warning(warning[0], address=other.address, hint=warning[1])

    def _bind_page(self) -> sockets.BoundSocket:
        listen, intake = self._config.http.listen, self._config.intake
        if not listen.startswith(UNIX):
            return sockets.bind_tcp(listen, "[http] listen")
        # Who may hand in over the one may read on the other.
        mode, group = intake.socket_mode_bits, intake.socket_group
        return sockets.bind_unix(listen.removeprefix(UNIX), mode, group, "[http] listen")


def _page_warning(address: str) -> tuple[str, str] | None:
    if ip_address(address).is_loopback:
        return None
    return "http.exposed", "who reaches it can read every event; [http] listen on 127.0.0.1 is safe"


def raise_descriptor_limit(more: int = 0) -> int:
    """Take as many descriptors as are wanted (`more` for a gateway's connections) and
    allowed; how many there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = (
        value for value in (DESCRIPTORS_WANTED + more, hard) if value != resource.RLIM_INFINITY
    )
    wanted = min(known)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def _address(bound: sockets.BoundSocket, scheme: str) -> str:
    if bound.path is not None:
        return f"{UNIX}{bound.path}"
    host, port = bound.socket.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
