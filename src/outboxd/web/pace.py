"""How much of the agent's time its pages may take: the less, the more it does itself.

Everything that pages cause (counts, searches, reading the outbox) takes its turns
here, one after the other and in slices of a millisecond or less, so that together they
never take more than their share. An idle agent gives two thirds of itself, one that a
hundred events a second pass through a seventh, one that drains a backlog a twentieth:
then a search takes longer, and looks so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic, perf_counter, process_time, thread_time
from typing import Protocol, TypeVar

from outboxd.outbox.engine import Engine
from outboxd.outbox.model import Counts

T = TypeVar("T")

# Of work on the loop or by the writer, before others get their turn: where nothing else is
# to be done, and where events come or go.
IDLE_SLICE_S, SLICE_S = 0.001, 0.0005
TURN_S = 0.0002  # what a turn costs beside its work, on the loop and between the threads
SOON_S = 0.0005  # a shorter wait is left for the next: the loop's clock has milliseconds
WINDOW_S = 0.2  # over which it is measured how busy the process is
# A pause is so many times as long as the work before it where nothing else is to be done,
IDLE_PAUSES = 0.5
# so many times where events come or go, and with a busy core so many longer.
PAUSES = 6.0
BUSY_PAUSES = 17.0
# From so much on it is traffic: changes of the counts a second, of which an event makes one
# or two, and parts of a core, of which turns themselves take some hundredths.
TRAFFIC_CHANGES = 100.0
TRAFFIC_LOAD = 0.3
TRAFFIC_KEPT = 0.7  # from one window to the next: on a busy machine it comes in bursts
_NOTHING = Counts(0, 0, 0, 0)


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
        counts: Callable[[], Counts] = lambda: _NOTHING,
    ) -> None:
        """`limit_met` is told of each pause; `counts` are the outbox's, whose changes
        are the traffic."""
        self.limit_met = limit_met
        self._now_s = now_s
        self._cpu_s = cpu_s
        self._counts = counts
        self._next = asyncio.Lock()  # who comes first goes first
        self._free_at_s = float("-inf")
        self._taken_until_s = float("-inf")
        self._owed_s = 0.0  # of a pause that was too short to wait for
        self._load = 0.0
        self._traffic = 1.0  # 0: none; 1: enough for pages to stand back, as until it is known
        self._window_counts = counts()
        self._window_began_s = now_s()
        self._window_cpu_s = cpu_s()
        self._window_used_s = 0.0

    @property
    def slice_s(self) -> float:
        """How long a piece of work may be now."""
        return IDLE_SLICE_S + (SLICE_S - IDLE_SLICE_S) * self._traffic

    @property
    def part(self) -> float:
        """So much of the piece that it may be with nothing beside it; for what is not
        measured as it goes."""
        return self.slice_s / IDLE_SLICE_S

    async def turn(self) -> None:
        """Wait until work may go on; at once where none was done for a while.

        One at a time and in the order in which they came: pieces that fall together would
        be one long piece to whoever waits for a receipt.
        """
        async with self._next:
            while (wait_s := self._wait_s()) > SOON_S:
                self.limit_met("paced")
                await asyncio.sleep(wait_s)
            self._owed_s = max(0.0, wait_s)
            self._taken_until_s = self._now_s() + self.slice_s

    def used(self, seconds: float) -> None:
        """So much work was done: the next turn comes after a pause."""
        self._taken_until_s = float("-inf")
        self._window_used_s += seconds + TURN_S
        self._measure()
        pauses = IDLE_PAUSES + (PAUSES - IDLE_PAUSES) * self._traffic
        pause_s = self._owed_s + seconds * (pauses + BUSY_PAUSES * self._load**2)
        self._owed_s = 0.0
        self._free_at_s = max(self._free_at_s, self._now_s()) + pause_s

    def _wait_s(self) -> float:
        return max(self._free_at_s, self._taken_until_s) - self._now_s()

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

    def _measure(self) -> None:
        """How much of a core the process takes for all else than its pages, at most 1,
        and how much that and the events that came and went are."""
        now_s = self._now_s()
        took_s = now_s - self._window_began_s
        if took_s < WINDOW_S:
            return
        cpu_s, counts = self._cpu_s(), self._counts()
        others_s = cpu_s - self._window_cpu_s - self._window_used_s
        self._load = min(1.0, max(0.0, others_s / took_s))
        changes = sum(abs(a - b) for a, b in zip(counts, self._window_counts, strict=True))
        busy = max(changes / took_s / TRAFFIC_CHANGES, self._load / TRAFFIC_LOAD)
        self._traffic = max(min(1.0, busy), self._traffic * TRAFFIC_KEPT)
        self._window_began_s, self._window_cpu_s, self._window_used_s = now_s, cpu_s, 0.0
        self._window_counts = counts


class Slices:
    """Work on the loop, cut into slices."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began_s = perf_counter()

    async def rest(self) -> None:
        """Let others go first where a slice is used up; costs next to nothing where not."""
        took_s = perf_counter() - self._began_s
        if took_s > self._pace.slice_s:
            self._pace.used(took_s)
            await self._pace.turn()
            self._began_s = perf_counter()
