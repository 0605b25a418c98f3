"""Which received events a listing wants, and one page of them.

It must never hold up the calls that bring events: a long search gives way to
them every few thousand records.
"""

from __future__ import annotations

import asyncio

from outboxd.outbox.model import EntryFilter, State
from outboxd.sandbox.received import Received, Record

_SLICE = 5000


async def page(
    received: Received, where: EntryFilter, cursor: str | None, limit: int
) -> tuple[list[Record], str | None]:
    """The newest of the wanted records, and the cursor of the next page if there is one.

    Raises ValueError for a cursor that no page gave.
    """
    before = _arrival(cursor)
    found: list[Record] = []
    if not can_match(where):
        return found, None
    needle = where.q.casefold()
    for number, record in enumerate(received.newest_first(before), start=1):
        if matches(record, where, needle):
            if len(found) == limit:
                return found, str(found[-1].arrival)
            found.append(record)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return found, None


def can_match(where: EntryFilter) -> bool:
    """Whether any received event can be meant: each counts as delivered and not held."""
    return (not where.states or State.DELIVERED in where.states) and not where.held


def matches(record: Record, where: EntryFilter, needle: str) -> bool:
    """Whether the record is wanted; `needle` is the filter's text, case folded."""
    event = record.event
    return (
        (not where.event_types or event.event_type in where.event_types)
        and (not where.severities or event.severity in where.severities)
        and (not where.clusters or not set(where.clusters).isdisjoint(event.clusters))
        and (not where.namespaces or not set(where.namespaces).isdisjoint(event.namespaces))
        and (not where.services or not set(where.services).isdisjoint(event.services))
        and (where.since is None or record.received_at >= where.since)
        and (where.until is None or record.received_at < where.until)
        and (not needle or needle in record.body.decode().casefold())
    )


def _arrival(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):
        raise ValueError(f"{cursor!r} is no cursor of this list")
    return int(cursor)
