"""How connections are made, and the pool that keeps them: names, addresses, TLS.

It sends no request and decides nothing of one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import NamedTuple

from outboxd.delivery.exchange import EndpointConnection

_ADDRESSES_KEPT_S = 60.0
_LOOKUPS_MAX = 4  # of lookups that hang; each holds a thread until the system gives up
_NEXT_ADDRESS_S = 0.25  # RFC 8305's Connection Attempt Delay


class Address(NamedTuple):
    """Where a name leads."""

    family: int
    at: tuple[object, ...]  # as socket.connect takes it


class Pool:
    """Connections to one host.

    Args:
        context: for TLS; None: plain
        connect_timeout_s: for name, connection and TLS together
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, connect_timeout_s: float
    ) -> None:
        self._host, self._port = host, port
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._resolver = Resolver()
        self._addresses: asyncio.Future[list[Address]] | None = None
        self._resolved_at_s = 0.0
        self._generation = 0
        self._idle: list[EndpointConnection] = []  # the one used last at the end
        self._open: set[EndpointConnection] = set()
        self._all_closed = asyncio.Event()

    def take(self) -> EndpointConnection | None:
        """An idle connection that is as it was left, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def dial(self, ends_s: float) -> EndpointConnection:
        """A new connection, by `ends_s` of the loop's clock at the latest.

        Raises:
            OSError: there is none to be had (ssl.SSLError and socket.gaierror are such).
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(min(ends_s, loop.time() + self._connect_timeout_s)):
            generation, context = self._generation, self._context
            sock = await connected(await self._resolved())
            _, connection = await loop.create_connection(
                lambda: EndpointConnection(sock, self._released, self._closed),
                sock=sock,
                ssl=context,
                server_hostname=self._host if context else None,
            )
        connection.generation = generation
        self._open.add(connection)
        if not connection.open:  # meanwhile
            self._closed(connection)
        return connection

    def drop_idle(self) -> None:
        """Let the next requests have new connections; those in use may come back."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Forget all connections, once they are idle, and addresses."""
        self._context = context
        self._generation += 1
        self._addresses = None
        self.drop_idle()

    async def close(self) -> None:
        """End all connections, those in use too."""
        self.renew(self._context)
        self._all_closed.clear()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            await self._all_closed.wait()

    def _released(self, connection: EndpointConnection) -> None:
        if connection.generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()

    def _closed(self, connection: EndpointConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._open:
            self._all_closed.set()

    async def _resolved(self) -> list[Address]:
        """The host's addresses; one lookup serves all who ask meanwhile."""
        loop = asyncio.get_running_loop()
        known = self._addresses
        if known is not None and known.done():
            old = loop.time() - self._resolved_at_s > _ADDRESSES_KEPT_S
            if old or known.exception() is not None:
                known = None
        if known is None:
            known = self._addresses = self._resolver.resolve(self._host, self._port)
            self._resolved_at_s = loop.time()
        return await asyncio.shield(known)


class Resolver:
    """getaddrinfo in threads of its own.

    A lookup that hangs holds its thread for as long as the system pleases. In
    asyncio's shared pool a few of them would stall everything else that needs
    a thread, and would delay the exit.
    """

    def __init__(self) -> None:
        self._running = 0

    def resolve(self, host: str, port: int) -> asyncio.Future[list[Address]]:
        """The addresses in the system's order; the future may get an OSError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Address]] = loop.create_future()
        # Whether somebody still waits or not: an error is no defect of ours.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if (literal := _literal(host, port)) is not None:
            future.set_result([literal])
            return future
        if self._running >= _LOOKUPS_MAX:
            hang = OSError(None, f"{self._running} lookups before this one still hang")
            future.set_exception(hang)
            return future

        def settle(found: list[Address], error: OSError | None) -> None:
            self._running -= 1
            if future.done():
                return
            if error is None:
                future.set_result(found)
            else:
                future.set_exception(error)

        def work() -> None:
            found, error = _look_up(host, port)
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, found, error)

        self._running += 1
        threading.Thread(target=work, name="outboxd-lookup", daemon=True).start()
        return future


async def connected(addresses: Sequence[Address]) -> socket.socket:
    """A socket to the first address that takes a connection (RFC 8305).

    Each is tried as soon as the one before failed or took longer than a moment.

    Raises:
        OSError: what the first one said, when none does.
    """
    waiting = _interleaved(addresses)
    attempts: set[asyncio.Task[socket.socket]] = set()
    errors: list[BaseException] = []
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connect(waiting.pop(0))))
            done, attempts = await asyncio.wait(
                attempts,
                timeout=_NEXT_ADDRESS_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                if (error := task.exception()) is None:
                    attempts |= done - {task}
                    return task.result()
                errors.append(error)
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(_discard)
    raise errors[0]


async def _connect(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address.at)
    except BaseException:
        sock.close()
        raise
    return sock


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """One family after the other, the system's first choice first."""
    first = [each for each in addresses if each.family == addresses[0].family]
    others = [each for each in addresses if each.family != addresses[0].family]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if "%" in host:
        return None  # the system knows the zone's number
    return Address(socket.AF_INET6 if version == 6 else socket.AF_INET, (host, port))


def _look_up(host: str, port: int) -> tuple[list[Address], OSError | None]:
    try:
        infos = socket.getaddrinfo(
            host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
    except OSError as error:
        return [], error
    except UnicodeError as error:  # a label that is empty or too long
        return [], socket.gaierror(socket.EAI_NONAME, str(error))
    return [Address(family, at) for family, _, _, _, at in infos], None
