"""Whole entries and identities, on their way from or into another outbox, and the
note of a move.

Inside a transaction of the caller's. Other gateways may still have the database
open: from the note on that it is left triggers refuse whatever they write for that
destination, in the words of a server that takes no writes, so that hosts keep their events.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from outboxd.errors import OutboxLocked
from outboxd.outbox.model import Entry, Identity, MoveNote, MoveRole
from outboxd.outbox.postgresql.connection import application_name
from outboxd.outbox.postgresql.rows import ENTRY, entry_of

# A gateway says something every few seconds; what a pooler keeps open does not.
QUIET_S = 30
_GUARDED = ("states", "deliverers")
_COLUMNS = {
    "entries": {
        "destination": "text", "seq": "bigint", "id": "uuid", "received_at": "bigint",
        "occurred_at": "bigint", "expires_at": "bigint", "event_type": "text",
        "severity": "text", "scope": "text",
        "source": "text", "dedup_key": "text", "producer": "text", "hop": "text", "body": "text",
    },
    "states": {
        "destination": "text", "seq": "bigint", "state": "text", "held": "boolean",
        "due_at": "bigint",
        "ended_at": "bigint", "repeats": "int", "last_occurred_at": "bigint",
        "attempt_count": "int", "spent": "int", "possible_duplicate": "boolean",
        "dead_reason": "text", "attempts": "jsonb", "producer": "text", "expires_at": "bigint",
    },
    "dedup": {
        "destination": "text", "key": "text", "seq": "bigint", "id": "uuid", "mark": "bigint",
        "expires_at": "bigint",
    },
}  # fmt: skip


def refuse_in_use(connection: psycopg.Connection[Any], destination: str) -> None:
    """For whoever wants a destination's entries alone.

    Raises:
        OutboxLocked: a gateway of that destination has the database open.
    """
    (held,) = connection.execute(
        "SELECT count(*) FROM deliverers WHERE destination = %s AND holder IS NOT NULL"
        " AND lease_ends_at > clock_timestamp()",
        (destination,),
    ).fetchone() or (0,)
    (others,) = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = %s AND pid <> pg_backend_pid()"
        " AND (state <> 'idle' OR state_change > clock_timestamp() - %s * interval '1 second')",
        (application_name(destination), QUIET_S),
    ).fetchone() or (0,)
    if held or others:
        raise OutboxLocked(
            "a gateway has the outbox's database open"
            + (" and delivers" if held else f" ({others} connections)"),
            "stop the agents of all gateways; their lease ends by itself within seconds",
        )


def move_note(connection: psycopg.Connection[Any], destination: str) -> MoveNote | None:
    """See `Engine.move_note`."""
    row = connection.execute(
        "SELECT note FROM moves WHERE destination = %s", (destination,)
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=MoveNote)


def set_move_note(
    connection: psycopg.Connection[Any], destination: str, note: MoveNote | None
) -> None:
    """See `Engine.set_move_note`. Waits for who is writing."""
    for table in _GUARDED:
        for name, event, row in (
            ("in", "INSERT OR UPDATE", "NEW"),
            ("out", "DELETE", "OLD"),
        ):
            trigger = sql.Identifier(f"outboxd_moved_{name}:{destination}")
            connection.execute(
                sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(trigger, sql.Identifier(table))
            )
            if note is not None and note.role in (MoveRole.LEAVING, MoveRole.LEFT):
                connection.execute(
                    sql.SQL(
                        f"CREATE TRIGGER {{}} BEFORE {event} ON {{}} FOR EACH ROW"
                        f" WHEN ({row}.destination = {{}}) EXECUTE FUNCTION outboxd_moved()"
                    ).format(trigger, sql.Identifier(table), sql.Literal(destination))
                )
    connection.execute("DELETE FROM moves WHERE destination = %s", (destination,))
    if note is not None:
        connection.execute(
            "INSERT INTO moves (destination, note) VALUES (%s, %s)",
            (destination, msgspec.json.encode(note).decode()),
        )


def entries_after(
    connection: psycopg.Connection[Any], destination: str, seq: int, limit: int, bytes_max: int
) -> list[Entry]:
    """See `Engine.entries_after`."""
    found: list[Entry] = []
    size = 0
    for row in connection.execute(
        f"{ENTRY} AND seq > %s ORDER BY seq LIMIT %s", (destination, seq, limit)
    ):
        entry = entry_of(row)
        size += len(entry.body)
        if found and size > bytes_max:
            break
        found.append(entry)
    return found


def identities_after(
    connection: psycopg.Connection[Any], destination: str, key: str, limit: int
) -> list[Identity]:
    """See `Engine.identities_after`."""
    rows = connection.execute(
        "SELECT key, seq, id::text, expires_at, mark FROM dedup WHERE destination = %s"
        ' AND key > %s COLLATE "C" ORDER BY key LIMIT %s',
        (destination, key, limit),
    )
    return [Identity(*row) for row in rows]


def put_in(
    connection: psycopg.Connection[Any],
    destination: str,
    entries: Sequence[Entry],
    identities: Sequence[Identity],
) -> None:
    """See `Engine.put_in`."""
    rows = [_row(entry, destination) for entry in entries]
    _insert(connection, "entries", rows)
    _insert(connection, "states", rows)
    _insert(
        connection,
        "dedup",
        [{**identity._asdict(), "destination": destination} for identity in identities],
        " ON CONFLICT (destination, key) DO UPDATE SET seq = excluded.seq, id = excluded.id,"
        " mark = excluded.mark, expires_at = excluded.expires_at",
    )
    seqs = [one.seq for some in (entries, identities) for one in some]
    if seqs:
        connection.execute(
            "SELECT setval('outboxd_seq', greatest(%s, last_value)) FROM outboxd_seq", (max(seqs),)
        )


def _row(entry: Entry, destination: str) -> dict[str, Any]:
    own = {"destination": destination, "body": entry.body.decode()}
    return {**entry._asdict(), **own, "attempts": json.loads(entry.attempts)}


def _insert(
    connection: psycopg.Connection[Any], table: str, rows: Sequence[dict[str, Any]], tail: str = ""
) -> None:
    if not rows:
        return
    columns = _COLUMNS[table]
    names = ", ".join(columns)
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    some = [{name: row[name] for name in columns} for row in rows]
    connection.execute(
        f"INSERT INTO {table} ({names}) SELECT {names} FROM json_to_recordset(%s) AS v ({typed})"
        f"{tail}",
        (json.dumps(some),),
    )
