"""What reads the outbox but for listings: single entries, ages, what the tables hold.

Reads nothing that it could change. Each query goes by an index that its WHERE repeats.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg

from outboxd.errors import no_entry
from outboxd.outbox.identities import key_identities
from outboxd.outbox.model import Entry, Expired
from outboxd.outbox.postgresql.connection import only_value
from outboxd.outbox.postgresql.rows import DUE, ENTRY, entry_of, shown
from outboxd.outbox.postgresql.schema import TABLES
from outboxd.status import OtherAccount


def get(connection: psycopg.Connection[Any], destination: str, id: str) -> Entry:
    """See `Engine.get`."""
    try:
        wanted = uuid.UUID(id)
    except ValueError:
        raise no_entry(id) from None
    row = connection.execute(f"{ENTRY} AND e.id = %s", (destination, wanted)).fetchone()
    if row is None:
        raise no_entry(id)
    (entry,) = shown(connection, destination, [entry_of(row)])
    return entry


def state_of_key(
    connection: psycopg.Connection[Any], destination: str, producer: str, dedup_key: str, now: int
) -> str | None:
    """See `Engine.state_of_key`."""
    row = connection.execute(
        "SELECT coalesce(s.state, 'delivered') FROM dedup d LEFT JOIN states s"
        " USING (destination, seq) WHERE destination = %s AND d.key = ANY(%s) AND d.expires_at > %s"
        " ORDER BY d.key DESC LIMIT 1",  # the producer's own ("p:") before an old one ("k:")
        (destination, key_identities(producer, dedup_key), now),
    ).fetchone()
    return None if row is None else str(row[0])


def expired(
    connection: psycopg.Connection[Any],
    destination: str,
    now: int,
    limit: int,
    clock_steps: Sequence[tuple[int, int]],
) -> Expired:
    """See `Engine.expired`."""
    cases = "".join(f" WHEN e.received_at <= {until:d} THEN {ms:d}" for until, ms in clock_steps)
    longer = f"CASE{cases} ELSE 0 END" if cases else "0"
    found = connection.execute(
        "SELECT s.seq, e.id::text FROM states s JOIN entries e"
        " USING (destination, seq) WHERE destination = %(destination)s"
        " AND s.state = 'pending' AND s.expires_at <= %(now)s"
        f" AND s.expires_at + {longer} <= %(now)s LIMIT %(limit)s",
        {"destination": destination, "now": now, "limit": limit},
    ).fetchall()
    next_at = only_value(
        connection,
        "SELECT min(expires_at) FROM states WHERE destination = %s AND state = 'pending'"
        " AND expires_at > %s",
        (destination, now),
    )
    return Expired(found, next_at)


def has_due(connection: psycopg.Connection[Any], destination: str) -> bool:
    """Whether any entry waits to be sent."""
    return bool(
        only_value(
            connection,
            f"SELECT EXISTS (SELECT 1 FROM states WHERE destination = %s AND {DUE})",
            (destination,),
        )
    )


def last_dead_at(connection: psycopg.Connection[Any], destination: str) -> int | None:
    """See `Engine.last_dead_at`."""
    at: int | None = only_value(
        connection,
        "SELECT max(ended_at) FROM (SELECT ended_at FROM states WHERE destination = %s"
        " AND state = 'dead' ORDER BY seq DESC LIMIT 1000) few",
        (destination,),
    )
    return at


def oldest_pending_at(
    connection: psycopg.Connection[Any], destination: str, with_held: bool
) -> int | None:
    """See `Engine.oldest_pending_at`."""
    own = "SELECT seq FROM states WHERE destination = %(destination)s AND"
    held = f" UNION ALL ({own} held ORDER BY seq LIMIT 1)"
    at: int | None = only_value(
        connection,
        "SELECT min(e.received_at) FROM entries e WHERE e.destination = %(destination)s"
        f" AND e.seq IN (({own} {DUE} AND due_at = 0 ORDER BY seq LIMIT 1)"
        f" UNION ALL ({own} {DUE} AND due_at > 0 LIMIT 1000)"
        f"{held if with_held else ''})",
        {"destination": destination},
    )
    return at


def own_reports_pending(connection: psycopg.Connection[Any], destination: str) -> int:
    """See `Engine.own_reports_pending`."""
    return int(
        only_value(
            connection,
            "SELECT count(*) FROM states s JOIN entries e USING (destination, seq)"
            f" WHERE destination = %s AND {DUE} AND e.source = 'agent'",
            (destination,),
        )
    )


def other_accounts(
    connection: psycopg.Connection[Any], destination: str
) -> tuple[OtherAccount, ...]:
    """Which other destinations have entries here, and who delivers them."""
    rows = connection.execute(
        "SELECT t.destination, greatest(0, sum(t.pending))::bigint, (SELECT d.gateway"
        " FROM deliverers d WHERE d.destination = t.destination AND d.holder IS NOT NULL"
        " AND d.lease_ends_at > clock_timestamp()) FROM tallies t WHERE t.destination <> %s"
        " GROUP BY t.destination ORDER BY t.destination",
        (destination,),
    )
    return tuple(OtherAccount(*row) for row in rows)


def standby_lag_s(connection: psycopg.Connection[Any]) -> float | None:
    """How far standbys are behind, which the server shows to members of pg_monitor alone."""
    lag_s: float | None = only_value(
        connection, "SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication"
    )
    return lag_s


def stored_bytes(connection: psycopg.Connection[Any]) -> int:
    """How much room the tables take."""
    return int(
        only_value(
            connection,
            "SELECT sum(pg_total_relation_size(to_regclass(n))) FROM unnest(%s::text[]) n",
            (list(TABLES),),
        )
    )
