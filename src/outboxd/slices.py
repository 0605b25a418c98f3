"""Work on the event loop in slices of time, so that it never keeps others waiting.

A slice is counted in time and not in lines or rows, because whoever sends them
chooses how long each takes. It must never be shared by two tasks.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

SLICE_S = 0.004  # of work, between which everything else on the loop has its turn
PAUSE_MAX_S = 0.25  # whatever was counted as work: a slip here must stall nobody


class Slices:
    """The slices of one piece of work."""

    __slots__ = ("_ends_s",)

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A slice begins now: what was before was waiting, and no work."""
        self._ends_s = perf_counter() + SLICE_S

    async def pause(self) -> None:
        """Let others go first where the slice is used up; costs next to nothing where not.

        A request passes the loop several times. So where one step took far longer than a
        slice, the others have as long before the next.
        """
        over_s = perf_counter() - self._ends_s
        if over_s >= 0:
            await asyncio.sleep(min(over_s, PAUSE_MAX_S) if over_s > SLICE_S else 0)
            self.begin()
