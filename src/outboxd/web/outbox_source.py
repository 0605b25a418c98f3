"""The agent's timeline: its outbox, its destination and its last hour.

Reads only, and in short slices: the connection belongs to the writer.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from outboxd.clock import Clock
from outboxd.memory import give_back
from outboxd.outbox.filters import read_cursor
from outboxd.outbox.listing import PAGE_BYTES_MAX, Page
from outboxd.outbox.mentions import Texts
from outboxd.outbox.model import Entry, EntryFilter
from outboxd.web.activity import Activity
from outboxd.web.axis import axis
from outboxd.web.names import Names
from outboxd.web.outbox_index import OutboxIndex
from outboxd.web.pace import ReadableOutbox
from outboxd.web.source import Json, Kind
from outboxd.web.tally import Facets, TextMatches

# A first answer comes within this time, be it not complete; the page asks again.
BUDGET_S = 0.15
PAGE_S = 0.3  # a page of a search is answered with what was found by then
LET_GO_S = 60.0  # after the last look its index is let go
_MATCHES = 25  # entries read at once
_SEQ_MAX = 1 << 62
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
        limit_met: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self._outbox = outbox
        self._status = status  # the shape of `GET /v1/status`
        self._activity = activity
        self._clock = clock or Clock()
        self._index = OutboxIndex(outbox, self._clock, limit_met)
        self._names = Names(self._clock.monotonic_s)
        self._closed = asyncio.Event()
        self._letting_go: asyncio.TimerHandle | None = None

    @property
    def kind(self) -> Kind:
        return "agent"

    async def page(
        self, where: EntryFilter, cursor: str | None, limit: int, given_up: Callable[[], bool]
    ) -> Page:
        """A page of the listing, or what was found of it within PAGE_S: then `next`
        goes on where the search stands."""
        end_s = time.monotonic() + PAGE_S
        texts = Texts.of(where)

        def is_over() -> bool:
            return given_up() or time.monotonic() > end_s

        if texts == Texts() or where.id is not None:
            return await self._outbox.page(where, cursor, limit, is_over)
        return await self._page_of_matches(where, texts, cursor, limit, is_over)

    async def _page_of_matches(
        self,
        where: EntryFilter,
        texts: Texts,
        cursor: str | None,
        limit: int,
        is_over: Callable[[], bool],
    ) -> Page:
        """A page from what the scan of the texts has found, which all who look share."""
        before = read_cursor(cursor) or _SEQ_MAX
        found: list[Entry] = []
        size = 0
        while True:
            scan = await self._index.find_texts(texts, 0.0 if found or is_over() else LOOK_S)
            seqs = scan.below(before, _MATCHES)
            for entry in await self._outbox.read(lambda e, s=seqs: e.entries_of(where, s)):  # type: ignore[misc]
                if found and size + len(entry.body) > PAGE_BYTES_MAX:
                    return Page(found, str(entry.seq + 1))
                found.append(entry)
                size += len(entry.body)
                if len(found) == limit:
                    return Page(found, str(entry.seq))
            if seqs:
                before = seqs[-1]
            elif scan.is_done:
                return Page(found, None)
            elif is_over():
                return Page(found, str(min(before, max(scan.low, 1))))
            else:
                before = min(before, max(scan.low, 1))

    async def facets(self, where: EntryFilter) -> Json:
        self._looked()
        complete = await self._index.catch_up(BUDGET_S)
        matches, searched = await self._matches(where)
        facets = await self._index.tally.facets(where, matches)
        # How many there will be when all are counted.
        counts = self._outbox.counts
        expected = counts.pending + counts.delivered + counts.dead
        return {
            **facets.to_json(),
            "complete": complete and searched is None,
            "expected": expected,
            "searched": searched,
            "names": await self._names.of(self._producers(facets)),
        }

    async def histogram(
        self, where: EntryFilter, since: int | None, until: int | None, buckets: int
    ) -> Json:
        self._looked()
        complete = await self._index.catch_up(BUDGET_S)
        matches, searched = await self._matches(where)
        now = self._clock.wall_ms()
        span = await self._index.tally.span() or (now, now)
        low, high, step_ms = axis(
            span[0] if since is None else since,
            max(now, span[1] + 1) if until is None else until,
            buckets,
        )
        found = await self._index.tally.histogram(where, low, high, step_ms, matches)
        return {**found.to_json(), "complete": complete and searched is None}

    async def _matches(self, where: EntryFilter) -> tuple[TextMatches | None, int | None]:
        """Where the filter's texts stand, if it has some; and how many entries were
        looked at so far, None for all."""
        texts = Texts.of(where)
        if texts == Texts():
            return None, None
        scan = await self._index.find_texts(texts, BUDGET_S)
        return dict(scan.places), None if scan.is_done else scan.looked

    def _producers(self, facets: Facets) -> list[str]:
        """All who have a name on the page: of these events, and the refused."""
        refused = [user["producer"] for user in self._status()["refusedUsers"]]
        return list(dict.fromkeys([*(each for each, _ in facets.values["producer"]), *refused]))

    def _looked(self) -> None:
        """Somebody looks; a while after the last one the index is let go."""
        if self._letting_go is not None:
            self._letting_go.cancel()
        loop = asyncio.get_running_loop()
        self._letting_go = loop.call_later(LET_GO_S, self._let_go)

    def _let_go(self) -> None:
        self._index.let_go()
        asyncio.get_running_loop().run_in_executor(None, give_back)

    async def activity(self) -> Json | None:
        return self._activity.to_json()

    async def inventory(self) -> Json | None:
        return None

    async def status(self) -> Mapping[str, Any]:
        """Without who came and who was refused: a page asks for that in its own time."""
        status = dict(self._status())
        del status["refusedUsers"], status["refusedUsersLeftOut"]
        gateway = status.get("gateway")
        if gateway is None:
            return status
        left_out = ("producers", "strangers")
        few = {name: value for name, value in gateway.items() if name not in left_out}
        return {**status, "gateway": few}

    async def changes(self) -> AsyncIterator[str]:
        seen: tuple[object, ...] | None = None
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
        if self._letting_go is not None:
            self._letting_go.cancel()
        await self._index.close()
        await self._names.close()

    def _now(self) -> tuple[object, ...]:
        status = self._status()
        destination = status["destination"]
        return (
            self._outbox.counts,
            *(destination[name] for name in ("state", "reason", "nextProbeAt")),
            # Not the messages: how long ago something was changes by itself.
            *(finding["hint"] for finding in status["findings"]),
        )


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
