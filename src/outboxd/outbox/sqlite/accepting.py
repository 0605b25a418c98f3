"""Events coming in: which are known already, and the rows of those that are not.

Inside a transaction that the caller opens and commits; a receipt is worth
nothing before that. It decides nothing about delivery.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import msgspec

from outboxd.outbox.identities import OLD_KEY, REPEAT, Now, Windows, key_identities, repeat_identity
from outboxd.outbox.model import Incoming, Receipt, SpoolMark, State
from outboxd.outbox.sqlite.rows import (
    NO_ATTEMPTS,
    CountChanges,
    DedupRow,
    body_crc,
    fresh_state_crc,
    head_crc,
    insert_rows,
    read_states,
    state_crc,
    text_crc,
    write_states,
)


class _FreshRow(NamedTuple):
    """An entry that comes in, but for what is the same in all of them."""

    seq: int
    id: str
    received_at: int
    occurred_at: int | None
    expires_at: int | None
    event_type: str
    severity: str
    scope: str
    source: str
    dedup_key: str | None
    repeats: int
    last_occurred_at: int | None
    head_crc: int
    state_crc: int
    producer: str
    hop: str | None


class _BodyRow(NamedTuple):
    seq: int
    body: str
    crc: int


class _Rows(NamedTuple):
    """What becomes of some events: receipts for all, rows for those not known."""

    receipts: list[Receipt]
    entries: list[_FreshRow]
    bodies: list[_BodyRow]
    dedup: list[DedupRow]


class _Known(NamedTuple):
    """The first event of an identity."""

    seq: int
    id: str
    mark: int


_INSERT_ENTRIES = (
    f"INSERT INTO entries ({', '.join(_FreshRow._fields)}, state, held,"
    " due_at, attempt_count, spent, possible_duplicate, attempts)"
)
_ENTRY_PATTERN = f"({'?,' * len(_FreshRow._fields)}'pending',0,0,0,0,0,'[]')"


def has_old_keys(connection: sqlite3.Connection) -> bool:
    """Whether there are keys without their producer."""
    (found,) = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM dedup WHERE key >= 'k:' AND key < 'k;')"
    ).fetchone()
    return bool(found)


def accept(
    connection: sqlite3.Connection,
    items: Sequence[Incoming],
    ids: Callable[[], object],
    next_seq: int,
    windows: Windows,
    now: Now,
    tally: CountChanges,
) -> list[Receipt]:
    """Keep the events that are not known yet; a receipt each, in order."""
    wanted = _keys(items, windows)
    if not wanted:
        rows = _rows(items, ids, next_seq)
    else:
        rows = _unknown_rows(connection, items, wanted, ids, next_seq, windows, now)
    for row in rows.entries:
        tally.add(State.PENDING, 0, row.producer, +1)
    insert_rows(connection, _INSERT_ENTRIES, rows.entries, pattern=_ENTRY_PATTERN)
    insert_rows(connection, "INSERT INTO bodies (seq, body, crc)", rows.bodies)
    insert_rows(
        connection, f"INSERT OR REPLACE INTO dedup ({', '.join(DedupRow._fields)})", rows.dedup
    )
    return rows.receipts


def state_of_key(
    connection: sqlite3.Connection, producer: str, dedup_key: str, now: Now
) -> str | None:
    """The state of the producer's entry with this key; None where it is not known."""
    keys = key_identities(producer, dedup_key)
    known = _known(connection, keys, now)
    first = next((known[key] for key in keys if key in known), None)
    if first is None:
        return None
    # What is gone for good was delivered, and pruned.
    return next((row.state for row in read_states(connection, [first.seq])), State.DELIVERED)


def _rows(items: Sequence[Incoming], ids: Callable[[], object], next_seq: int) -> _Rows:
    """The rows of events that carry no identity: the hot path."""
    receipts, entries, bodies = [], [], []
    for seq, item in enumerate(items, next_seq):
        id = str(ids())
        body = item.body
        entries.append(_fresh_row(seq, id, item))
        bodies.append(_BodyRow(seq, body.decode(), body_crc(seq, body)))
        receipts.append(Receipt(id, "accepted", "pending"))
    return _Rows(receipts, entries, bodies, [])


def _unknown_rows(
    connection: sqlite3.Connection,
    items: Sequence[Incoming],
    wanted: Sequence[tuple[str, ...]],
    ids: Callable[[], object],
    next_seq: int,
    windows: Windows,
    now: Now,
) -> _Rows:
    """The rows of those events whose identities are not known."""
    known = _known(connection, {key for keys in wanted for key in keys}, now)
    rows = _Rows([], [], [], [])
    repeats: dict[int, tuple[int, int]] = {}
    for item, keys in zip(items, wanted, strict=True):
        found = next((key for key in keys if _is_same(item, known.get(key))), None)
        if found is not None:
            first, is_repeat = known[found], found.startswith(REPEAT)
            if is_repeat:
                count, _ = repeats.get(first.seq, (0, 0))
                repeats[first.seq] = (count + 1, item.occurred_at or item.received_at)
            elif first.mark:
                # What comes again and again is remembered from its last time on.
                expires_at = now.wall_ms + windows.key_ms
                rows.dedup.append(DedupRow.made(found, first.seq, first.id, expires_at, first.mark))
            rows.receipts.append(Receipt(first.id, "duplicate", "", is_repeat))
            continue
        seq = next_seq + len(rows.entries)
        id = str(ids())
        rows.entries.append(_fresh_row(seq, id, item))
        rows.bodies.append(_BodyRow(seq, item.body.decode(), body_crc(seq, item.body)))
        for key in keys:
            if key.startswith(OLD_KEY) and item.producer:
                continue
            window_ms = windows.repeat_ms if key.startswith(REPEAT) else windows.key_ms
            mark = 0 if key.startswith(REPEAT) else item.dedup_mark
            known[key] = _Known(seq, id, mark)
            rows.dedup.append(DedupRow.made(key, seq, id, now.wall_ms + window_ms, mark))
        rows.receipts.append(Receipt(id, "accepted", "pending"))
    fresh = {row.id for row in rows.entries}
    first_ones = {first.id: first.seq for first in known.values() if first.id not in fresh}
    states = _count_repeats(connection, first_ones, repeats, rows.entries, next_seq)
    receipts = [
        r if r.status == "accepted" else r._replace(state=states.get(r.id, "pending"))
        for r in rows.receipts
    ]
    return rows._replace(receipts=receipts)


def _is_same(item: Incoming, known: _Known | None) -> bool:
    """Whether an event with one of its identities is the same; not where this one's
    mark is later."""
    return known is not None and (not item.dedup_mark or item.dedup_mark <= known.mark)


def _count_repeats(
    connection: sqlite3.Connection,
    first_ones: dict[str, int],
    repeats: dict[int, tuple[int, int]],
    entries: list[_FreshRow],
    next_seq: int,
) -> dict[str, str]:
    """Count the repeats at the first ones; the state of those that were there before."""
    for seq, (count, last_at) in repeats.items():
        if seq >= next_seq:  # the first one came in this very transaction
            entries[seq - next_seq] = _repeated_row(entries[seq - next_seq], count, last_at)
    # What is gone for good was delivered, and pruned.
    states: dict[str, str] = dict.fromkeys(first_ones, State.DELIVERED.value)
    found = {row.seq: row for row in read_states(connection, first_ones.values())}
    changed = []
    for id, seq in first_ones.items():
        row = found.get(seq)
        if row is None:
            continue
        states[id] = row.state
        if seq in repeats:
            count, last_at = repeats[seq]
            changed.append(row._replace(repeats=row.repeats + count, last_occurred_at=last_at))
    write_states(connection, changed)
    return states


def _keys(items: Sequence[Incoming], windows: Windows) -> list[tuple[str, ...]]:
    """The identities of each event: the producer's key first, then its repeat hash.

    Empty where no event has any, which is the common case.
    """
    if windows.repeat_ms:
        return [
            (*_own_keys(item, windows), repeat_identity(item.producer, item.body)) for item in items
        ]
    if all(item.dedup_key is None for item in items):
        return []
    return [_own_keys(item, windows) for item in items]


def _own_keys(item: Incoming, windows: Windows) -> tuple[str, ...]:
    if item.dedup_key is None:
        return ()
    keys = key_identities(item.producer, item.dedup_key)
    return tuple(keys if windows.has_old_keys else keys[:1])


def _known(connection: sqlite3.Connection, keys: Collection[str], now: Now) -> dict[str, _Known]:
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(key, expires_at, seq, id, mark)) FROM dedup"
        " WHERE key IN (SELECT value FROM json_each(?)) AND expires_at > ?",
        (msgspec.json.encode(list(keys)).decode(), min(now)),
    ).fetchone()
    return {
        key: _Known(*first)
        for key, expires_at, *first in msgspec.json.decode(text)
        # A repeat is one by the clock that people read.
        if expires_at > (now.wall_ms if key.startswith(REPEAT) else now.keys_ms)
    }


def _fresh_row(seq: int, id: str, item: Incoming) -> _FreshRow:
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
        _,
        producer,
        hop,
    ) = item
    crc = head_crc(
        seq, id, received_at, occurred_at, expires_at, event_type, severity, scope, source,
        dedup_key, producer, hop,
    )  # fmt: skip
    return _FreshRow(
        seq, id, received_at, occurred_at, expires_at, event_type, severity, scope, source,
        dedup_key, 0, None, crc, fresh_state_crc(seq), producer, hop,
    )  # fmt: skip


def _repeated_row(row: _FreshRow, count: int, last_at: int) -> _FreshRow:
    crc = state_crc(row.seq, "pending", 0, 0, None, count, last_at, 0, 0, 0, None, NO_ATTEMPTS)
    return row._replace(repeats=count, last_occurred_at=last_at, state_crc=crc)


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
