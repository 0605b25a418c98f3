"""Events coming in: which are known already, and the rows of those that are not.

Inside a transaction that the caller opens and commits; a receipt is worth
nothing before that. It decides nothing about delivery.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from outboxd.outbox.checksums import body_crc, fresh_state_crc, head_crc, state_crc, text_crc
from outboxd.outbox.model import Incoming, Receipt, SpoolMark, State
from outboxd.outbox.rows import Tally, insert_rows, read_changeable, write_changeable

NO_ATTEMPTS = "[]"

# An entry that comes in: what is the same in all of them stands in the statement.
_INSERT_ENTRIES = (
    "INSERT INTO entries (seq, id, received_at, occurred_at, expires_at, event_type, severity,"
    " scope, source, dedup_key, repeats, last_occurred_at, head_crc, state_crc, state, held,"
    " due_at, attempt_count, spent, possible_duplicate, attempts)"
)
_ENTRY_PATTERN = "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,'pending',0,0,0,0,0,'[]')"


def fingerprint(item: Incoming) -> str:
    """The identity of an event for `repeat_window`: equal wire bodies."""
    return "r:" + hashlib.sha256(item.body).hexdigest()


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
