"""What a file of SQLite's needs now and then: ballast, checkpoints, room, a look for damage.

Each step is short: commits wait for it. It knows nothing of events.
"""

from __future__ import annotations

import asyncio

from outboxd.clock import Clock
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue.scrub import Scrubber
from outboxd.outbox.upkeep import TICK_S, UpkeepJob

SCRUB_REST_S = 3600.0  # between looks at every checksum of the outbox
SPARE_BYTES = 16 * 1024 * 1024  # of free disk, before ballast is laid out
# Free pages are returned where they are many and a good part of the file, so few
# at a time that no commit waits long, and so many at once that 50 MB take a minute.
FREE_PAGES_KEPT = 512
GIVE_BACK_PAGES = 128
GIVE_BACK_STEPS = 32


class FileUpkeep:
    """The jobs of one open file."""

    def __init__(self, outbox: Outbox, engine: SqliteEngine) -> None:
        self._outbox = outbox
        self._engine = engine
        self._clock: Clock = engine.clock
        self._scrubber = Scrubber(outbox, engine)
        self._scrubbed_passes = 0
        self._scrub_after_s = self._clock.monotonic_s()
        self._log_bytes_before = 0

    def jobs(self) -> list[UpkeepJob]:
        """What to run, and how often."""
        return [
            UpkeepJob("ballast", 30.0, self.lay_ballast),
            UpkeepJob("checkpoint", TICK_S, self.checkpoint_when_idle),
            UpkeepJob("give_back", TICK_S, self.give_back),
            UpkeepJob("scrub", TICK_S, self.scrub),
        ]

    async def lay_ballast(self) -> None:
        """Keep room back for the moment when the disk is full."""
        ballast = self._engine.ballast
        if not ballast.present():
            await asyncio.to_thread(ballast.lay, SPARE_BYTES)

    async def checkpoint_when_idle(self) -> None:
        """Empty a log that has not grown for a tick: a small log is soon checked."""
        log_bytes = self._engine.log_bytes()
        if log_bytes and log_bytes == self._log_bytes_before:
            await self._outbox.read(lambda _: self._engine.empty_log())
            log_bytes = self._engine.log_bytes()
        self._log_bytes_before = log_bytes

    async def give_back(self) -> None:
        """Return some free pages to the file system when there are many."""

        def step(_: object) -> bool:
            free, pages = self._engine.free_pages()
            if free <= FREE_PAGES_KEPT or free * 4 <= pages:
                return False
            self._engine.give_back(GIVE_BACK_PAGES)
            return True

        for _ in range(GIVE_BACK_STEPS):
            if not await self._outbox.read(step):
                return

    async def scrub(self) -> None:
        """Look at a slice of the outbox: is every row the one that was written?

        Raises:
            OutboxDamaged: the structure is damaged; the next start salvages.
        """
        if self._clock.monotonic_s() < self._scrub_after_s:
            return
        await self._scrubber.step()
        if self._scrubber.passes > self._scrubbed_passes:
            self._scrubbed_passes = self._scrubber.passes
            self._scrub_after_s = self._clock.monotonic_s() + SCRUB_REST_S
