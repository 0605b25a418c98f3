"""Finds entries whose ttl ran out while they waited, a portion at a time.

It only finds them: to settle them is the sender's.
"""

from __future__ import annotations

from collections.abc import Collection

from outboxd.clock import Clock
from outboxd.delivery.clock_steps import ClockSteps
from outboxd.outbox.outbox import Outbox

_PORTION = 256
_CHECK_MIN_S = 1.0
# Not later than this, though nothing runs out before: the wall clock may jump.
_CHECK_MAX_S = 60.0


class Expiry:
    """When to look, and what has expired."""

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
        self.next_check_s = None  # an arrival meanwhile sets it again
        steps = self._steps.steps
        expired, next_at = await self._outbox.read(lambda engine: engine.expired(_PORTION, steps))
        found = [(seq, id) for seq, id in expired if seq not in taken]
        if len(found) < len(expired):
            self._check_in(_CHECK_MIN_S, now_s)  # those in flight may come back
        elif len(expired) == _PORTION:
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
