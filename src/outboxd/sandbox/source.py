"""The sandbox's timeline: what was received, and whom each event reaches.

Reads the list of what came and changes nothing. A long look gives way to the
calls that bring events.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd.outbox.mentions import Texts
from outboxd.outbox.model import SCOPE_LISTED_MAX, UNLISTED, EntryFilter, IndexRow, State
from outboxd.sandbox.listing import text_of
from outboxd.sandbox.received import Record
from outboxd.web.axis import axis
from outboxd.web.source import Json, Kind
from outboxd.web.tally import BLOCK_ROWS, Tally

if TYPE_CHECKING:
    from outboxd.sandbox.server import Sandbox

LOOK_S = 0.25  # how often the list is looked at for a page that listens
_SLICE = 5000  # records, before others get their turn on the loop


class SandboxSource:
    """A `TimelineSource` over what the sandbox received."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._tally = Tally()
        self._newest = 0  # the arrival up to which events are counted
        self._oldest = 0  # and from which on
        self._closed = asyncio.Event()

    @property
    def kind(self) -> Kind:
        return "sandbox"

    async def facets(self, where: EntryFilter) -> Json:
        await self._catch_up()
        facets = await self._tally.facets(where, await self._find_texts(where))
        return {**facets.to_json(), "complete": True, "expected": len(self._tally)}

    async def histogram(
        self, where: EntryFilter, since: int | None, until: int | None, buckets: int
    ) -> Json:
        await self._catch_up()
        now = self._sandbox.clock.wall_ms()
        span = await self._tally.span() or (now, now)
        low, high, step_ms = axis(
            span[0] if since is None else since,
            max(now, span[1] + 1) if until is None else until,
            buckets,
        )
        matches = await self._find_texts(where)
        found = await self._tally.histogram(where, low, high, step_ms, matches)
        return {**found.to_json(), "complete": True}

    async def activity(self) -> Json | None:
        return None

    async def inventory(self) -> Json | None:
        services = self._sandbox.correlation.inventory.services
        clusters: dict[str, dict[str, list[str]]] = {}
        for service in services:
            spaces = clusters.setdefault(service.cluster, {})
            spaces.setdefault(service.namespace, []).append(service.service)
        return {
            "total": len(services),
            "clusters": [
                {
                    "name": cluster,
                    "namespaces": [
                        {"name": name, "services": names} for name, names in spaces.items()
                    ],
                }
                for cluster, spaces in clusters.items()
            ],
        }

    async def status(self) -> Mapping[str, Any]:
        return {**self._sandbox.summary(), "faults": self._sandbox.faults.to_json()}

    async def changes(self) -> AsyncIterator[str]:
        seen: object = None
        for revision in itertools.count(1):
            while (now := (self._sandbox.received.count, self._sandbox.faults)) == seen:
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._closed.wait()
                except TimeoutError:
                    continue
                return
            seen = now
            yield str(revision)

    async def close(self) -> None:
        """End the streams, so that the server need not wait for them."""
        self._closed.set()

    async def _catch_up(self) -> None:
        """Count what came since, and no longer what was forgotten."""
        received = self._sandbox.received
        oldest = received.count - len(received) + 1
        if received.count < self._newest:  # everything was forgotten on request
            self._tally, self._newest, self._oldest = Tally(), 0, 0
        if received.count == self._newest and oldest == self._oldest:
            return
        for number in [n for n in self._tally.blocks if n < oldest // BLOCK_ROWS]:
            self._tally.put(number, ())
        stale = set(range(self._newest // BLOCK_ROWS, received.count // BLOCK_ROWS + 1))
        stale.add(oldest // BLOCK_ROWS)
        self._newest, self._oldest = received.count, oldest
        for number in sorted(stale, reverse=True):
            start = number * BLOCK_ROWS
            rows: list[IndexRow] = []
            for record in received.newest_first(start + BLOCK_ROWS):
                if record.arrival < start:
                    break
                rows.append(_row(record))
            self._tally.put(number, rows[::-1])
            await asyncio.sleep(0)

    async def _find_texts(self, where: EntryFilter) -> dict[int, int] | None:
        """By block, a bit for each event that has the filter's texts; None without any."""
        texts = Texts.of(where)
        if texts == Texts():
            return None
        found: dict[int, int] = {}
        for number, record in enumerate(self._sandbox.received.newest_first(), start=1):
            if texts.match(text_of(record)):
                block, place = divmod(record.arrival, BLOCK_ROWS)
                found[block] = found.get(block, 0) | 1 << place
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return found


def _row(record: Record) -> IndexRow:
    event = record.event
    fields = {
        "clusters": event.clusters,
        "namespaces": event.namespaces,
        "servicesNames": event.services,
    }
    scope = msgspec.json.encode(fields).decode() if any(fields.values()) else ""
    return IndexRow(
        record.arrival,
        record.received_at,
        event.event_type,
        event.severity,
        State.DELIVERED,
        0,
        scope if len(scope) <= SCOPE_LISTED_MAX else UNLISTED,
        None,
        201,
        "",
        "",
    )
