"""Rows as they go in and out: many in one statement, and counted.

Python's sqlite3 gives up the interpreter lock at every step of a statement, and
with a busy event loop each step would wait for it again. So what is hot takes
many rows in one step. Nothing here knows what an event or an attempt is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from outboxd.outbox.checksums import state_crc
from outboxd.outbox.model import State

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
