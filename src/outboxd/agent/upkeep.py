"""What must be done now and then while the agent runs: prune, check, lay ballast.

One coroutine with one slow tick; every step is short and none of them is on
the way of an event. An idle agent wakes a few times a minute for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.errors import DiskShort, OutboxdError
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.outbox.connection import OutboxDamaged
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.rescue.scrub import Scrubber

TICK_S = 5.0
# A step of pruning looks at so many entries: a few ms, so that no commit waits.
PRUNE_WINDOW = 100
PRUNE_REST_S = 600.0  # between passes that found nothing to delete
DEDUP_STEP = 500
SCRUB_REST_S = 3600.0  # between looks at every checksum of the outbox
SPARE_BYTES = 16 * 1024 * 1024  # of free disk, before ballast is laid out


class Job(NamedTuple):
    """Something to do every so often."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[None]]


class Upkeep:
    """Runs the jobs, one after the other, until cancelled."""

    def __init__(self, clock: Clock, jobs: list[Job]) -> None:
        self._clock = clock
        self._jobs = jobs
        self._log = get_logger("upkeep")

    async def run(self) -> None:
        """Until cancelled; a job that fails is told and tried again next time."""
        due_s = {job.name: 0.0 for job in self._jobs}
        while True:
            for job in self._jobs:
                if self._clock.monotonic_s() < due_s[job.name]:
                    continue
                try:
                    await job.run()
                except DiskShort:
                    pass  # told by the intake; it is tried again by itself
                except OutboxDamaged:
                    raise  # the agent stops, and recovers at its next start
                except OutboxdError as error:
                    self._log.warning(
                        "upkeep.failed", job=job.name, error=error.message, hint=error.hint
                    )
                due_s[job.name] = self._clock.monotonic_s() + job.every_s
            await asyncio.sleep(TICK_S)


class OutboxUpkeep:
    """The jobs that keep the outbox small, and in memory what it cannot count along."""

    def __init__(
        self, outbox: Outbox, clock: Clock, metrics: Metrics, retain_delivered_s: float
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self.retain_delivered_s = retain_delivered_s
        self._position = 0
        self._rest_until_s = 0.0
        self._rest_for_s = -1.0
        self._scrubber = Scrubber(outbox)
        self._scrubbed_passes = 0
        self._scrub_after_s = clock.monotonic_s()
        self._wal_bytes_before = 0

    def jobs(self) -> list[Job]:
        """What to run, and how often."""
        return [
            Job("refresh", TICK_S, self.refresh),
            Job("ballast", 30.0, self.lay_ballast),
            Job("checkpoint", TICK_S, self.checkpoint_when_idle),
            Job("prune", TICK_S, self.prune),
            Job("dedup", 30.0, self.prune_dedup),
            Job("give_back", 60.0, self._outbox.give_back),
            Job("scrub", TICK_S, self.scrub),
        ]

    async def refresh(self) -> None:
        """The oldest pending entry, for status and metrics."""
        if self._outbox.counts.pending or self._outbox.oldest_pending_at is not None:
            await self._outbox.refresh()

    async def lay_ballast(self) -> None:
        """Keep room back for the moment when the disk is full."""
        ballast = self._outbox.ballast
        if not ballast.present():
            await asyncio.to_thread(ballast.lay, SPARE_BYTES)

    async def checkpoint_when_idle(self) -> None:
        """Empty a log that has not grown for a tick: a small log is soon checked."""
        wal_bytes = self._outbox.wal_bytes()
        if wal_bytes and wal_bytes == self._wal_bytes_before:
            await self._outbox.checkpoint()
            wal_bytes = self._outbox.wal_bytes()
        self._wal_bytes_before = wal_bytes

    async def prune(self) -> None:
        """One pass over what was delivered long ago, in steps between which others commit."""
        now_s = self._clock.monotonic_s()
        rested = now_s >= self._rest_until_s or self._rest_for_s != self.retain_delivered_s
        if not self._outbox.counts.delivered or not rested:
            return
        ended_before = self._clock.wall_ms() - round(self.retain_delivered_s * 1000)
        position: int | None = 0
        deleted_in_pass = 0
        while position is not None:
            position, deleted = await self._outbox.prune(position, PRUNE_WINDOW, ended_before)
            deleted_in_pass += deleted
        if deleted_in_pass:
            self._metrics.pruned(deleted_in_pass)
        self._rest_for_s = self.retain_delivered_s
        # With a short retention a pass must come as often as it is long.
        rest_s = min(PRUNE_REST_S, max(TICK_S, self.retain_delivered_s / 20))
        self._rest_until_s = now_s + rest_s

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

    async def prune_dedup(self) -> None:
        """Forget identities whose window has ended, in steps."""
        while await self._outbox.prune_dedup(DEDUP_STEP) == DEDUP_STEP:
            pass
