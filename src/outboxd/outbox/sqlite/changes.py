"""What changes entries that are there, beside what attempts meant: the operator, upkeep.

Inside a transaction that the caller opens and commits. Plain SQL; nothing here
decides anything about delivery.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from outboxd.outbox.identities import key_identities, repeat_identity
from outboxd.outbox.model import (
    ChangeStep,
    Entry,
    EntryChange,
    EntryFilter,
    ListPlace,
    PruneStep,
    State,
)
from outboxd.outbox.sqlite import listing, query
from outboxd.outbox.sqlite.rows import (
    CountChanges,
    head_crc,
    read_states,
    write_states,
)

_encode = msgspec.json.Encoder().encode
# Of the bodies that one step of a change of many reads.
_STEP_BYTES = 4 * 1024 * 1024

# --- the operator --------------------------------------------------------------


def change(
    connection: sqlite3.Connection, change: EntryChange, id: str, tally: CountChanges
) -> Entry:
    """Do it; the entry as it is now, or as it was before a drop. Raises UnknownId."""
    entry = query.get(connection, id)
    if change is EntryChange.DROP:
        drop(connection, entry, tally)
        return entry
    if change is EntryChange.RETRY:
        if entry.state == State.DELIVERED:
            return entry
        retry(connection, [entry], tally)
    elif entry.state == State.PENDING:  # only what is pending can be held
        (row,) = read_states(connection, [entry.seq])
        changed = row._replace(held=int(change is EntryChange.HOLD))
        tally.move(row, changed)
        write_states(connection, [changed])
    return query.get(connection, id)


def change_dead(
    connection: sqlite3.Connection,
    change: EntryChange,
    where: EntryFilter,
    place: ListPlace,
    limit: int,
    tally: CountChanges,
) -> ChangeStep:
    """Retry or drop at most `limit` of those that match, in a slice of some milliseconds."""
    assert change in (EntryChange.RETRY, EntryChange.DROP)
    dead = where._replace(states=(State.DEAD.value,))
    entries, following, _ = listing.list_step(connection, dead, place, limit, _STEP_BYTES, False)
    if change is EntryChange.RETRY:
        retry(connection, entries, tally)
    else:
        for entry in entries:
            drop(connection, entry, tally)
    return ChangeStep(following, len(entries))


def retry(connection: sqlite3.Connection, entries: Sequence[Entry], tally: CountChanges) -> None:
    """Dead letters become pending again, with their attempts spent forgotten.

    Their dedup keys stand in no way. A ttl that ran out no longer counts. On a
    pending entry: due at once.
    """
    for entry in entries:
        if entry.state == State.DEAD and entry.expires_at is not None:
            _clear_expiry(connection, entry)
    rows = read_states(connection, [entry.seq for entry in entries])
    retried = [
        row._replace(state=State.PENDING, dead_reason=None, ended_at=None, due_at=0, spent=0)
        for row in rows
    ]
    for before, after in zip(rows, retried, strict=True):
        tally.move(before, after)
    write_states(connection, retried)


def _clear_expiry(connection: sqlite3.Connection, entry: Entry) -> None:
    crc = head_crc(
        entry.seq, entry.id, entry.received_at, entry.occurred_at, None, entry.event_type,
        entry.severity, entry.scope, entry.source, entry.dedup_key, entry.producer,
        entry.hop,
    )  # fmt: skip
    connection.execute(
        "UPDATE entries SET expires_at = NULL, head_crc = ? WHERE seq = ?", (crc, entry.seq)
    )


def drop(connection: sqlite3.Connection, entry: Entry, tally: CountChanges) -> None:
    """Remove an entry for good, pending or dead (a delivered one too).

    Its identities go with it: an exported dead letter can be handed in again.
    """
    connection.execute("DELETE FROM entries WHERE seq = ?", (entry.seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (entry.seq,))
    own = [repeat_identity(entry.producer, entry.body)]
    if entry.dedup_key is not None:
        own += key_identities(entry.producer, entry.dedup_key)
    connection.execute(
        "DELETE FROM dedup WHERE key IN (SELECT value FROM json_each(?)) AND id = ?",
        (msgspec.json.encode(own).decode(), entry.id),
    )
    tally.add(entry.state, int(entry.held), entry.producer, -1)


# --- upkeep --------------------------------------------------------------------


def prune(
    connection: sqlite3.Connection,
    after_seq: int,
    window: int,
    ended_before: int,
    tally: CountChanges,
) -> PruneStep:
    """Delete what was delivered long ago, among the `window` entries after `after_seq`."""
    last, seen = connection.execute(
        "SELECT max(seq), count(*) FROM"
        " (SELECT seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)",
        (after_seq, window),
    ).fetchone()
    if last is None:
        return PruneStep(None, 0)
    where = "seq > ? AND seq <= ? AND state = 'delivered' AND ended_at < ?"
    bounds = (after_seq, last, ended_before)
    connection.execute(
        f"DELETE FROM bodies WHERE seq IN (SELECT seq FROM entries WHERE {where})", bounds
    )
    deleted = connection.execute(f"DELETE FROM entries WHERE {where}", bounds).rowcount
    tally.delivered -= deleted
    return PruneStep(last if seen == window else None, deleted)


def prune_dedup(connection: sqlite3.Connection, now: int, limit: int) -> int:
    """Forget identities whose window has ended; how many."""
    return connection.execute(
        "DELETE FROM dedup WHERE key IN"
        " (SELECT key FROM dedup WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now, limit),
    ).rowcount


def set_aside_damaged(
    connection: sqlite3.Connection, seq: int, detail: str, now: int, tally: CountChanges
) -> None:
    """A row failed its checksum: keep what there is where a person can see it."""
    rows = connection.execute(
        "SELECT state, held, producer FROM entries WHERE seq = ?", (seq,)
    ).fetchall()
    connection.execute(
        "INSERT INTO damaged VALUES"
        " (?, ?, ?, (SELECT CAST(body AS BLOB) FROM bodies WHERE seq = ?))",
        (seq, now, detail, seq),
    )
    connection.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (seq,))
    for state, held, producer in rows:
        tally.add(state, held, producer, -1)
