"""What waits in the outbox: what comes next, what has run out, and since when it waits.

It reads the outbox and never changes it: an entry is claimed by the commit that
follows, and settled by the sender. What it remembers of entries is bounded and may
be lost: the rows have all that matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from outboxd.clock import STEP_MIN_MS, Clock
from outboxd.outbox.model import Claimed, Fetched
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.writer import Claim

# How much is read ahead: enough that no permit waits for a read, little enough
# that fresh events are soon among the next.
READ_AHEAD_MAX = 256
# Entries of which something is remembered in memory.
_REMEMBERED_MAX = 256
_EXPIRED_PORTION = 256
_CHECK_MIN_S = 1.0
# Not later than this, though nothing runs out before: the wall clock may jump.
_CHECK_MAX_S = 60.0


_STEPS_MAX = 16
# Before this no clock was right that outboxd ran on: 2020-01-01 (UTC).
_IMPLAUSIBLE_UNTIL_MS = 1_577_836_800_000


class _Offer(NamedTuple):
    """A standing offer."""

    claim: Claim
    at_most: int  # entries
    changes: int  # what `Claims.changes` was


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
        self.has_others = True  # whether there may be an entry that was not refused yet
        self._resting: dict[int, float] = {}  # set aside: until when, on the monotonic clock
        # When an entry's own backoff ends, if nothing else is to be had before.
        self.next_due_s: float | None = None
        self._offer: _Offer | None = None

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
        self.has_others = False  # the turn after an arrival sets it again
        for count in dict.fromkeys(counts):  # so many of the last refused are passed over
            await self._read(1, {*taken, *refused[len(refused) - count :]})
            if self._ahead:
                self.has_others |= count == len(refused)
                return [self._ahead.popleft()]
        self._more |= others_only  # those that were refused are still there
        return []

    def _look_for_due(self) -> None:
        if self.next_due_s is not None and self._clock.monotonic_s() >= self.next_due_s:
            self._more = self.has_others = True

    def offer(self, count: int, sending: Collection[int]) -> None:
        """Nothing is to be had now: let what comes in next be claimed as it comes,
        at most `count` entries beside those in `sending`. Until `offered` nothing
        else may be claimed."""
        self._ahead.clear()
        self._more = False
        claim = self._outbox.claim_next(
            count,
            sending,
            exclude=self._resting.keys() | set(sending),
            order="fifo" if self._fifo else "mixed",
            due_horizon_s=self._due_horizon_s,
        )
        self._offer = None if claim is None else _Offer(claim, count, self.changes)

    async def offered(self) -> Offered:
        """What has come of the offer, if there was one.

        Raises:
            DiskShort: nothing has.
        """
        offer, self._offer = self._offer, None
        if offer is None:
            return Offered([], True)
        found = await self._outbox.take_claimed(offer.claim)
        self._more = self._more or len(found) == offer.at_most
        return Offered(found, offer.changes == self.changes)

    # --- what happens to entries ---

    def put_back(self, batch: list[Claimed]) -> None:
        """These were not sent after all."""
        self._ahead.extendleft(reversed(batch))

    def look_again(self) -> None:
        """Entries came in, or came back: what was read last is no longer all."""
        self._more = self.has_others = True

    def forget(self) -> None:
        """Entries were changed: what was read may not be as they are."""
        self._ahead.clear()
        self._resting.clear()  # the due times in the rows are what counts now
        self._more = self.has_others = True
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
        changes, self._more = self.changes, False  # the turn after an arrival sets it again
        found, _, due_at = await self._fetch(wanted, excluded)
        if changes != self.changes:
            self._more = True
            return
        self._ahead.extend(found)
        self._more = self._more or len(found) == wanted
        self.next_due_s = None if self._more else self._soonest_due_s(due_at)

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


class Expiry:
    """Finds entries whose ttl ran out while they waited, a portion at a time."""

    def __init__(self, outbox: Outbox, clock: Clock, steps: ClockSteps) -> None:
        self._outbox = outbox
        self._steps = steps
        self._clock = clock
        # None: nothing that waits has a ttl.
        self.next_check_s: float | None = clock.monotonic_s()

    def arrived(self) -> None:
        """New entries may have a ttl."""
        self._check_in(_CHECK_MIN_S, self._clock.monotonic_s())

    async def check(self, taken: Collection[int]) -> list[tuple[int, str]]:
        """Seq and id of what has expired, without those in `taken`; empty between checks."""
        now_s = self._clock.monotonic_s()
        if self.next_check_s is None or now_s < self.next_check_s:
            return []
        self.next_check_s = None  # the turn after an arrival sets it again
        steps = self._steps.steps
        expired, next_at = await self._outbox.read(
            lambda engine: engine.expired(_EXPIRED_PORTION, steps)
        )
        found = [(seq, id) for seq, id in expired if seq not in taken]
        if len(found) < len(expired):
            self._check_in(_CHECK_MIN_S, now_s)  # those in flight may come back
        elif len(expired) == _EXPIRED_PORTION:
            self._check_in(0.0, now_s)
        elif next_at is None and steps:
            # Some may seem to have run out by their rows, and have time left.
            self._check_in(_CHECK_MAX_S, now_s)
        elif next_at is not None:
            wait_s = (next_at - self._clock.wall_ms()) / 1000
            self._check_in(min(max(wait_s, _CHECK_MIN_S), _CHECK_MAX_S), now_s)
        return found

    def _check_in(self, seconds: float, now_s: float) -> None:
        if self.next_check_s is None or self.next_check_s > now_s + seconds:
            self.next_check_s = now_s + seconds


class Step(NamedTuple):
    """The clock was set forward, once and perhaps again later."""

    until_at: int  # what it showed: times up to here are from before
    forward_ms: int  # by how much in all, from then until now


class ClockSteps:
    """What the wall clock was when entries came in, if it has been set since.

    A host without a battery for its clock starts in 1970, takes events, and is told
    the time a minute later. Then a ttl of an hour must not have run out, and an
    event that is a minute old must not say that it is decades late. So steps of the
    clock forward are remembered, and times from before one are read as what the
    clock should have shown then. (After a step back times lie in the future, which
    every reader of them allows for.)
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.times_set = 0  # how often the clock was set, either way
        now_ms = clock.wall_ms()
        self._offset_ms = now_ms - self._elapsed_ms()
        # What a process before this one took while the clock was wrong: how long
        # ago that was nobody knows, so it counts from now.
        is_right = now_ms > _IMPLAUSIBLE_UNTIL_MS
        self.steps = [Step(_IMPLAUSIBLE_UNTIL_MS, now_ms)] if is_right else []

    def look(self) -> None:
        """See whether the clock was set since the last look."""
        now_ms, elapsed_ms = self._clock.wall_ms(), self._elapsed_ms()
        expected_ms = self._offset_ms + elapsed_ms
        self._offset_ms = now_ms - elapsed_ms
        if now_ms - expected_ms >= STEP_MIN_MS:
            forward_ms = now_ms - expected_ms
            steps = [Step(step.until_at, step.forward_ms + forward_ms) for step in self.steps]
            self.steps = [*steps, Step(expected_ms, forward_ms)][-_STEPS_MAX:]
        self.times_set += abs(now_ms - expected_ms) >= STEP_MIN_MS

    def corrected(self, at: int) -> int:
        """A stored time of this host's clock, as it should have been."""
        for step in self.steps:
            if at <= step.until_at:
                return at + step.forward_ms
        return at

    def correct(self, entry: Claimed) -> Claimed:
        """An entry as it was read, with its times as they should have been. (Not twice:
        a corrected time may look as if it were from before.)"""
        received_at = self.corrected(entry.received_at)
        forward_ms = received_at - entry.received_at
        if not forward_ms:
            return entry
        occurred_at, expires_at = entry.occurred_at, entry.expires_at
        if occurred_at is not None and occurred_at <= _IMPLAUSIBLE_UNTIL_MS:
            occurred_at += forward_ms
        if expires_at is not None:
            expires_at += forward_ms
        return entry._replace(
            received_at=received_at, occurred_at=occurred_at, expires_at=expires_at
        )

    def _elapsed_ms(self) -> int:
        return round(self._clock.since_boot_s() * 1000)
