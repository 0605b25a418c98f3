"""How much of the agent's time its pages may take: the less, the more it does itself.

Everything that pages cause (counts, searches, reading the outbox) takes its turns
here, in slices of a millisecond or two, so that together they never take more than
their share. An idle agent gives a quarter of itself, one that drains a backlog a
twentieth: then a search takes longer, and looks so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic, perf_counter, process_time, thread_time
from typing import Protocol, TypeVar

from outboxd.outbox.engine import Engine
from outboxd.outbox.model import Counts

T = TypeVar("T")

SLICE_S = 0.001  # of work on the loop or by the writer, before others get their turn
WINDOW_S = 0.2  # over which it is measured how busy the process is
# A pause is so many times as long as the work before it, and with a busy core so many longer.
PAUSES = 3.0
BUSY_PAUSES = 17.0


class ReadableOutbox(Protocol):
    """What is read of the outbox."""

    @property
    def counts(self) -> Counts: ...

    def read(self, verb: Callable[[Engine], T]) -> Awaitable[T]: ...


class Pace:
    """The turns of all pages of one program."""

    def __init__(
        self,
        now_s: Callable[[], float] = monotonic,
        cpu_s: Callable[[], float] = process_time,
        limit_met: Callable[[str], None] = lambda limit: None,
    ) -> None:
        """`limit_met` is told of each pause."""
        self.limit_met = limit_met
        self._now_s = now_s
        self._cpu_s = cpu_s
        self._free_at_s = float("-inf")
        self._load = 0.0
        self._window_began_s = now_s()
        self._window_cpu_s = cpu_s()
        self._window_used_s = 0.0

    async def turn(self) -> None:
        """Wait until work may go on; at once where none was done for a while."""
        wait_s = self._free_at_s - self._now_s()
        if wait_s > 0:
            self.limit_met("paced")
            await asyncio.sleep(wait_s)

    def used(self, seconds: float) -> None:
        """So much work was done: the next turn comes after a pause."""
        self._window_used_s += seconds
        pause_s = seconds * (PAUSES + BUSY_PAUSES * self._measure() ** 2)
        self._free_at_s = max(self._free_at_s, self._now_s()) + pause_s

    async def read(self, outbox: ReadableOutbox, verb: Callable[[Engine], T]) -> T:
        """A slice of the writer's time, in its turn; where reading has a connection of its
        own, of a server's, which pages may have half of the time."""
        took_s = 0.0

        def timed(engine: Engine) -> T:
            nonlocal took_s
            began_s, began_cpu_s = perf_counter(), thread_time()
            try:
                return verb(engine)
            finally:
                took_s = perf_counter() - began_s
                if engine.reads_apart:
                    took_s = max(thread_time() - began_cpu_s, took_s / PAUSES)

        await self.turn()
        try:
            return await outbox.read(timed)
        finally:
            self.used(took_s)

    def _measure(self) -> float:
        """How much of a core the process takes for all else than its pages; at most 1."""
        now_s = self._now_s()
        took_s = now_s - self._window_began_s
        if took_s >= WINDOW_S:
            cpu_s = self._cpu_s()
            others_s = cpu_s - self._window_cpu_s - self._window_used_s
            self._load = min(1.0, max(0.0, others_s / took_s))
            self._window_began_s, self._window_cpu_s, self._window_used_s = now_s, cpu_s, 0.0
        return self._load


class Slices:
    """Work on the loop, cut into slices."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began_s = perf_counter()

    async def rest(self) -> None:
        """Let others go first where a slice is used up; costs next to nothing where not."""
        took_s = perf_counter() - self._began_s
        if took_s > SLICE_S:
            self._pace.used(took_s)
            await self._pace.turn()
            self._began_s = perf_counter()
