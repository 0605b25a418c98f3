"""What reads the outbox, in steps that are each short.

The one connection belongs to the writer, so whatever reads makes it wait:
every function here looks at a bounded number of rows and can be called again
to go on. Reads nothing that it could change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from outboxd.errors import UnknownId
from outboxd.outbox.model import Claimed, Counts, Entry, EntryFilter

# Rows that one step of a listing looks at: about 2 ms on a slow machine.
SCAN_ROWS = 1000

_ENTRY = (
    "e.seq, e.id, e.state, e.held, e.event_type, e.severity, e.scope, e.source, e.received_at,"
    " e.occurred_at, e.expires_at, e.due_at, e.ended_at, e.dedup_key, e.repeats,"
    " e.last_occurred_at, e.attempt_count, e.spent, e.possible_duplicate, e.dead_reason,"
    " e.attempts, b.body"
)


_DUE = "state = 'pending' AND held = 0"


class Step(NamedTuple):
    """One step of a listing: what was found, and before which seq to go on."""

    entries: list[Entry]
    before_seq: int | None  # None: the end was reached


def _entry(row: Sequence[Any]) -> Entry:
    attempts = msgspec.json.decode(row[20])
    last = attempts[-1] if attempts else [None] * 5
    return Entry(
        seq=row[0],
        id=row[1],
        state=row[2],
        held=bool(row[3]),
        event_type=row[4],
        severity=row[5],
        scope=row[6],
        source=row[7],
        received_at=row[8],
        occurred_at=row[9],
        expires_at=row[10],
        due_at=row[11],
        ended_at=row[12],
        dedup_key=row[13],
        repeats=row[14],
        last_occurred_at=row[15],
        attempt_count=row[16],
        spent=row[17],
        possible_duplicate=bool(row[18]),
        last_outcome=last[2],
        last_status=last[3],
        last_error=last[4],
        dead_reason=row[19],
        attempts=row[20],
        body=row[21].encode(),
    )


def get(connection: sqlite3.Connection, id: str) -> Entry:
    """The entry with this id.

    Raises:
        UnknownId: there is none.
    """
    row = connection.execute(
        f"SELECT {_ENTRY} FROM entries e JOIN bodies b ON b.seq = e.seq WHERE e.id = ?", (id,)
    ).fetchone()
    if row is None:
        raise UnknownId(
            f"there is no entry with the id {id!r}",
            "`outboxd events` lists those there are; what was delivered is pruned after"
            " [outbox] retain_delivered",
        )
    return _entry(row)


def counts(connection: sqlite3.Connection) -> Counts:
    """Count all entries, by the indexes: they are a fraction of the table."""
    due, held, dead, every = connection.execute(
        "SELECT (SELECT count(*) FROM entries INDEXED BY entries_due"
        f" WHERE {_DUE}),"
        " (SELECT count(*) FROM entries INDEXED BY entries_held WHERE held = 1),"
        " (SELECT count(*) FROM entries INDEXED BY entries_dead WHERE state = 'dead'),"
        " (SELECT count(*) FROM entries)"
    ).fetchone()
    pending = due + held  # only what is pending can be held
    return Counts(pending, every - pending - dead, dead, held)


def last_seq(connection: sqlite3.Connection) -> int:
    """The highest seq that an entry has, or had when entries were last deleted; 0 for none.

    What is remembered of a pruned event names its seq, so none is given twice.
    """
    (there,) = connection.execute("SELECT max(seq) FROM entries").fetchone()
    kept = connection.execute("SELECT value FROM meta WHERE key = 'last_seq'").fetchone()
    return max(there or 0, int(kept[0]) if kept else 0)


# --- listing -------------------------------------------------------------------


def list_step(
    connection: sqlite3.Connection,
    where: EntryFilter,
    before_seq: int | None,
    limit: int,
    scan_rows: int = SCAN_ROWS,
) -> Step:
    """Look at the next `scan_rows` entries, newest first, for at most `limit` matches."""
    before = before_seq if before_seq is not None else (1 << 62)
    index, driver = _driver(where)
    floor = connection.execute(
        f"SELECT min(seq) FROM (SELECT seq FROM entries{index} WHERE {driver} AND seq < ?"
        " ORDER BY seq DESC LIMIT ?)",
        (before, scan_rows),
    ).fetchone()[0]
    if floor is None:
        return Step([], None)
    conditions, values = _conditions(where)
    needle = where.q.casefold()
    rows = connection.execute(
        f"SELECT {_ENTRY} FROM entries e{index} JOIN bodies b ON b.seq = e.seq"
        f" WHERE {driver} AND e.seq < ? AND e.seq >= ?{conditions} ORDER BY e.seq DESC"
        + ("" if needle else " LIMIT ?"),
        (before, floor, *values, *(() if needle else (limit,))),
    )
    found = []
    for row in rows:
        if needle and not mentions(row[21], needle):
            continue
        found.append(_entry(row))
        if len(found) == limit:
            return Step(found, row[0])
    return Step(found, floor)


def _driver(where: EntryFilter) -> tuple[str, str]:
    """Which index walks the entries: few are dead or held, so theirs are short."""
    if where.states == ("dead",):
        return " INDEXED BY entries_dead", "state = 'dead'"
    if where.held:
        return " INDEXED BY entries_held", "held = 1"
    return "", "TRUE"


def _conditions(where: EntryFilter) -> tuple[str, list[object]]:
    clauses: list[str] = []
    values: list[object] = []

    def one_of(column: str, wanted: tuple[str, ...]) -> None:
        if wanted:
            clauses.append(f"{column} IN ({','.join('?' * len(wanted))})")
            values.extend(wanted)

    one_of("e.state", where.states)
    one_of("e.event_type", where.event_types)
    one_of("e.severity", where.severities)
    for name, wanted in (
        ("clusters", where.clusters),
        ("namespaces", where.namespaces),
        ("servicesNames", where.services),
    ):
        if wanted:
            clauses.append(
                f"e.scope != '' AND EXISTS (SELECT 1 FROM json_each(e.scope, '$.{name}')"
                f" WHERE value IN ({','.join('?' * len(wanted))}))"
            )
            values.extend(wanted)
    if where.held is not None:
        clauses.append("e.held = ?")
        values.append(int(where.held))
    if where.since is not None:
        clauses.append("e.received_at >= ?")
        values.append(where.since)
    if where.until is not None:
        clauses.append("e.received_at < ?")
        values.append(where.until)
    return "".join(f" AND {clause}" for clause in clauses), values


def mentions(body: str, needle: str) -> bool:
    """Whether a body holds the (case-folded) text, however JSON has escaped it."""
    if needle in body.casefold():
        return True
    if "\\" not in body:
        return False
    plain = msgspec.json.encode(msgspec.json.decode(body)).decode()
    unescaped = plain.replace('\\"', '"').replace("\\\\", "\\").replace("\\n", "\n")
    return needle in unescaped.casefold()


# --- claiming ------------------------------------------------------------------

_NOT_TAKEN = "seq NOT IN (SELECT value FROM json_each(:taken))"


def fetch(
    connection: sqlite3.Connection,
    count: int,
    taken: Collection[int],
    fifo: bool,
    fresh_share: float,
    now: int,
    horizon: int,
) -> list[Claimed]:
    """Entries that may be sent now, except those in `taken`.

    A due time beyond the horizon was written before the clock was set back.

    Mixed: first a share of the newest, then those whose own backoff ended, then
    the oldest. In strict order (fifo): the oldest ones, and nothing while the
    very oldest waits.
    """
    values = {
        "taken": msgspec.json.encode(list(taken)).decode(),
        "now": now,
        "horizon": horizon,
        "count": count,
    }
    seqs = _fifo(connection, values) if fifo else _mixed(connection, values, count, fresh_share)
    if not seqs:
        return []
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(e.seq, e.id, b.body, e.received_at, e.occurred_at,"
        " e.expires_at, e.attempt_count, e.spent, e.possible_duplicate, e.repeats,"
        " e.last_occurred_at, e.source, b.crc)) FROM entries e LEFT JOIN bodies b ON b.seq = e.seq"
        " WHERE e.seq IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(seqs).decode(),),
    ).fetchone()
    by_seq = {row[0]: row for row in msgspec.json.decode(text)}
    return [_claimed(by_seq[seq]) for seq in seqs if seq in by_seq]


def _claimed(row: Sequence[Any]) -> Claimed:
    return Claimed(
        seq=row[0],
        id=row[1],
        body=(row[2] or "").encode(),  # a missing body fails its checksum
        received_at=row[3],
        occurred_at=row[4],
        expires_at=row[5],
        attempt_count=row[6],
        spent=row[7],
        possible_duplicate=bool(row[8]),
        repeats=row[9],
        last_occurred_at=row[10],
        source=row[11],
        crc=-1 if row[12] is None else row[12],
    )


def _seqs(connection: sqlite3.Connection, sql: str, values: dict[str, object]) -> list[int]:
    (text,) = connection.execute(f"SELECT json_group_array(seq) FROM ({sql})", values).fetchone()
    found: list[int] = msgspec.json.decode(text)
    return found


def _mixed(
    connection: sqlite3.Connection, values: dict[str, object], count: int, fresh_share: float
) -> list[int]:
    fresh = round(count * fresh_share)
    chosen: list[int] = []
    for sql, share in (
        (f"due_at = 0 AND {_NOT_TAKEN} ORDER BY seq DESC", fresh),
        (f"due_at > :horizon AND {_NOT_TAKEN} ORDER BY due_at, seq", count),
        (f"due_at > 0 AND due_at <= :now AND {_NOT_TAKEN} ORDER BY due_at, seq", count),
        (f"due_at = 0 AND {_NOT_TAKEN} ORDER BY seq", count),
    ):
        wanted = min(share, count - len(chosen))
        if wanted <= 0:
            continue
        # Those already chosen may come up again from the other end.
        found = _seqs(
            connection,
            f"SELECT seq FROM entries INDEXED BY entries_due WHERE {_DUE} AND {sql} LIMIT :wanted",
            {**values, "wanted": wanted + len(chosen)},
        )
        already = set(chosen)
        chosen += [seq for seq in found if seq not in already][:wanted]
    return chosen


def _fifo(connection: sqlite3.Connection, values: dict[str, object]) -> list[int]:
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(seq, due_at)) FROM (SELECT seq, due_at FROM entries"
        " WHERE seq IN (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {_DUE} AND due_at = 0 AND {_NOT_TAKEN} ORDER BY seq LIMIT :count)"
        f" OR seq IN (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {_DUE} AND due_at > 0 AND {_NOT_TAKEN} LIMIT :count)"
        " ORDER BY seq LIMIT :count)",
        values,
    ).fetchone()
    ready: list[int] = []
    for seq, due_at in msgspec.json.decode(text):
        if int(str(values["now"])) < due_at <= int(str(values["horizon"])):
            break
        ready.append(seq)
    return ready


def next_due_at(connection: sqlite3.Connection, after: int) -> int | None:
    """The earliest due time of an entry that waits for its own backoff."""
    (at,) = connection.execute(
        f"SELECT min(due_at) FROM entries INDEXED BY entries_due WHERE {_DUE} AND due_at > ?",
        (after,),
    ).fetchone()
    return None if at is None else int(at)


def expired(connection: sqlite3.Connection, now: int, limit: int) -> list[tuple[int, str]]:
    """Seq and id of pending entries whose ttl ran out."""
    return connection.execute(
        "SELECT seq, id FROM entries INDEXED BY entries_expiring WHERE state = 'pending'"
        " AND expires_at IS NOT NULL AND expires_at <= :now LIMIT :limit",
        {"now": now, "limit": limit},
    ).fetchall()


def next_expiry_at(connection: sqlite3.Connection, after: int) -> int | None:
    """When the ttl of a pending entry runs out next."""
    (at,) = connection.execute(
        "SELECT min(expires_at) FROM entries INDEXED BY entries_expiring"
        " WHERE state = 'pending' AND expires_at IS NOT NULL AND expires_at > ?",
        (after,),
    ).fetchone()
    return None if at is None else int(at)


def oldest_pending_at(connection: sqlite3.Connection) -> int | None:
    """When the pending entry that waits longest was received."""
    (at,) = connection.execute(
        "SELECT min(received_at) FROM entries WHERE seq IN ("
        "SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {_DUE} AND due_at = 0 ORDER BY seq LIMIT 1)"
        " UNION ALL SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {_DUE} AND due_at > 0 LIMIT 1000)"
        " UNION ALL SELECT * FROM (SELECT seq FROM entries INDEXED BY entries_held"
        " WHERE held = 1 ORDER BY seq LIMIT 1))"
    ).fetchone()
    return None if at is None else int(at)
