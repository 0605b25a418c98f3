"""Where a look for entries that are due begins, so that it need not pass the dead.

A row that was settled stays in the index until vacuum may take it out, which it may not
while any snapshot anywhere in the server is older: a backup of an hour leaves an hour of
them. So the deliverer remembers how far it has come from either end. It must never pass
an entry over for good: what comes in behind the cursor (a transaction that took its
number early and committed late, an entry that waits again) is found by a look from the
very start, at the latest a while later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter

from outboxd.clock import Clock
from outboxd.outbox.model import Settlement, State

# With nothing left to send: so soon the next look from the start.
LOOK_AGAIN_S = 1.0
# While there is: so often, and never more than one part in so many of the time.
_FROM_START_S = 5.0
_SHARE = 20
_SEQ_MAX = 1 << 62


class Cursor:
    """Of one deliverer. Its numbers are plain, so that another thread may reset it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """The next look is from the start."""
        self.oldest = 0  # none that is due was older when last looked for
        self.highest = 0  # the highest seq that was found so far
        self.newest = _SEQ_MAX  # of those up to `highest` none that is due is newer
        self._from_start_s = float("-inf")  # when a look from the start last ended
        self._took_s = 0.0
        self._began_s: float | None = None
        self.saw_all = True

    def start(self) -> int:
        """From which seq on to look for the oldest."""
        now_s = self._clock.monotonic_s()
        if now_s - self._from_start_s >= max(_FROM_START_S, _SHARE * self._took_s):
            self.oldest = 0
        if self.oldest == 0:
            self._began_s = perf_counter()
        self.saw_all = self.oldest == 0
        return self.oldest

    def may_look_from_start(self) -> bool:
        """Too few were found: whether to look from the start now; `start` then says so."""
        if self.saw_all:
            return False
        now_s = self._clock.monotonic_s()
        if now_s - self._from_start_s < max(LOOK_AGAIN_S, _SHARE * self._took_s):
            return False
        self.oldest = 0
        return True

    def found_oldest(self, found: Sequence[int], taken: Iterable[int]) -> None:
        """What a look found, without those in `taken`, which are not settled yet."""
        if self._began_s is not None:
            self._took_s, self._began_s = perf_counter() - self._began_s, None
            self._from_start_s = self._clock.monotonic_s()
        if found:
            self.oldest = min((found[0], *taken))

    def found_newest(self, found: Sequence[int]) -> None:
        """What a look from the other end found, the newest first."""
        if found:
            self.highest = max(self.highest, found[0])
            self.newest = found[-1]

    def may_wait_again(self, settlements: Iterable[Settlement]) -> None:
        """These were settled; those that are pending stand where they stood."""
        for each in settlements:
            if each.state == State.PENDING and each.due_at == 0:
                self.oldest = min(self.oldest, each.seq)
