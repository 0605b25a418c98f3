"""How a connection is made: from a name to its addresses, and to the first that answers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import NamedTuple

_LOOKUPS_MAX = 4  # of lookups that hang; each holds a thread until the system gives up
_NEXT_ADDRESS_S = 0.25  # RFC 8305's Connection Attempt Delay


class Address(NamedTuple):
    """Where a name leads."""

    family: int
    at: tuple[object, ...]  # as socket.connect takes it


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
