"""Whose fault a failure was: the event's own, or the destination's.

Pure. An event is blamed only if others were delivered since it was begun or
last failed, and no other has failed since the last delivery. So each delivery
lets at most one event be blamed, and an outage costs at most one attempt of
one event however long it is and however many were in flight; while of many
poisoned events each gets its turn. It never decides what follows from blame.
"""

from __future__ import annotations

from collections import OrderedDict

# Events whose last failure is remembered; the longest ago are forgotten first,
# which errs on the event's side.
_REMEMBERED_MAX = 4096


class Blame:
    """Remembers who failed, and what was delivered in between."""

    def __init__(self) -> None:
        self._deliveries = 0
        self._failing: int | None = None  # the first to fail since the last delivery
        self._failed: OrderedDict[int, int] = OrderedDict()  # seq: deliveries until then

    def begun(self) -> int:
        """A request begins; the number returned comes back with its failure."""
        return self._deliveries

    def delivered(self, seq: int) -> None:
        """An event was taken, or judged by itself."""
        self._deliveries += 1
        self._failing = None
        self._failed.pop(seq, None)

    def failed(self, seq: int, begun: int) -> bool:
        """An event failed; whether by its own fault."""
        since = self._failed.pop(seq, begun)
        own = self._deliveries > since and self._failing is None
        if self._failing is None:
            self._failing = seq
        self._failed[seq] = self._deliveries
        if len(self._failed) > _REMEMBERED_MAX:
            self._failed.popitem(last=False)
        return own
