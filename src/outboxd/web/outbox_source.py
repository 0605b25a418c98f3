"""The agent's timeline: its outbox, its destination and its last hour.

Reads only, and in short slices: the connection belongs to the writer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from outboxd.clock import Clock
from outboxd.outbox.listing import Page
from outboxd.outbox.model import Counts, EntryFilter
from outboxd.web.activity import Activity
from outboxd.web.axis import axis
from outboxd.web.outbox_index import OutboxIndex, ReadableOutbox
from outboxd.web.source import Json, Kind

# A first answer comes within this time, be it not complete; the page asks again.
BUDGET_S = 0.15
LOOK_S = 0.25  # how often a listening page's agent is looked at for changes


class SourceOutbox(ReadableOutbox, Protocol):
    """What is read of the outbox here."""

    async def page(
        self, where: EntryFilter, cursor: str | None, limit: int, given_up: Callable[[], bool]
    ) -> Page: ...


class OutboxSource:
    """A `TimelineSource` over the agent."""

    def __init__(
        self,
        outbox: SourceOutbox,
        activity: Activity,
        status: Callable[[], Json],
        clock: Clock | None = None,
    ) -> None:
        self._outbox = outbox
        self._status = status  # the shape of `GET /v1/status`
        self._activity = activity
        self._clock = clock or Clock()
        self._index = OutboxIndex(outbox, self._clock)
        self._closed = asyncio.Event()

    @property
    def kind(self) -> Kind:
        return "agent"

    async def page(
        self, where: EntryFilter, cursor: str | None, limit: int, given_up: Callable[[], bool]
    ) -> Page:
        """A page of the listing."""
        return await self._outbox.page(where, cursor, limit, given_up)

    async def facets(self, where: EntryFilter) -> Json:
        complete = await self._index.catch_up(BUDGET_S)
        matches = None
        if where.q:
            matches, searched = await self._index.find_text(where.q, BUDGET_S)
            complete = complete and searched
        facets = await self._index.tally.facets(where, matches)
        # How many there will be when all are counted.
        counts = self._outbox.counts
        expected = counts.pending + counts.delivered + counts.dead
        return {**facets.to_json(), "complete": complete, "expected": expected}

    async def histogram(
        self, where: EntryFilter, since: int | None, until: int | None, buckets: int
    ) -> Json:
        complete = await self._index.catch_up(BUDGET_S)
        matches = None
        if where.q:
            matches, searched = await self._index.find_text(where.q, BUDGET_S)
            complete = complete and searched
        now = self._clock.wall_ms()
        span = self._index.tally.span or (now, now)
        low, high, step_ms = axis(
            span[0] if since is None else since,
            max(now, span[1] + 1) if until is None else until,
            buckets,
        )
        found = await self._index.tally.histogram(where, low, high, step_ms, matches)
        return {**found.to_json(), "complete": complete}

    async def activity(self) -> Json | None:
        return self._activity.to_json()

    async def inventory(self) -> Json | None:
        return None

    async def status(self) -> Mapping[str, Any]:
        return self._status()

    async def changes(self) -> AsyncIterator[str]:
        seen: tuple[Counts, object, object] | None = None
        for revision in itertools.count(1):
            while (now := self._now()) == seen:
                if await _happens_within(self._closed, LOOK_S):
                    return
            if self._closed.is_set():
                return
            seen = now
            yield str(revision)

    async def close(self) -> None:
        """End the streams and what goes on in the background."""
        self._closed.set()
        await self._index.close()

    def _now(self) -> tuple[Counts, object, object]:
        status = self._status()
        return self._outbox.counts, status["destination"], status["findings"]


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
