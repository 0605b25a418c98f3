"""Which entries come next: read ahead of the sender, in the order that is wanted.

It reads the outbox and never changes it: an entry is claimed by the commit that
follows. What it remembers of entries is bounded and may be lost: the rows have
all that matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.outbox.model import Claimed, Fetched
from outboxd.outbox.outbox import Outbox

# How much is read ahead: enough that no permit waits for a read, little enough
# that fresh events are soon among the next.
READ_AHEAD_MAX = 256
# Entries of which something is remembered in memory.
_REMEMBERED_MAX = 256


class Offered(NamedTuple):
    """What came of an offer: the outbox has these as in flight."""

    entries: list[Claimed]
    unchanged: bool  # whether nobody has changed entries since the offer


class Claims:
    """Hands out the next entries to send."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        order: str,
        fresh_share: float,
        due_horizon_s: float,
        read_ahead: bool,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self.configure(order, fresh_share, due_horizon_s, read_ahead)
        self.changes = 0  # how often the operator has changed entries, or settings were
        self._ahead: deque[Claimed] = deque()
        self._more = True  # whether the outbox may have more than what was read
        self._fresh_owed = 0.0  # what rounding has kept from the newest so far
        self._others = True  # whether there may be one that was not refused yet
        self._resting: dict[int, float] = {}  # set aside: until when, on the monotonic clock
        self._next_due_s: float | None = None
        self._offered: tuple[int, int] | None = None  # how many, and `changes` then

    def configure(
        self, order: str, fresh_share: float, due_horizon_s: float, read_ahead: bool
    ) -> None:
        """Other settings, from the next read on."""
        self._fifo = order == "fifo"
        self._fresh_share = fresh_share
        self._due_horizon_s = due_horizon_s
        self._reads_ahead = read_ahead and not self._fifo

    # --- what the sender asks ---

    @property
    def promising(self) -> bool:
        """Whether there may be an entry to claim now."""
        return bool(self._ahead) or self._more

    @property
    def has_others(self) -> bool:
        """Whether there may be an entry that was not refused yet."""
        return self._others

    @property
    def next_due_s(self) -> float | None:
        """When an entry's own backoff ends, if nothing else is to be had before."""
        return self._next_due_s

    async def next(self, count: int, taken: Collection[int]) -> list[Claimed]:
        """At most `count` entries that are due, without those in `taken`."""
        self._look_for_due()
        if not self._reads_ahead:
            self._ahead.clear()
            self._more = True
        if len(self._ahead) < count and self._more:
            target = min(4 * count, READ_AHEAD_MAX) if self._reads_ahead else count
            await self._read(max(target, count) - len(self._ahead), taken)
        batch: list[Claimed] = []
        while self._ahead and len(batch) < count:
            entry = self._ahead.popleft()
            if entry.seq not in taken:
                batch.append(entry)
        return batch

    async def probe(
        self, taken: Collection[int], refused: Sequence[int], *, others_only: bool
    ) -> list[Claimed]:
        """The entry to probe with, if there is one: one that is not in `refused`,
        else of those the ones refused longest ago (they stand first)."""
        self._look_for_due()
        self._ahead.clear()
        counts = [len(refused)] if others_only else [len(refused), (len(refused) + 1) // 2, 0]
        self._others = False  # an arrival while reading sets it again
        for count in dict.fromkeys(counts):  # so many of the last refused are passed over
            await self._read(1, {*taken, *refused[len(refused) - count :]})
            if self._ahead:
                self._others |= count == len(refused)
                return [self._ahead.popleft()]
        self._more |= others_only  # those that were refused are still there
        return []

    def _look_for_due(self) -> None:
        if self._next_due_s is not None and self._clock.monotonic_s() >= self._next_due_s:
            self._more = self._others = True

    def offer(self, count: int, sending: Collection[int]) -> None:
        """Nothing is to be had now: let what comes in next be claimed as it comes,
        at most `count` entries beside those in `sending`. Until `offered` nothing
        else may be claimed."""
        self._offered = (count, self.changes)
        self._ahead.clear()
        self._more = False
        self._outbox.claim_next(
            count,
            sending,
            exclude=self._resting.keys() | set(sending),
            order="fifo" if self._fifo else "mixed",
            due_horizon_s=self._due_horizon_s,
        )

    async def offered(self) -> Offered:
        """What has come of the offer, if there was one.

        Raises:
            DiskShort: nothing has.
        """
        if self._offered is None:
            return Offered([], True)
        (count, changes), self._offered = self._offered, None
        found = await self._outbox.take_claimed()
        self._more = self._more or len(found) == count
        return Offered(found, changes == self.changes)

    # --- what happens to entries ---

    def put_back(self, batch: list[Claimed]) -> None:
        """These were not sent after all."""
        self._ahead.extendleft(reversed(batch))

    def look_again(self) -> None:
        """Entries came in, or came back: what was read last is no longer all."""
        self._more = self._others = True

    def forget(self) -> None:
        """Entries were changed: what was read may not be as they are."""
        self._ahead.clear()
        self._resting.clear()  # the due times in the rows are what counts now
        self._more = self._others = True
        self.changes += 1

    def rests(self, seq: int, delay_s: float) -> None:
        """It waits by itself for so long, whatever becomes of the wall clock."""
        if len(self._resting) < _REMEMBERED_MAX:
            self._resting[seq] = self._clock.monotonic_s() + delay_s

    # --- reading ---

    async def _read(self, wanted: int, taken: Collection[int]) -> None:
        now_s = self._clock.monotonic_s()
        self._resting = {seq: due_s for seq, due_s in self._resting.items() if due_s > now_s}
        excluded = {entry.seq for entry in self._ahead}.union(taken, self._resting)
        changes, self._more = self.changes, False  # an arrival while reading sets it again
        found, _, due_at = await self._fetch(wanted, excluded)
        if changes != self.changes:
            self._more = True
            return
        self._ahead.extend(found)
        self._more = self._more or len(found) == wanted
        self._next_due_s = None if self._more else self._soonest_due_s(due_at)

    async def _fetch(self, count: int, taken: set[int]) -> Fetched:
        # The newest get their share over several reads, even of one entry each.
        self._fresh_owed += count * self._fresh_share
        fresh = min(count, int(self._fresh_owed))
        found = await self._outbox.fetch(
            count,
            exclude=taken,
            order="fifo" if self._fifo else "mixed",
            fresh_share=fresh / count,
            due_horizon_s=self._due_horizon_s,
        )
        if found.entries:
            self._fresh_owed -= fresh
        self._fresh_owed = min(self._fresh_owed, 1.0)
        return found

    def _soonest_due_s(self, due_at: int | None) -> float | None:
        """When to look again for an entry that waits for its own backoff."""
        now_s = self._clock.monotonic_s()
        waits_s = [due_s - now_s for due_s in self._resting.values()]
        if due_at is not None:
            waits_s.append((due_at - self._clock.wall_ms()) / 1000)
        if not waits_s:
            return None
        # The wall clock may have jumped since the due time was written.
        return now_s + min(max(0.0, min(waits_s)), self._due_horizon_s)
