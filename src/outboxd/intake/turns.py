"""Turns: one piece of slow work at a time for each producer, whoever asks first.

Work that takes milliseconds is small beside one request and large beside three
hundred of one sender. Each sender has one turn, so that all others wait for at
most one piece of its work. It must never keep anything of a sender that has no
work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager


class Turns:
    """`async with turns.of(holder):`"""

    def __init__(self, waited: Callable[[], None] = lambda: None) -> None:
        """`waited` is told each time that somebody has to wait for a turn."""
        self._waited = waited
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}  # and how many want it

    @asynccontextmanager
    async def of(self, holder: Hashable) -> AsyncIterator[None]:
        """Wait for the holder's turn, and have it."""
        lock, wanted = self._locks.get(holder) or (asyncio.Lock(), 0)
        self._locks[holder] = (lock, wanted + 1)
        if wanted:
            self._waited()
        try:
            async with lock:
                yield
        finally:
            _, wanted = self._locks[holder]
            if wanted > 1:
                self._locks[holder] = (lock, wanted - 1)
            else:
                del self._locks[holder]
