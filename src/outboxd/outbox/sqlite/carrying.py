"""Whole entries and identities, on their way from or into another outbox.

Inside a transaction of the caller's. What is read is held against its checksums:
a move must never make damage look whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from outboxd.errors import OutboxDamaged
from outboxd.outbox.model import Entry, Identity
from outboxd.outbox.sqlite.query import ENTRY, entry_of
from outboxd.outbox.sqlite.rows import DedupRow, EntryRow, body_crc, insert_rows


def entries_after(
    connection: sqlite3.Connection, path: str, seq: int, limit: int, bytes_max: int
) -> list[Entry]:
    """See `Engine.entries_after`."""
    found: list[Entry] = []
    size = 0
    rows = connection.execute(
        f"SELECT {ENTRY}, b.body, b.crc FROM entries e LEFT JOIN bodies b ON b.seq = e.seq"
        " WHERE e.seq > ? ORDER BY e.seq LIMIT ?",
        (seq, limit),
    )
    for *columns, body, crc in rows:
        row = EntryRow._make(columns)
        if (
            body is None
            or crc != body_crc(row.seq, body.encode())
            or row.head_crc != row.right_head_crc()
            or row.state_crc != row.right_state_crc()
        ):
            raise _damaged(path, f"entry {row.seq}")
        size += len(body)
        if found and size > bytes_max:
            break
        found.append(entry_of(row, body, None, None))
    rows.close()
    return found


def identities_after(
    connection: sqlite3.Connection, path: str, key: str, limit: int
) -> list[Identity]:
    """See `Engine.identities_after`."""
    rows = connection.execute(
        f"SELECT {', '.join(DedupRow._fields)} FROM dedup WHERE key > ? ORDER BY key LIMIT ?",
        (key, limit),
    ).fetchall()
    identities = []
    for row in map(DedupRow._make, rows):
        if not row.is_right():
            raise _damaged(path, "a row of its dedup window")
        identities.append(Identity(row.key, row.seq, row.id, row.expires_at, row.mark))
    return identities


def _damaged(path: str, what: str) -> OutboxDamaged:
    return OutboxDamaged(
        f"{path} is damaged: {what} failed its checksum",
        "start the agent on it: it sets aside what is damaged and salvages the rest; then move",
    )


def put_in(
    connection: sqlite3.Connection, entries: Sequence[Entry], identities: Sequence[Identity]
) -> None:
    """See `Engine.put_in`."""
    rows = [_row(entry) for entry in entries]
    insert_rows(connection, "INSERT INTO entries", rows)
    bodies = [(e.seq, e.body.decode(), body_crc(e.seq, e.body)) for e in entries]
    insert_rows(connection, "INSERT INTO bodies (seq, body, crc)", bodies)
    insert_rows(
        connection,
        f"INSERT OR REPLACE INTO dedup ({', '.join(DedupRow._fields)})",
        [DedupRow.made(*identity) for identity in identities],
    )


def _row(entry: Entry) -> EntryRow:
    row = EntryRow(
        **{name: getattr(entry, name) for name in EntryRow._fields if name[-4:] != "_crc"},
        head_crc=0,
        state_crc=0,
    )
    row = row._replace(held=int(row.held), possible_duplicate=int(row.possible_duplicate))
    return row._replace(head_crc=row.right_head_crc(), state_crc=row.right_state_crc())
