"""What changes the outbox, inside a transaction that the caller opens and commits.

Each verb is a few statements of plain SQL. The hot ones (accept, settle) take
many rows in one statement: Python's sqlite3 gives up the interpreter lock at
every step of a statement, and with a busy event loop each step would wait for
it again. Nothing here decides anything about delivery.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from outboxd.outbox import query
from outboxd.outbox.checksums import body_crc, fresh_state_crc, head_crc, state_crc, text_crc
from outboxd.outbox.model import (
    Entry,
    Incoming,
    Receipt,
    Settlement,
    SpoolMark,
    State,
)

# The newest attempts that an entry keeps; `attempt_count` counts them all.
ATTEMPTS_KEPT = 50
NO_ATTEMPTS = "[]"

# An entry that comes in: what is the same in all of them stands in the statement.
_INSERT_ENTRIES = (
    "INSERT INTO entries (seq, id, received_at, occurred_at, expires_at, event_type, severity,"
    " scope, source, dedup_key, repeats, last_occurred_at, head_crc, state_crc, state, held,"
    " due_at, attempt_count, spent, possible_duplicate, attempts)"
)
_ENTRY_PATTERN = "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,'pending',0,0,0,0,0,'[]')"
_STATE_COLUMNS = (
    "state",
    "held",
    "due_at",
    "ended_at",
    "repeats",
    "last_occurred_at",
    "attempt_count",
    "spent",
    "possible_duplicate",
    "dead_reason",
    "attempts",
)


class Changeable:
    """The part of an entry that changes, between reading and writing it back."""

    __slots__ = ("seq", *_STATE_COLUMNS)
    seq: int
    state: str
    held: int
    due_at: int
    ended_at: int | None
    repeats: int
    last_occurred_at: int | None
    attempt_count: int
    spent: int
    possible_duplicate: int
    dead_reason: str | None
    attempts: str

    def __init__(self, row: Sequence[Any]) -> None:
        (
            self.seq,
            self.state,
            self.held,
            self.due_at,
            self.ended_at,
            self.repeats,
            self.last_occurred_at,
            self.attempt_count,
            self.spent,
            self.possible_duplicate,
            self.dead_reason,
            self.attempts,
        ) = row

    def row(self) -> tuple[Any, ...]:
        values = (
            self.state,
            self.held,
            self.due_at,
            self.ended_at,
            self.repeats,
            self.last_occurred_at,
            self.attempt_count,
            self.spent,
            self.possible_duplicate,
            self.dead_reason,
            self.attempts,
        )
        return (self.seq, *values, state_crc(self.seq, *values))


class Tally:
    """What a transaction has done to the counts; counted for good at its commit."""

    __slots__ = ("dead", "delivered", "held", "pending")

    def __init__(self) -> None:
        self.pending = self.delivered = self.dead = self.held = 0

    def add(self, state: str, held: int, by: int) -> None:
        """Count an entry in (+1) or out (-1)."""
        if state == State.PENDING:
            self.pending += by
        elif state == State.DELIVERED:
            self.delivered += by
        else:
            self.dead += by
        self.held += by if held else 0


def portions(rows: Sequence[Any], largest: int = 64) -> Iterator[Sequence[Any]]:
    """Cut into powers of two, so that few statement texts serve every size."""
    start, left = 0, len(rows)
    while left:
        size = min(largest, 1 << (left.bit_length() - 1))
        yield rows[start : start + size]
        start += size
        left -= size


def insert_rows(
    connection: sqlite3.Connection,
    head: str,
    rows: Sequence[tuple[Any, ...]],
    tail: str = "",
    pattern: str | None = None,
) -> None:
    """Many rows, few statements; `pattern` is the row's text where not all of it is bound."""
    for portion in portions(rows):
        marks = pattern or "(" + ",".join("?" * len(portion[0])) + ")"
        values = ",".join([marks] * len(portion))
        connection.execute(f"{head} VALUES {values}{tail}", tuple(chain.from_iterable(portion)))


def fingerprint(item: Incoming) -> str:
    """The identity of an event for `repeat_window`: equal wire bodies."""
    return "r:" + hashlib.sha256(item.body).hexdigest()


# --- accepting ---------------------------------------------------------------


class Windows:
    """How long identities are remembered, in ms; `repeat_ms` 0: repeats are events."""

    __slots__ = ("key_ms", "repeat_ms")

    def __init__(self, key_ms: int, repeat_ms: int) -> None:
        self.key_ms = key_ms
        self.repeat_ms = repeat_ms


def accept(
    connection: sqlite3.Connection,
    items: Sequence[Incoming],
    ids: Callable[[], object],
    next_seq: int,
    windows: Windows,
    now: int,
    tally: Tally,
) -> list[Receipt]:
    """Keep the events that are not known yet; a receipt each, in order."""
    wanted = _keys(items, windows)
    if not wanted:
        receipts, entries, bodies = _rows(items, ids, next_seq)
        dedup: list[tuple[Any, ...]] = []
    else:
        receipts, entries, bodies, dedup = _unknown_rows(
            connection, items, wanted, ids, next_seq, windows, now
        )
    tally.pending += len(entries)
    insert_rows(connection, _INSERT_ENTRIES, entries, pattern=_ENTRY_PATTERN)
    insert_rows(connection, "INSERT INTO bodies (seq, body, crc)", bodies)
    insert_rows(connection, "INSERT OR REPLACE INTO dedup (key, seq, id, expires_at, crc)", dedup)
    return receipts


def _rows(
    items: Sequence[Incoming], ids: Callable[[], object], next_seq: int
) -> tuple[list[Receipt], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of events that carry no identity: the hot path."""
    receipts, entries, bodies = [], [], []
    for seq, item in enumerate(items, next_seq):
        id = str(ids())
        body = item.body
        entries.append(_entry_row(seq, id, item))
        bodies.append((seq, body.decode(), body_crc(seq, body)))
        receipts.append(Receipt(id, "accepted", "pending"))
    return receipts, entries, bodies


def _unknown_rows(
    connection: sqlite3.Connection,
    items: Sequence[Incoming],
    wanted: Sequence[tuple[str, ...]],
    ids: Callable[[], object],
    next_seq: int,
    windows: Windows,
    now: int,
) -> tuple[list[Receipt], list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of those events whose identities are not known."""
    known = _known(connection, {key for keys in wanted for key in keys}, now)
    receipts: list[Receipt] = []
    entries: list[tuple[Any, ...]] = []
    bodies: list[tuple[Any, ...]] = []
    dedup: list[tuple[Any, ...]] = []
    repeats: dict[int, tuple[int, int]] = {}
    for item, keys in zip(items, wanted, strict=True):
        found = next((key for key in keys if key in known), None)
        if found is not None:
            seq, id = known[found]
            if found[0] == "r":
                count, _ = repeats.get(seq, (0, 0))
                repeats[seq] = (count + 1, item.occurred_at or item.received_at)
            receipts.append(Receipt(id, "duplicate", "", found[0] == "r"))
            continue
        seq = next_seq + len(entries)
        id = str(ids())
        entries.append(_entry_row(seq, id, item))
        bodies.append((seq, item.body.decode(), body_crc(seq, item.body)))
        for key in keys:
            window = windows.key_ms if key[0] == "k" else windows.repeat_ms
            known[key] = (seq, id)
            dedup.append((key, seq, id, now + window, text_crc(key, seq, id, now + window)))
        receipts.append(Receipt(id, "accepted", "pending"))
    fresh = {row[1] for row in entries}
    first_ones = {id: seq for seq, id in known.values() if id not in fresh}
    states = _count_repeats(connection, first_ones, repeats, entries, next_seq)
    receipts = [
        r if r.status == "accepted" else r._replace(state=states.get(r.id, "pending"))
        for r in receipts
    ]
    return receipts, entries, bodies, dedup


def _count_repeats(
    connection: sqlite3.Connection,
    first_ones: dict[str, int],
    repeats: dict[int, tuple[int, int]],
    entries: list[tuple[Any, ...]],
    next_seq: int,
) -> dict[str, str]:
    """Count the repeats at the first ones; the state of those that were there before."""
    for seq, (count, last_at) in repeats.items():
        if seq >= next_seq:  # the first one came in this very transaction
            entries[seq - next_seq] = _repeated_row(entries[seq - next_seq], count, last_at)
    # What is gone for good was delivered, and pruned.
    states: dict[str, str] = dict.fromkeys(first_ones, State.DELIVERED.value)
    found = {entry.seq: entry for entry in read_changeable(connection, first_ones.values())}
    changed = []
    for id, seq in first_ones.items():
        entry = found.get(seq)
        if entry is None:
            continue
        states[id] = entry.state
        if seq in repeats:
            count, entry.last_occurred_at = repeats[seq]
            entry.repeats += count
            changed.append(entry)
    write_changeable(connection, changed)
    return states


def _keys(items: Sequence[Incoming], windows: Windows) -> list[tuple[str, ...]]:
    """The identities of each event: the producer's key first, then its repeat hash.

    Empty where no event has any, which is the common case.
    """
    if windows.repeat_ms:
        return [
            ((f"k:{item.dedup_key}",) if item.dedup_key is not None else ()) + (fingerprint(item),)
            for item in items
        ]
    if all(item.dedup_key is None for item in items):
        return []
    return [() if item.dedup_key is None else (f"k:{item.dedup_key}",) for item in items]


def _known(
    connection: sqlite3.Connection, keys: Collection[str], now: int
) -> dict[str, tuple[int, str]]:
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(key, seq, id)) FROM dedup"
        " WHERE key IN (SELECT value FROM json_each(?)) AND expires_at > ?",
        (msgspec.json.encode(list(keys)).decode(), now),
    ).fetchone()
    return {key: (seq, id) for key, seq, id in msgspec.json.decode(text)}


def _entry_row(seq: int, id: str, item: Incoming) -> tuple[Any, ...]:
    (
        _,
        event_type,
        severity,
        scope,
        source,
        received_at,
        occurred_at,
        expires_at,
        dedup_key,
    ) = item
    return (
        seq,
        id,
        received_at,
        occurred_at,
        expires_at,
        event_type,
        severity,
        scope,
        source,
        dedup_key,
        0,
        None,
        head_crc(
            seq, id, received_at, occurred_at, expires_at, event_type, severity, scope, source,
            dedup_key,
        ),
        fresh_state_crc(seq),
    )  # fmt: skip


def _repeated_row(row: tuple[Any, ...], count: int, last_at: int) -> tuple[Any, ...]:
    crc = state_crc(row[0], "pending", 0, 0, None, count, last_at, 0, 0, 0, None, NO_ATTEMPTS)
    return (*row[:10], count, last_at, row[12], crc)


def mark_spool(connection: sqlite3.Connection, mark: SpoolMark) -> None:
    """How far a spool file has been taken."""
    connection.execute(
        "INSERT OR REPLACE INTO spool_progress (file_key, lines_done, crc) VALUES (?, ?, ?)",
        (*mark, text_crc(*mark)),
    )


def forget_spool(connection: sqlite3.Connection, file_keys: Sequence[str]) -> None:
    """The files are gone from the spool for certain."""
    connection.execute(
        "DELETE FROM spool_progress WHERE file_key IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(list(file_keys)).decode(),),
    )


# --- settling ----------------------------------------------------------------


def read_changeable(connection: sqlite3.Connection, seqs: Iterable[int]) -> list[Changeable]:
    """The changing part of the entries that are still there."""
    (text,) = connection.execute(
        f"SELECT json_group_array(json_array(seq, {', '.join(_STATE_COLUMNS)})) FROM entries"
        " WHERE seq IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(list(seqs)).decode(),),
    ).fetchone()
    return [Changeable(row) for row in msgspec.json.decode(text)]


_WRITE_BACK = (
    f" UPDATE entries SET {', '.join(f'{name} = v.{name}' for name in _STATE_COLUMNS)},"
    " state_crc = v.crc FROM v WHERE entries.seq = v.seq"
)


def write_changeable(connection: sqlite3.Connection, changed: Sequence[Changeable]) -> None:
    """Write the changing part back, with its checksum."""
    insert_rows(
        connection,
        f"WITH v (seq, {', '.join(_STATE_COLUMNS)}, crc) AS (",
        [entry.row() for entry in changed],
        ")" + _WRITE_BACK,
    )


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
