"""An entry as its tables have it, and as the outbox's model has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from outboxd.outbox.model import Attempt, Entry
from outboxd.outbox.short_id import short_id

# The columns of `Entry`, but for its short id and those of the last attempt; of one destination.
ENTRY = (
    "SELECT e.seq, e.id::text, s.state, s.held, e.event_type, e.severity, e.scope, e.source,"
    " e.received_at, e.occurred_at, s.expires_at, s.due_at, s.ended_at, e.dedup_key, s.repeats,"
    " s.last_occurred_at, s.attempt_count, s.spent, s.possible_duplicate, s.dead_reason,"
    " s.attempts::text, e.body, e.producer, e.hop FROM entries e"
    " JOIN states s USING (destination, seq) WHERE destination = %s"
)
_NEIGHBOUR = (
    "(SELECT n.id::text FROM entries n WHERE n.destination = %(destination)s AND n.id {} i.id"
    " ORDER BY n.id {} LIMIT 1)"
)
# Asked for what is shown alone, and not for all that is looked through.
_NEIGHBOURS = (
    f"SELECT i.id::text, {_NEIGHBOUR.format('<', 'DESC')}, {_NEIGHBOUR.format('>', 'ASC')}"
    " FROM unnest(%(ids)s::uuid[]) i (id)"
)
# The destination as a column of what the tables are joined to, in a MATERIALIZED query. As a
# condition beside the join it misleads the planner, which thinks that a destination has few
# rows (mostly it has all) and reads them: 240 settlements a second instead of 4,000.
OWN = "%(destination)s::text AS destination"
DUE = "state = 'pending' AND NOT held"


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of a row of `ENTRY`'s, without a short id."""
    *head, dead_reason, attempts, body, producer, hop = row
    last = (msgspec.json.decode(attempts) or [[None] * 5])[-1]
    _, _, outcome, status, error = last
    more = (outcome, status, error, dead_reason, attempts, body.encode(), producer, hop, "")
    return Entry._make((*head, *more))


def shown(
    connection: psycopg.Connection[Any], destination: str, entries: Sequence[Entry]
) -> list[Entry]:
    """The entries with how much of their ids is theirs alone."""
    if not entries:
        return []
    values = {"destination": destination, "ids": [entry.id for entry in entries]}
    short = {
        id: short_id(id, before, after)
        for id, before, after in connection.execute(_NEIGHBOURS, values)
    }
    return [entry._replace(short_id=short[entry.id]) for entry in entries]


def legible(attempt: Attempt | None) -> Attempt | None:
    """The attempt as jsonb can keep it: that knows no U+0000, which an answer may hold."""
    if attempt is None or attempt.error is None:
        return attempt
    return attempt._replace(error=attempt.error.replace("\0", "\ufffd"))
