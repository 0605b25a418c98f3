"""What the wall clock was when entries came in, if it has been set since.

A host without a battery for its clock starts in 1970, takes events, and is told
the time a minute later. Then a ttl of an hour must not have run out, and an
event that is a minute old must not say that it is decades late. So steps of the
clock forward are remembered, and times from before one are read as what the
clock should have shown then. (After a step back times lie in the future, which
every reader of them allows for.) It never changes what is stored.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.outbox.model import Claimed

# Less is a clock that is slewed, and a moment between two readings.
_STEP_MIN_MS = 2000
_REMEMBERED_MAX = 16
# Before this no clock was right that outboxd ran on: 2020-01-01 (UTC).
_IMPLAUSIBLE_UNTIL_MS = 1_577_836_800_000


class Step(NamedTuple):
    """The clock was set forward, once and perhaps again later."""

    until_at: int  # what it showed: times up to here are from before
    forward_ms: int  # by how much in all, from then until now


class ClockSteps:
    """Watches the wall clock against the one that is never set."""

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
        if now_ms - expected_ms >= _STEP_MIN_MS:
            forward_ms = now_ms - expected_ms
            steps = [Step(step.until_at, step.forward_ms + forward_ms) for step in self.steps]
            self.steps = [*steps, Step(expected_ms, forward_ms)][-_REMEMBERED_MAX:]
        self.times_set += abs(now_ms - expected_ms) >= _STEP_MIN_MS

    def corrected(self, at: int) -> int:
        """A stored time of this host's clock, as it should have been."""
        return at + next((s.forward_ms for s in self.steps if at <= s.until_at), 0)

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
