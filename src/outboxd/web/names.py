"""What producers are called, for a page: looked up beside the loop, and remembered.

A user's name may come from the network. So nobody waits for one longer than a
moment: until it is there the page shows what the outbox keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from outboxd.producer_names import name_of

KNOWN_MAX = 10_000
KEPT_S = 300.0  # then they are looked up again
WAIT_S = 0.05


class Names:
    """Names by producer."""

    def __init__(
        self, monotonic_s: Callable[[], float], look_up: Callable[[str], str] = name_of
    ) -> None:
        self._monotonic_s = monotonic_s
        self._look_up = look_up
        self._known: dict[str, str] = {}
        self._forget_at_s = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def of(self, producers: Collection[str]) -> dict[str, str]:
        """The names that are known by now; the others are looked up meanwhile."""
        if self._monotonic_s() >= self._forget_at_s or len(self._known) > KNOWN_MAX:
            self._known = {}
            self._forget_at_s = self._monotonic_s() + KEPT_S
        missing = [producer for producer in producers if producer not in self._known]
        if missing and (self._looking is None or self._looking.done()):
            self._looking = asyncio.ensure_future(self._find(missing, self._known))
        if missing and self._looking is not None:
            await asyncio.wait({self._looking}, timeout=WAIT_S)
        return {each: self._known[each] for each in producers if each in self._known}

    async def _find(self, producers: Collection[str], known: dict[str, str]) -> None:
        for producer in producers:
            known[producer] = await asyncio.to_thread(self._look_up, producer)

    async def close(self) -> None:
        """Stop what goes on in the background."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
