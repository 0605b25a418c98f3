"""Which received events a listing wants, and one page of them.

It must never hold up the calls that bring events: a long search gives way to
them every few thousand records.
"""

from __future__ import annotations

import asyncio

from outboxd.outbox.filters import read_cursor
from outboxd.outbox.mentions import Text, mentions
from outboxd.outbox.model import EntryFilter, State
from outboxd.sandbox.received import Received, Record

_SLICE = 5000


async def page(
    received: Received, where: EntryFilter, cursor: str | None, limit: int
) -> tuple[list[Record], str | None]:
    """The newest of the wanted records, and the cursor of the next page if there is one.

    Raises BadQuery for a cursor that no page gave.
    """
    before = read_cursor(cursor)
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
    return (
        (not where.states or State.DELIVERED in where.states)
        and not where.held
        and (not where.last_statuses or 201 in where.last_statuses)
        and not (where.dead_reasons or where.sources or where.producers or where.error)
        and ("state", State.DELIVERED) not in where.excluded
        and ("status", "201") not in where.excluded
    )


def matches(record: Record, where: EntryFilter, needle: str) -> bool:
    """Whether the record is wanted; `needle` is the filter's text, case folded."""
    event = record.event
    values = {
        "type": (event.event_type,),
        "severity": (event.severity,),
        "cluster": event.clusters,
        "namespace": event.namespaces,
        "service": event.services,
    }
    return (
        (not where.event_types or event.event_type in where.event_types)
        and (not where.severities or event.severity in where.severities)
        and (not where.clusters or not set(where.clusters).isdisjoint(event.clusters))
        and (not where.namespaces or not set(where.namespaces).isdisjoint(event.namespaces))
        and (not where.services or not set(where.services).isdisjoint(event.services))
        and not any(value in values.get(name, ()) for name, value in where.excluded)
        and (where.dedup_key is None or record.idempotency_key == where.dedup_key)
        and (where.id is None or record.id.startswith(where.id))
        and (where.since is None or record.received_at >= where.since)
        and (where.until is None or record.received_at < where.until)
        and (not needle or mentions(text_of(record), needle))
    )


def text_of(record: Record) -> Text:
    """What of a record a text is looked for in."""
    return Text(record.id, record.idempotency_key, "[]", record.body.decode())
