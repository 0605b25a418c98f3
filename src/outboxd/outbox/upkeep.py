"""What must be done with any outbox now and then: prune, forget, look again.

Every step is short and none of them is on the way of an event. What one kind of
database needs besides is its engine's own upkeep (`sqlite.upkeep`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.outbox.model import PruneStep
from outboxd.outbox.outbox import Outbox

TICK_S = 5.0
# A step of pruning looks at so many entries: a few ms, so that no commit waits.
PRUNE_WINDOW = 100
PRUNE_REST_S = 600.0  # between passes that found nothing to delete
DEDUP_STEP = 500


class UpkeepJob(NamedTuple):
    """Something to do every so often."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[None]]


class OutboxUpkeep:
    """The jobs that keep an outbox small, and in memory what it cannot count along."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        on_pruned: Callable[[int], None],
        retain_delivered_s: float,
    ) -> None:
        """`on_pruned` hears how many entries a pass has deleted."""
        self._outbox = outbox
        self._clock = clock
        self._on_pruned = on_pruned
        self.retain_delivered_s = retain_delivered_s
        self._rest_until_s = 0.0
        self._rest_for_s = -1.0

    def jobs(self) -> list[UpkeepJob]:
        """What to run, and how often."""
        return [
            UpkeepJob("refresh", TICK_S, self.refresh),
            UpkeepJob("prune", TICK_S, self.prune),
            UpkeepJob("dedup", 30.0, self.prune_dedup),
        ]

    async def refresh(self) -> None:
        """The oldest pending entry, for status and metrics."""
        counts = self._outbox.counts
        if counts.pending or counts.dead or self._outbox.oldest_pending_at is not None:
            await self._outbox.refresh()

    async def prune(self) -> None:
        """One pass over what was delivered long ago, in steps between which others commit."""
        now_s = self._clock.monotonic_s()
        rested = now_s >= self._rest_until_s or self._rest_for_s != self.retain_delivered_s
        if not self._outbox.counts.delivered or not rested:
            return
        ended_before = self._clock.wall_ms() - round(self.retain_delivered_s * 1000)
        after_seq: int | None = 0
        deleted_in_pass = 0
        while after_seq is not None:
            after_seq, deleted = await self._prune_step(after_seq, ended_before)
            deleted_in_pass += deleted
        if deleted_in_pass:
            self._on_pruned(deleted_in_pass)
        self._rest_for_s = self.retain_delivered_s
        # With a short retention a pass must come as often as it is long.
        rest_s = min(PRUNE_REST_S, max(TICK_S, self.retain_delivered_s / 20))
        self._rest_until_s = now_s + rest_s

    async def _prune_step(self, after_seq: int, ended_before: int) -> PruneStep:
        return await self._outbox.change(
            lambda engine: engine.prune(after_seq, PRUNE_WINDOW, ended_before)
        )

    async def prune_dedup(self) -> None:
        """Forget identities whose window has ended, in steps."""
        while (
            await self._outbox.change(lambda engine: engine.prune_dedup(DEDUP_STEP)) == DEDUP_STEP
        ):
            pass
