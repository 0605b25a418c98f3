"""What changes entries that are there: settlements, the operator, upkeep, meta.

Inside a transaction that the caller opens and commits. Plain SQL; nothing here
decides anything about delivery.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from outboxd.outbox import query
from outboxd.outbox.accepting import NO_ATTEMPTS
from outboxd.outbox.checksums import head_crc, text_crc
from outboxd.outbox.model import Entry, Settlement, State
from outboxd.outbox.rows import Changeable, Tally, read_changeable, write_changeable

# The newest attempts that an entry keeps; `attempt_count` counts them all.
ATTEMPTS_KEPT = 50

# --- settling ----------------------------------------------------------------


def settle(
    connection: sqlite3.Connection, settlements: Sequence[Settlement], now: int, tally: Tally
) -> None:
    """Write what the attempts meant.

    An entry that the operator dropped meanwhile is passed over; one that is no
    longer pending stays as it is.
    """
    by_seq = {settlement.seq: settlement for settlement in settlements}
    changed = []
    for entry in read_changeable(connection, by_seq):
        if entry.state != State.PENDING:
            continue
        settlement = by_seq[entry.seq]
        tally.add(entry.state, entry.held, -1)
        _apply(entry, settlement, now)
        tally.add(entry.state, entry.held, +1)
        changed.append(entry)
    if changed:
        write_changeable(connection, changed)


def _apply(entry: Changeable, settlement: Settlement, now: int) -> None:
    if settlement.attempt is not None:
        entry.attempt_count += 1
        entry.attempts = _with_attempt(entry.attempts, settlement.attempt)
    entry.spent += settlement.spent
    entry.possible_duplicate |= int(settlement.possible_duplicate)
    entry.state = settlement.state
    entry.due_at = settlement.due_at if settlement.state == State.PENDING else 0
    entry.dead_reason = settlement.dead_reason
    if settlement.state != State.PENDING:
        entry.ended_at = now
        entry.held = 0


def _with_attempt(attempts: str, attempt: tuple[Any, ...]) -> str:
    added = msgspec.json.encode(attempt).decode()
    if attempts == NO_ATTEMPTS:
        return f"[{added}]"
    kept = msgspec.json.decode(attempts)[-(ATTEMPTS_KEPT - 1) :]
    return msgspec.json.encode([*kept, attempt]).decode()


# --- the operator --------------------------------------------------------------


def retry(connection: sqlite3.Connection, id: str, tally: Tally) -> Entry:
    """A dead letter becomes pending again, with its attempts spent forgotten.

    Its dedup key stands in no way. A ttl that ran out no longer counts. On a
    pending entry: due at once.
    """

    def change(entry: Changeable) -> None:
        entry.state, entry.dead_reason, entry.ended_at = State.PENDING, None, None
        entry.due_at, entry.spent = 0, 0

    entry = query.get(connection, id)
    if entry.state == State.DELIVERED:
        return entry
    if entry.state == State.DEAD and entry.expires_at is not None:
        _clear_expiry(connection, entry)
    return _change(connection, id, change, tally)


def _clear_expiry(connection: sqlite3.Connection, entry: Entry) -> None:
    crc = head_crc(
        entry.seq, entry.id, entry.received_at, entry.occurred_at, None, entry.event_type,
        entry.severity, entry.scope, entry.source, entry.dedup_key,
    )  # fmt: skip
    connection.execute(
        "UPDATE entries SET expires_at = NULL, head_crc = ? WHERE seq = ?", (crc, entry.seq)
    )


def set_held(connection: sqlite3.Connection, id: str, held: bool, tally: Tally) -> Entry:
    """Hold or release one entry; only what is pending can be held."""
    entry = query.get(connection, id)
    if entry.state != State.PENDING:
        return entry

    def change(entry: Changeable) -> None:
        entry.held = int(held)

    return _change(connection, id, change, tally)


def _change(connection: sqlite3.Connection, id: str, change: Any, tally: Tally) -> Entry:
    (entry,) = read_changeable(connection, [query.get(connection, id).seq])
    tally.add(entry.state, entry.held, -1)
    change(entry)
    tally.add(entry.state, entry.held, +1)
    write_changeable(connection, [entry])
    return query.get(connection, id)


def drop(connection: sqlite3.Connection, id: str, tally: Tally) -> Entry:
    """Remove an entry for good, pending or dead (a delivered one too).

    Its identities go with it: an exported dead letter can be handed in again.
    """
    entry = query.get(connection, id)
    connection.execute("DELETE FROM entries WHERE seq = ?", (entry.seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (entry.seq,))
    if entry.dedup_key is not None:
        connection.execute(
            "DELETE FROM dedup WHERE key = ? AND id = ?", (f"k:{entry.dedup_key}", id)
        )
    repeat = "r:" + hashlib.sha256(entry.body).hexdigest()
    connection.execute("DELETE FROM dedup WHERE key = ? AND id = ?", (repeat, id))
    tally.add(entry.state, int(entry.held), -1)
    return entry


# --- upkeep --------------------------------------------------------------------


def prune(
    connection: sqlite3.Connection, after_seq: int, window: int, ended_before: int, tally: Tally
) -> tuple[int | None, int]:
    """Delete what was delivered long ago, among the `window` entries after `after_seq`.

    Returns where the next step goes on (None: the end was reached) and how many
    were deleted.
    """
    row = connection.execute(
        "SELECT max(seq), count(*) FROM"
        " (SELECT seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)",
        (after_seq, window),
    ).fetchone()
    last, seen = row
    if last is None:
        return None, 0
    where = "seq > ? AND seq <= ? AND state = 'delivered' AND ended_at < ?"
    bounds = (after_seq, last, ended_before)
    connection.execute(
        f"DELETE FROM bodies WHERE seq IN (SELECT seq FROM entries WHERE {where})", bounds
    )
    deleted = connection.execute(f"DELETE FROM entries WHERE {where}", bounds).rowcount
    tally.delivered -= deleted
    return (last if seen == window else None), deleted


def prune_dedup(connection: sqlite3.Connection, now: int, limit: int) -> int:
    """Forget identities whose window has ended; how many."""
    return connection.execute(
        "DELETE FROM dedup WHERE key IN"
        " (SELECT key FROM dedup WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now, limit),
    ).rowcount


def set_aside_damaged(
    connection: sqlite3.Connection, seq: int, detail: str, now: int, tally: Tally
) -> None:
    """A row failed its checksum: keep what there is where a person can see it."""
    row = connection.execute("SELECT state, held FROM entries WHERE seq = ?", (seq,)).fetchone()
    body = connection.execute(
        "SELECT CAST(body AS BLOB) FROM bodies WHERE seq = ?", (seq,)
    ).fetchone()
    connection.execute(
        "INSERT INTO damaged VALUES (?, ?, ?, ?)", (seq, now, detail, body[0] if body else None)
    )
    connection.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (seq,))
    if row is not None:
        tally.add(row[0], row[1], -1)


# --- meta ----------------------------------------------------------------------
# sending            JSON list of the seqs in flight
# destination_hold   JSON {"reason", "by", "since"}
# last_seq           the highest seq given when entries were last deleted
# salvaged, lost     how much damage has cost so far


def set_meta(connection: sqlite3.Connection, key: str, value: str | None) -> None:
    """Set or (None) remove a value."""
    if value is None:
        connection.execute("DELETE FROM meta WHERE key = ?", (key,))
    else:
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, text_crc(key, value))
        )


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """A value, None where there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])
