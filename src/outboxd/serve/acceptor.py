"""Takes connections from a listening socket, and decides on each before it costs anything.

The event loop's own server makes a transport of every connection first. Here
who is there is asked of the kernel right after accept(2), and whoever is over
its limit is refused with three system calls, so that a flood is turned away
faster than it comes and the queue of those who wait to be accepted stays short.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

BACKLOG = 4096
# How much is done in a row, before open connections get their turn.
_ACCEPT_S = 0.002
_TAKEN_MAX = 32
_LINGERING_MAX = 64  # refused ones that are kept open until their refusal was read
_LINGER_S = 0.2
_REST_S = 0.1  # where the process has no descriptor left
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """`arrived(socket)` answers None for a connection that it took, else what makes the
    bytes of a refusal, which a flood is not worth."""

    def __init__(
        self,
        listening: socket.socket,
        arrived: Callable[[socket.socket], Callable[[], bytes] | None],
    ) -> None:
        self._listening = listening
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None
        self._lingering: dict[asyncio.TimerHandle, socket.socket] = {}
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Take no more."""
        if self._listening.fileno() < 0:
            return
        self._loop.remove_reader(self._listening.fileno())
        if self._resting is not None:
            self._resting.cancel()
        for handle, refused in self._lingering.items():
            handle.cancel()
            refused.close()
        self._lingering.clear()
        self._listening.close()

    def _accept(self) -> None:
        ends_s = perf_counter() + _ACCEPT_S
        taken = 0
        while taken < _TAKEN_MAX and perf_counter() < ends_s:
            try:
                connected, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_MEANS:
                    self._rest()
                    return
                continue  # that one has gone again
            refusal = self._arrived(connected)
            if refusal is not None:
                self._refuse(connected, refusal)
                continue
            taken += 1

    def _refuse(self, connected: socket.socket, refusal: Callable[[], bytes]) -> None:
        if len(self._lingering) >= _LINGERING_MAX:
            connected.close()  # a flood: not worth a word
            return
        with suppress(OSError):
            connected.setblocking(False)
            connected.send(refusal())
            connected.shutdown(socket.SHUT_WR)

        def end() -> None:
            self._lingering.pop(handle, None)
            connected.close()

        handle = self._loop.call_later(_LINGER_S, end)
        self._lingering[handle] = connected

    def _rest(self) -> None:
        """Without a descriptor nothing can be accepted, and the socket stays readable."""
        self._loop.remove_reader(self._listening.fileno())
        self._resting = self._loop.call_later(_REST_S, self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listening.fileno(), self._accept)
