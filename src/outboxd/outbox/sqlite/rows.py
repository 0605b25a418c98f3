"""Rows as they go in and out: many in one statement, with their checksums, and counted.

Python's sqlite3 gives up the interpreter lock at every step of a statement, and
with a busy event loop each step would wait for it again. So what is hot takes
many rows in one step. Nothing here knows what an event or an attempt is.

SQLite checks the frames of its log, but not the pages of its file, and its
integrity check does not see a flipped bit inside a value. So each row carries
CRC-32 sums of its own, which prove that it is the one that was written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from outboxd.outbox.model import State

NO_ATTEMPTS = "[]"


class EntryRow(NamedTuple):
    """A row of `entries`, its columns in the table's order."""

    seq: int
    id: str
    state: str
    held: int
    due_at: int
    received_at: int
    occurred_at: int | None
    expires_at: int | None
    ended_at: int | None
    event_type: str
    severity: str
    scope: str
    source: str
    dedup_key: str | None
    repeats: int
    last_occurred_at: int | None
    attempt_count: int
    spent: int
    possible_duplicate: int
    dead_reason: str | None
    attempts: str
    head_crc: int
    state_crc: int
    producer: str
    hop: str | None

    def right_head_crc(self) -> int:
        """The checksum of what never changes, as it should be."""
        return head_crc(
            self.seq, self.id, self.received_at, self.occurred_at, self.expires_at,
            self.event_type, self.severity, self.scope, self.source, self.dedup_key,
            self.producer, self.hop,
        )  # fmt: skip

    def right_state_crc(self) -> int:
        """The checksum of what a settlement changes, as it should be."""
        return state_crc(
            self.seq, self.state, self.held, self.due_at, self.ended_at, self.repeats,
            self.last_occurred_at, self.attempt_count, self.spent, self.possible_duplicate,
            self.dead_reason, self.attempts,
        )  # fmt: skip


class DedupRow(NamedTuple):
    """A row of `dedup`."""

    key: str
    seq: int
    id: str
    expires_at: int
    crc: int
    mark: int = 0  # a later one of the same key is another event; 0: none is

    @classmethod
    def made(cls, key: str, seq: int, id: str, expires_at: int, mark: int = 0) -> DedupRow:
        """With its checksum."""
        return cls(key, seq, id, expires_at, _dedup_crc(key, seq, id, expires_at, mark), mark)

    def is_right(self) -> bool:
        """Whether its checksum is."""
        right = _dedup_crc(self.key, self.seq, self.id, self.expires_at, self.mark)
        return self.crc == right


def _dedup_crc(key: str, seq: int, id: str, expires_at: int, mark: int) -> int:
    """Without a mark as it was before there were any."""
    return text_crc(key, seq, id, expires_at, *([mark] if mark else []))


class StateRow(NamedTuple):
    """The part of an entry that changes, to be written back, and by whom it is."""

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
    producer: str

    def right_crc(self) -> int:
        """The checksum of it, as it should be."""
        return state_crc(
            self.seq, self.state, self.held, self.due_at, self.ended_at, self.repeats,
            self.last_occurred_at, self.attempt_count, self.spent, self.possible_duplicate,
            self.dead_reason, self.attempts,
        )  # fmt: skip


_STATE_COLUMNS = tuple(name for name in StateRow._fields if name not in ("seq", "producer"))
_decode_states = msgspec.json.Decoder(list[StateRow]).decode


class CountChanges:
    """What a transaction has done to the counts; counted for good at its commit."""

    __slots__ = ("dead", "delivered", "held", "pending", "waiting")

    def __init__(self) -> None:
        self.pending = self.delivered = self.dead = self.held = 0
        self.waiting: dict[str, int] = {}  # by producer, what is pending

    def add(self, state: str, held: int, producer: str, by: int) -> None:
        """Count an entry in (+1) or out (-1)."""
        if state == State.PENDING:
            self.pending += by
            self.waiting[producer] = self.waiting.get(producer, 0) + by
        elif state == State.DELIVERED:
            self.delivered += by
        else:
            self.dead += by
        self.held += by if held else 0

    def move(self, before: StateRow, after: StateRow) -> None:
        """Count an entry from one state to another."""
        self.add(before.state, before.held, before.producer, -1)
        self.add(after.state, after.held, after.producer, +1)


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
    more: Sequence[object] = (),
) -> int:
    """Many rows, few statements; `pattern` is the row's text where not all of it is
    bound, `more` what is bound behind the rows. How many were inserted or changed."""
    # `rowcount` is -1 for a statement that begins with WITH.
    before = connection.total_changes
    for portion in portions(rows):
        marks = pattern or "(" + ",".join("?" * len(portion[0])) + ")"
        values = ",".join([marks] * len(portion))
        bound = (*chain.from_iterable(portion), *more)
        connection.execute(f"{head} VALUES {values}{tail}", bound)
    return connection.total_changes - before


def read_states(connection: sqlite3.Connection, seqs: Iterable[int]) -> list[StateRow]:
    """The changing part of the entries that are still there."""
    (text,) = connection.execute(
        f"SELECT json_group_array(json_array({', '.join(StateRow._fields)})) FROM entries"
        " WHERE seq IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(list(seqs)).decode(),),
    ).fetchone()
    return _decode_states(text)


_WRITE_BACK = (
    f" UPDATE entries SET {', '.join(f'{name} = v.{name}' for name in _STATE_COLUMNS)},"
    " state_crc = v.crc FROM v WHERE entries.seq = v.seq"
)


def write_states(connection: sqlite3.Connection, changed: Sequence[StateRow]) -> None:
    """Write the changing part back, with its checksum."""
    insert_rows(
        connection,
        f"WITH v ({', '.join(StateRow._fields)}, crc) AS (",
        [(*row, row.right_crc()) for row in changed],
        ")" + _WRITE_BACK,
    )


def body_crc(seq: int, body: bytes) -> int:
    """Covers `bodies.body` and which entry it belongs to."""
    return crc32(body, seq & 0xFFFFFFFF)


def head_crc(
    seq: int,
    id: str,
    received_at: int,
    occurred_at: int | None,
    expires_at: int | None,
    event_type: str,
    severity: str,
    scope: str,
    source: str,
    dedup_key: str | None,
    producer: str,
    hop: str | None,
) -> int:
    """Covers what never changes in an entry. Without a producer or a hop it is as it
    was before entries had one."""
    by = f"|{producer}" if producer else ""
    if hop is not None:
        by = f"|{producer}|{hop}"
    return crc32(
        f"{seq}|{id}|{received_at}|{occurred_at}|{expires_at}|{event_type}|{severity}|"
        f"{scope}|{source}|{dedup_key}{by}".encode()
    )


def state_crc(
    seq: int,
    state: str,
    held: int,
    due_at: int,
    ended_at: int | None,
    repeats: int,
    last_occurred_at: int | None,
    attempt_count: int,
    spent: int,
    possible_duplicate: int,
    dead_reason: str | None,
    attempts: str,
) -> int:
    """Covers what a settlement or the operator changes in an entry."""
    return crc32(
        f"{state}|{held}|{due_at}|{ended_at}|{repeats}|{last_occurred_at}|"
        f"{attempt_count}|{spent}|{possible_duplicate}|{dead_reason}|{attempts}".encode(),
        seq & 0xFFFFFFFF,
    )


# What `state_crc` covers in an entry that has just come in.
_FRESH = b"pending|0|0|None|0|None|0|0|0|None|[]"


def fresh_state_crc(seq: int) -> int:
    """`state_crc` of an entry that has just come in and is not held."""
    return crc32(_FRESH, seq & 0xFFFFFFFF)


def text_crc(*parts: object) -> int:
    """Covers the small rows: dedup keys and meta."""
    return crc32("|".join(map(str, parts)).encode())


# --- meta ----------------------------------------------------------------------
# sending            JSON list of the seqs in flight
# destination_hold   JSON {"reason", "by", "since"}
# last_seq           the highest seq given when entries were last deleted
# running            there is a log beside the file: an agent has it, or had when it died
# copied_at          when this copy was made, in ms
# doubtful_until     what is pending up to this seq may have been delivered
# move               JSON of a MoveNote: the last move to or from another outbox
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
    if row is None:
        return None
    (value,) = row
    return str(value)
