"""Who delivers: a lease that a gateway holds for a while, and a fence behind it.

Pure: what the database said and what the clock shows go in, what may be done comes
out. It must never let a holder launch a request after its lease can have ended: the
holder's own clock counts from *before* the statement that renewed the lease was
sent, and runs while the host is suspended (CLOCK_BOOTTIME).
"""

from __future__ import annotations

from typing import NamedTuple

# A holder stops so much before the end of its lease: its requests are on their way by then.
MARGIN_SHARE = 0.2
# How often a holder renews, and who waits looks, in shares of the lease.
RENEW_SHARE = 1 / 3


class Lease(NamedTuple):
    """A term of delivering, as its holder knows it."""

    holder: str  # a fresh UUID each term
    turn: int  # grows with every renewal; what a former holder knows is smaller
    asked_at_s: float  # since boot, before the statement that gave or renewed it was sent
    length_s: float

    def may_launch(self, now_s: float) -> bool:
        """Whether a request may still be sent."""
        return now_s - self.asked_at_s < self.length_s * (1 - MARGIN_SHARE)

    def renew_at_s(self) -> float:
        """When to renew it, since boot."""
        return self.asked_at_s + self.length_s * RENEW_SHARE

    def renewed(self, turn: int, asked_at_s: float) -> Lease:
        """After a renewal that the database confirmed."""
        assert turn > self.turn, "a turn is never given twice"
        return self._replace(turn=turn, asked_at_s=asked_at_s)
