"""Looks through the open outbox for damage, a slice at a time.

SQLite's integrity check does not see a flipped bit inside a value, and a page
of the file carries no checksum. So every row is read now and then and held
against its own. `step` is pure reading; `Scrubber` says what follows from what
it finds: a row whose body is damaged is set aside, anything else ends the
process, because only the salvage at the next start can put it right. It must
never repair in place: an index that lost its row would be made worse.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from outboxd.errors import OutboxDamaged
from outboxd.outbox.model import State
from outboxd.outbox.sqlite.rows import DedupRow, EntryRow, body_crc, text_crc

if TYPE_CHECKING:
    from outboxd.outbox.outbox import Outbox
    from outboxd.outbox.sqlite.engine import SqliteEngine

# Some 3 ms a slice on a slow machine: commits wait for it.
ROWS_A_STEP = 200

_ENTRY = ", ".join(f"e.{name}" for name in EntryRow._fields)
_CLAIMABLE = "state = 'pending' AND held = 0"
_BODY_DAMAGED = "the body failed its checksum"


class Position(NamedTuple):
    """Where a pass over the outbox stands."""

    phase: str = "entries"
    after: int | str = 0


class Findings(NamedTuple):
    """What one slice showed."""

    next: Position | None  # None: the pass is complete
    bodies: list[tuple[int, str]]  # entries whose body alone is damaged: seq, detail
    fault: str  # what only a salvage can put right; "" for nothing


def step(connection: sqlite3.Connection, position: Position, rows: int = ROWS_A_STEP) -> Findings:
    """Look at the next rows.

    Raises:
        sqlite3.DatabaseError: SQLite itself found its file malformed.
    """
    try:
        return _PHASES[position.phase](connection, position.after, rows)
    except sqlite3.OperationalError as error:
        # Python's own complaint about text that is no UTF-8 has no code.
        if getattr(error, "sqlite_errorcode", None) is not None:
            raise
        return Findings(None, [], f"text that is no UTF-8 in {position.phase}")


def _entries(connection: sqlite3.Connection, after: Any, rows: int) -> Findings:
    found = connection.execute(
        f"SELECT {_ENTRY}, CAST(b.body AS BLOB), b.crc FROM entries e"
        " LEFT JOIN bodies b ON b.seq = e.seq WHERE e.seq > ? ORDER BY e.seq LIMIT ?",
        (after, rows),
    ).fetchall()
    if not found:
        return Findings(Position("bodies"), [], "")
    entries: list[EntryRow] = []
    bodies: list[tuple[int, str]] = []
    for *columns, body, crc in found:
        entry = EntryRow._make(columns)
        entries.append(entry)
        if body is None or crc != body_crc(entry.seq, body):
            bodies.append((entry.seq, _BODY_DAMAGED))
    last = entries[-1].seq
    fault = next((f"entry {row.seq}: {why}" for row in entries if (why := entry_fault(row))), "")
    if not fault:
        fault = _index_fault(connection, entries, after, last)
    return Findings(Position("entries", last), bodies, fault)


def entry_fault(row: EntryRow) -> str:
    """What is wrong with an entry's row, "" for nothing."""
    if row.head_crc != row.right_head_crc():
        return "what it is failed its checksum"
    if row.state_crc != row.right_state_crc():
        return "its state failed its checksum"
    return ""


def _index_fault(
    connection: sqlite3.Connection, entries: list[EntryRow], after: int, last: int
) -> str:
    """Claims walk an index: what is missing there would never be sent."""
    claimable = [row for row in entries if row.state == State.PENDING and not row.held]
    indexed = connection.execute(
        f"SELECT seq FROM entries INDEXED BY entries_due WHERE {_CLAIMABLE} AND due_at = 0"
        " AND seq > ? AND seq <= ?",
        (after, last),
    ).fetchall()
    if {seq for (seq,) in indexed} != {row.seq for row in claimable if row.due_at == 0}:
        return f"the index of due entries is wrong between {after} and {last}"
    for row in claimable:
        if (
            row.due_at != 0
            and not connection.execute(
                f"SELECT 1 FROM entries INDEXED BY entries_due WHERE {_CLAIMABLE}"
                " AND due_at = ? AND seq = ?",
                (row.due_at, row.seq),
            ).fetchone()
        ):
            return f"entry {row.seq} is missing in the index of due entries"
    for row in entries:
        by_id = connection.execute(
            "SELECT seq FROM entries INDEXED BY entries_id WHERE id = ?", (row.id,)
        ).fetchone()
        if by_id != (row.seq,):
            return f"entry {row.seq} is missing in the index of ids"
    return ""


def _bodies(connection: sqlite3.Connection, after: Any, rows: int) -> Findings:
    last, orphan = connection.execute(
        "SELECT max(b.seq), min(b.seq) FILTER (WHERE e.seq IS NULL) FROM"
        " (SELECT seq FROM bodies WHERE seq > ? ORDER BY seq LIMIT ?) b"
        " LEFT JOIN entries e ON e.seq = b.seq",
        (after, rows),
    ).fetchone()
    fault = "" if orphan is None else f"there is a body but no entry {orphan}"
    return Findings(Position("dedup", "") if last is None else Position("bodies", last), [], fault)


def _dedup(connection: sqlite3.Connection, after: Any, rows: int) -> Findings:
    found = [
        DedupRow._make(row)
        for row in connection.execute(
            f"SELECT {', '.join(DedupRow._fields)} FROM dedup WHERE key > ? ORDER BY key LIMIT ?",
            (after, rows),
        )
    ]
    is_right = all(row.is_right() for row in found)
    fault = "" if is_right else "an identity of the dedup window failed its checksum"
    return Findings(Position("dedup", found[-1].key) if found else Position("small"), [], fault)


def _small(connection: sqlite3.Connection, after: Any, rows: int) -> Findings:
    fault = ""
    for key, value, crc in connection.execute("SELECT key, value, crc FROM meta"):
        if crc != text_crc(key, value):
            fault = "a setting of the outbox failed its checksum"
    for key, lines, crc in connection.execute(
        "SELECT file_key, lines_done, crc FROM spool_progress"
    ):
        if crc != text_crc(key, lines):
            fault = "a spool file's progress failed its checksum"
    return Findings(None, [], fault)


_PHASES = {"entries": _entries, "bodies": _bodies, "dedup": _dedup, "small": _small}


class Scrubber:
    """Goes through the outbox again and again, a slice at each call."""

    def __init__(self, outbox: Outbox, engine: SqliteEngine) -> None:
        self._outbox = outbox
        self._connection = engine.connection
        self._position = Position()
        self.passes = 0  # complete ones

    async def step(self) -> None:
        """Look at one slice and act on what it shows.

        Raises:
            OutboxDamaged: the process must end; the next start salvages.
        """
        position = self._position
        findings = await self._outbox.read(lambda _: step(self._connection, position))
        if findings.fault:
            raise self._end(findings.fault)
        for seq, detail in findings.bodies:
            await self._outbox.set_aside_damaged(seq, detail)
        if findings.next is None:
            self.passes += 1
        self._position = findings.next or Position()

    def _end(self, fault: str) -> OutboxDamaged:
        path = self._outbox.path
        error = OutboxDamaged(
            f"{path} is damaged: {fault}",
            "the agent stops; at its next start it sets the file aside and salvages",
            fault,
        )
        self._outbox.stop_for(error)
        return error
