"""An event loop whose time passes only when nothing is left to do at this moment.

So an hour of waiting takes no time, and every run of the same history takes the
same course. Where a real loop would wait for ever, this one says so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from outboxd.clock import Clock

T = TypeVar("T")

# Rounds of the loop at one and the same moment: more is a busy loop.
ROUNDS_AT_A_MOMENT_MAX = 20_000


class Deadlock(Exception):
    """Everybody waits, and nothing is going to happen."""


class BusyLoop(Exception):
    """The loop goes round and time does not pass."""


class _Selector(selectors.BaseSelector):
    """Waits for no file: it moves the time on instead."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.rounds = 0
        self._map: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)
        self._map[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map.pop(fileobj)

    def get_map(self) -> Any:
        return self._map

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map[fileobj]

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock(f"at {self.now_s:.3f} s everybody waits for ever")
        if timeout > 0:
            self.now_s += timeout
            self.rounds = 0
        self.rounds += 1
        if self.rounds > ROUNDS_AT_A_MOMENT_MAX:
            raise BusyLoop(f"at {self.now_s:.3f} s time has stopped passing")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on virtual time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def forgive(self) -> None:
        """Go on after a busy loop, to clean up."""
        self._virtual.rounds = 0


class VirtualClock(Clock):
    """The agent's clock on a virtual loop; the wall clock may be set."""

    def __init__(self, loop: VirtualLoop, wall_ms: int = 1_750_000_000_000) -> None:
        self._loop = loop
        self._wall_ms = wall_ms

    def monotonic_s(self) -> float:
        return self._loop.time()

    def since_boot_s(self) -> float:
        return self._loop.time()

    def wall_ms(self) -> int:
        return self._wall_ms + round(self._loop.time() * 1000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, as an operator or NTP does."""
        self._wall_ms += round(seconds * 1000)


def run(loop: VirtualLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, then cancel what is left and close the loop."""
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.forgive()
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
