"""What reads the outbox, in steps that are each short.

The one connection belongs to the writer, so whatever reads makes it wait:
every function here looks at a bounded number of rows and can be called again
to go on. Reads nothing that it could change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import msgspec

from outboxd.errors import no_entry
from outboxd.outbox.model import (
    SCOPE_LISTED_MAX,
    UNLISTED,
    Counts,
    Entry,
    Expired,
    IndexRow,
    Place,
    Unsettled,
    UnsettledSums,
)
from outboxd.outbox.short_id import short_id
from outboxd.outbox.sqlite.claiming import DUE
from outboxd.outbox.sqlite.rows import EntryRow

ENTRY = ", ".join(f"e.{name}" for name in EntryRow._fields)
# The ids around an entry's own: how much of its own is its alone.
NEIGHBOURS = (
    "(SELECT max(id) FROM entries WHERE id < e.id), (SELECT min(id) FROM entries WHERE id > e.id)"
)


class _LastAttempt(NamedTuple):
    """The newest of an entry's attempts."""

    at: int = 0
    duration_ms: int = 0
    outcome: str | None = None
    status: int | None = None
    error: str | None = None


_UNSETTLED_ROWS = 2000  # of an index, at once
SLICE_S = 0.004  # of the writer's time for one read, and a few rows more
_INDEX_ROWS = 16  # between two looks at the clock

_decode_attempts = msgspec.json.Decoder(list[_LastAttempt]).decode
_decode_index_rows = msgspec.json.Decoder(list[IndexRow]).decode
_decode_places = msgspec.json.Decoder(list[Place]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


def entry_of(row: EntryRow, body: str, before: str | None, after: str | None) -> Entry:
    """The entry of a row, its body, and the ids before and after its own."""
    attempts = _decode_attempts(row.attempts)
    last = attempts[-1] if attempts else _LastAttempt()
    return Entry(
        seq=row.seq,
        id=row.id,
        state=row.state,
        held=bool(row.held),
        event_type=row.event_type,
        severity=row.severity,
        scope=row.scope,
        source=row.source,
        received_at=row.received_at,
        occurred_at=row.occurred_at,
        expires_at=row.expires_at,
        due_at=row.due_at,
        ended_at=row.ended_at,
        dedup_key=row.dedup_key,
        repeats=row.repeats,
        last_occurred_at=row.last_occurred_at,
        attempt_count=row.attempt_count,
        spent=row.spent,
        possible_duplicate=bool(row.possible_duplicate),
        last_outcome=last.outcome,
        last_status=last.status,
        last_error=last.error,
        dead_reason=row.dead_reason,
        attempts=row.attempts,
        body=body.encode(),
        producer=row.producer,
        hop=row.hop,
        short_id=short_id(row.id, before, after),
    )


def get(connection: sqlite3.Connection, id: str) -> Entry:
    """The entry with this id.

    Raises:
        UnknownId: there is none.
    """
    row = connection.execute(
        f"SELECT {ENTRY}, {NEIGHBOURS}, b.body FROM entries e JOIN bodies b ON b.seq = e.seq"
        " WHERE e.id = ?",
        (id,),
    ).fetchone()
    if row is None:
        raise no_entry(id)
    *columns, before, after, body = row
    return entry_of(EntryRow._make(columns), body, before, after)


def counts(connection: sqlite3.Connection) -> Counts:
    """Count all entries, by the indexes: they are a fraction of the table."""
    due, held, dead, every = connection.execute(
        "SELECT (SELECT count(*) FROM entries INDEXED BY entries_due"
        f" WHERE {DUE}),"
        " (SELECT count(*) FROM entries INDEXED BY entries_held WHERE held = 1),"
        " (SELECT count(*) FROM entries INDEXED BY entries_dead WHERE state = 'dead'),"
        " (SELECT count(*) FROM entries)"
    ).fetchone()
    pending = due + held  # only what is pending can be held
    return Counts(pending, every - pending - dead, dead, held)


def waiting(connection: sqlite3.Connection) -> dict[str, int]:
    """How many entries of each producer are pending."""
    return dict(
        connection.execute(
            "SELECT producer, count(*) FROM entries WHERE state = 'pending' GROUP BY producer"
        ).fetchall()
    )


def last_seq(connection: sqlite3.Connection) -> int:
    """The highest seq that an entry has, or had when entries were last deleted; 0 for none.

    What is remembered of a pruned event names its seq, so none is given twice.
    """
    (there,) = connection.execute("SELECT max(seq) FROM entries").fetchone()
    kept = connection.execute("SELECT value FROM meta WHERE key = 'last_seq'").fetchone()
    return max(there or 0, *map(int, kept or ()), 0)


def expired(
    connection: sqlite3.Connection,
    now: int,
    limit: int,
    clock_steps: Sequence[tuple[int, int]] = (),
) -> Expired:
    """Pending entries whose ttl ran out, and when the next one's does; see `Engine.expired`."""
    cases = "".join(f" WHEN received_at <= {until:d} THEN {ms:d}" for until, ms in clock_steps)
    longer = f"CASE{cases} ELSE 0 END" if cases else "0"
    found = connection.execute(
        "SELECT seq, id FROM entries INDEXED BY entries_expiring WHERE state = 'pending'"
        f" AND expires_at IS NOT NULL AND expires_at <= :now AND expires_at + {longer} <= :now"
        " LIMIT :limit",
        {"now": now, "limit": limit},
    ).fetchall()
    (next_at,) = connection.execute(
        "SELECT min(expires_at) FROM entries INDEXED BY entries_expiring"
        " WHERE state = 'pending' AND expires_at IS NOT NULL AND expires_at > ?",
        (now,),
    ).fetchone()
    return Expired(found, next_at)


def own_reports_pending(connection: sqlite3.Connection) -> int:
    """How many of the entries that are due are the agent's own."""
    (count,) = connection.execute(
        f"SELECT count(*) FROM entries INDEXED BY entries_due WHERE {DUE} AND source = 'agent'"
    ).fetchone()
    return int(count)


def oldest_pending_at(connection: sqlite3.Connection, with_held: bool) -> int | None:
    """When the pending entry that waits longest was received; see `Engine`."""
    held = (
        " UNION ALL SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_held"
        " WHERE held = 1 ORDER BY seq LIMIT 1)"
    )
    (at,) = connection.execute(
        "SELECT min(received_at) FROM entries WHERE seq IN ("
        "SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {DUE} AND due_at = 0 ORDER BY seq LIMIT 1)"
        " UNION ALL SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {DUE} AND due_at > 0 LIMIT 1000){held if with_held else ''})"
    ).fetchone()
    return None if at is None else int(at)


# --- for an index kept in memory -------------------------------------------------

# What a small index holds, in its own order, from behind a place in it on.
_UNSETTLED = {
    Unsettled.DUE: (
        f"SELECT due_at AS place, seq FROM entries INDEXED BY entries_due WHERE {DUE}"
        " AND (due_at, seq) > (?, ?) ORDER BY due_at, seq LIMIT ?"
    ),
    Unsettled.HELD: (
        "SELECT ? AS place, seq FROM entries INDEXED BY entries_held"
        " WHERE held = 1 AND seq > ? ORDER BY seq LIMIT ?"
    ),
    Unsettled.DEAD: (
        "SELECT ? AS place, seq FROM entries INDEXED BY entries_dead"
        " WHERE state = 'dead' AND seq > ? ORDER BY seq LIMIT ?"
    ),
}


def seq_range(connection: sqlite3.Connection) -> range:
    """The seqs of all entries."""
    # Two queries: together in one, SQLite would look at every row.
    (low,) = connection.execute("SELECT min(seq) FROM entries").fetchone()
    (high,) = connection.execute("SELECT max(seq) FROM entries").fetchone()
    return range(0) if high is None else range(low, high + 1)


def index_rows(connection: sqlite3.Connection, seqs: range) -> list[IndexRow]:
    """The first of the entries with these seqs; see `Engine.index_rows`.

    To pass by a scope of 250 KB SQLite reads it, so that rows alone are no measure.
    """
    end_s = perf_counter() + SLICE_S
    found: list[IndexRow] = []
    for start in range(seqs.start, seqs.stop, _INDEX_ROWS):
        found += _index_rows(connection, start, min(start + _INDEX_ROWS, seqs.stop))
        if found and perf_counter() > end_s:
            break
    return found


def _index_rows(connection: sqlite3.Connection, start: int, stop: int) -> list[IndexRow]:
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(seq, received_at, event_type, severity, state, held,"
        f" CASE WHEN length(scope) <= {SCOPE_LISTED_MAX} THEN scope ELSE '{UNLISTED}' END,"
        " dead_reason, json_extract(attempts, '$[#-1][3]'), source, producer)) FROM entries"
        " WHERE seq >= ? AND seq < ?",
        (start, stop),
    ).fetchone()
    return _decode_index_rows(text)


def unsettled_sums(
    connection: sqlite3.Connection, kind: Unsettled, block_rows: int, after: Place
) -> UnsettledSums:
    """See `Engine.unsettled_sums`."""
    (text,) = connection.execute(
        f"SELECT json_group_array(json_array(place, seq)) FROM ({_UNSETTLED[kind]})",
        (*after, _UNSETTLED_ROWS),
    ).fetchone()
    places = _decode_places(text)
    sums: dict[int, int] = {}
    for place in places:
        block = place.seq // block_rows
        sums[block] = sums.get(block, 0) + place.seq
    return UnsettledSums(sums, places[-1] if len(places) == _UNSETTLED_ROWS else None)


def rows_by_block(connection: sqlite3.Connection, block_rows: int, seqs: range) -> dict[int, int]:
    """How many entries there are, by `seq // block_rows`."""
    return dict(
        connection.execute(
            "SELECT seq / ?, count(*) FROM entries WHERE seq >= ? AND seq < ? GROUP BY 1",
            (block_rows, seqs.start, seqs.stop),
        ).fetchall()
    )


def last_dead_at(connection: sqlite3.Connection) -> int | None:
    """When an entry last became a dead letter, as far as the newest and the oldest
    of them tell: what dies late is old, what is refused is new."""
    some = (
        "SELECT ended_at FROM entries INDEXED BY entries_dead WHERE state = 'dead'"
        " ORDER BY seq {} LIMIT 1000"
    )
    (at,) = connection.execute(
        f"SELECT max(ended_at) FROM (SELECT * FROM ({some.format('DESC')})"
        f" UNION ALL SELECT * FROM ({some.format('ASC')}))"
    ).fetchone()
    return None if at is None else int(at)
