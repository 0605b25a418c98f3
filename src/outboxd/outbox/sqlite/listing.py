"""A listing's steps in SQL, each so short that the writer hardly waits.

The one connection belongs to the writer: so a step ends after some
milliseconds, however large the bodies are and however little matches.

Which rows are looked at is chosen by what is asked for, so that few are read
for nothing: dead, held and pending entries, an id's beginning and a time from
which on have an index each; everything else walks the table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from time import perf_counter
from typing import Any

import msgspec

from outboxd.outbox.mentions import Text, in_last_error, mentions
from outboxd.outbox.model import Entry, EntryFilter, ListPlace, ListStep
from outboxd.outbox.sqlite.query import ENTRY, NEIGHBOURS, SLICE_S, entry_of
from outboxd.outbox.sqlite.rows import EntryRow

# Looked at between two looks at the clock: a few at first, as each may hold 250 KB of
# names that SQL looks through; then as many more each time as the slice has room for.
SCAN_ROWS_FIRST, SCAN_ROWS = 4, 500
# Pending entries with a backoff of their own are few; from here on their index,
# which is not in the order of receipt, is no help.
BACKOFFS_MAX = 2000
# An entry's id is made after its receipt; the clock may have been set meanwhile.
ID_SLACK_MS = 60_000


def list_step(
    connection: sqlite3.Connection,
    where: EntryFilter,
    place: ListPlace,
    limit: int,
    bytes_max: int,
    is_begun: bool,
) -> ListStep:
    """Go on from a place for one slice; see `Engine.list_step`."""
    step = _Step(connection, where, place, limit, bytes_max, is_begun)
    end_s = perf_counter() + SLICE_S
    while not step.look(end_s) and perf_counter() <= end_s:
        pass
    return ListStep(step.found, step.place, step.is_full)


def entries_of(
    connection: sqlite3.Connection, where: EntryFilter, seqs: Sequence[int]
) -> list[Entry]:
    """Those of some entries that match but for its texts, newest first."""
    clauses, values = conditions(where)
    rows = connection.execute(
        f"SELECT {ENTRY}, {NEIGHBOURS}, b.body FROM entries e JOIN bodies b ON b.seq = e.seq"
        f" WHERE e.seq IN (SELECT value FROM json_each(?)){clauses} ORDER BY e.seq DESC",
        (_json(list(seqs)), *values),
    )
    return [
        entry_of(EntryRow._make(columns), body, before, after)
        for *columns, before, after, body in rows
    ]


class _Step:
    """One slice of a listing."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        where: EntryFilter,
        place: ListPlace,
        limit: int,
        bytes_max: int,
        is_begun: bool,
    ) -> None:
        self.found: list[Entry] = []
        self.place: ListPlace | None = place  # where to go on; None: the end was reached
        self.is_full = False
        self._connection = connection
        self._where = where
        self._needle = where.q.casefold()
        self._error = where.error.casefold()
        self._limit = limit
        self._bytes_max = bytes_max
        self._bytes = 0
        self._is_begun = is_begun  # the page has an entry
        self._rows = SCAN_ROWS_FIRST
        self._conditions, self._values = conditions(where)

    def look(self, end_s: float) -> bool:
        """Look at the next few rows; whether the slice has done all that it can."""
        place = self.place
        assert place is not None
        if place.ids_after is not None:
            return self._go_on_jumping(place, place.ids_after)
        count, self._rows = self._rows, min(2 * self._rows, SCAN_ROWS)
        seqs = candidates(self._connection, self._where, place.before_seq, count)
        values: list[Any]
        if seqs is None:
            floor, newest_at = self._connection.execute(
                "SELECT min(seq), max(received_at) FROM (SELECT seq, received_at FROM entries"
                " WHERE seq < ? ORDER BY seq DESC LIMIT ?)",
                (place.before_seq, count),
            ).fetchone()
            since = self._where.since
            if floor is not None and since is not None and newest_at < since:
                # Older ones follow; but where the clock was set back, newer ones may.
                self.place = ListPlace(floor, id_from(since - ID_SLACK_MS))
                return False
            chosen, values = "e.seq < ? AND e.seq >= ?", [place.before_seq, floor]
        else:
            floor = min(seqs, default=None)
            chosen, values = "e.seq IN (SELECT value FROM json_each(?))", [_json(seqs)]
        if floor is None:
            self.place = None
            return True
        return self._take(chosen, values, floor, end_s)

    def _go_on_jumping(self, place: ListPlace, ids_after: str) -> bool:
        """Look in the index of ids, which begin with their time, for the newest seq
        below this place that was received from the wanted moment on."""
        last, count, seq = self._connection.execute(
            "SELECT max(id), count(*), max(CASE WHEN seq < ? THEN seq END) FROM"
            " (SELECT id, seq FROM entries INDEXED BY entries_id WHERE id > ?"
            " ORDER BY id LIMIT ?)",
            (place.before_seq, ids_after, 4 * SCAN_ROWS),
        ).fetchone()
        best = max(seq or 0, place.best_seq)
        if count == 4 * SCAN_ROWS:
            self.place = ListPlace(place.before_seq, last, best)
            return False
        self.place = ListPlace(best + 1) if best else None
        return self.place is None

    def _take(self, chosen: str, values: list[Any], floor: int, end_s: float) -> bool:
        """Take what matches of the chosen rows; whether the slice is over or full."""
        sql = (
            f"SELECT {ENTRY}, {NEIGHBOURS}, b.body FROM entries e JOIN bodies b ON b.seq = e.seq"
            f" WHERE {chosen}{self._conditions} ORDER BY e.seq DESC"
        )
        with closing(self._connection.execute(sql, (*values, *self._values))) as rows:
            for *columns, before, after, body in rows:
                row = EntryRow._make(columns)
                if self._matches(row, body):
                    if self._bytes + len(body) > self._bytes_max and self._is_begun:
                        self.is_full = True
                        self.place = ListPlace(row.seq + 1)
                        return True
                    self.found.append(entry_of(row, body, before, after))
                    self._bytes += len(body)
                    self._is_begun = True
                self.place = ListPlace(row.seq)
                if len(self.found) == self._limit:
                    self.is_full = True
                    return True
                if perf_counter() > end_s:
                    return True
        self.place = ListPlace(floor)
        return False

    def _matches(self, row: EntryRow, body: str) -> bool:
        if self._error and not in_last_error(row.attempts, self._error):
            return False
        if not self._needle:
            return True
        return mentions(Text(row.id, row.dedup_key, row.attempts, body), self._needle)


def id_from(at: int) -> str:
    """What ids of this moment (ms since 1970) and later are greater than."""
    digits = f"{max(0, at):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def candidates(
    connection: sqlite3.Connection, where: EntryFilter, before: int, count: int
) -> list[int] | None:
    """The newest seqs, at most `count`, that an index says may match; None: no index helps."""
    parts: list[str] = []
    due = "FROM entries INDEXED BY entries_due WHERE state = 'pending' AND held = 0"
    held = "FROM entries INDEXED BY entries_held WHERE held = 1"
    dead = "FROM entries INDEXED BY entries_dead WHERE state = 'dead'"
    newest = "AND seq < :before ORDER BY seq DESC LIMIT :count"
    states = set(where.states)
    if where.id is not None:
        parts = [
            "SELECT seq FROM entries INDEXED BY entries_id WHERE id >= :id AND id < :id || 'g'"
            " AND seq < :before"
        ]
    elif where.held:
        parts = [f"SELECT seq {held} {newest}"]
    elif where.dead_reasons:
        parts = [f"SELECT seq {dead} {newest}"]
    elif states and "delivered" not in states:
        if "dead" in states:
            parts.append(f"SELECT seq {dead} {newest}")
        if "pending" in states:
            (backoffs,) = connection.execute(
                f"SELECT count(*) FROM (SELECT 1 {due} AND due_at > 0 LIMIT ?)", (BACKOFFS_MAX + 1,)
            ).fetchone()
            if backoffs > BACKOFFS_MAX:
                return None
            parts.append(f"SELECT seq {due} AND due_at = 0 {newest}")
            parts.append(f"SELECT seq {due} AND due_at > 0 AND seq < :before")
            if where.held is None:
                parts.append(f"SELECT seq {held} {newest}")
    if not parts:
        return None
    union = " UNION ALL ".join(f"SELECT * FROM ({part})" for part in parts)
    (text,) = connection.execute(
        f"SELECT json_group_array(seq) FROM ({union} ORDER BY 1 DESC LIMIT :count)",
        {"before": before, "count": count, "id": where.id},
    ).fetchone()
    return msgspec.json.decode(text, type=list[int])


_STATUS = "json_extract(e.attempts, '$[#-1][3]')"  # of the last attempt
_COLUMNS = {
    "state": "e.state",
    "type": "e.event_type",
    "severity": "e.severity",
    "reason": "e.dead_reason",
    "status": _STATUS,
    "source": "e.source",
    "producer": "e.producer",
}
_SCOPES = {"cluster": "clusters", "namespace": "namespaces", "service": "servicesNames"}


def conditions(where: EntryFilter) -> tuple[str, list[object]]:
    """The filter, but for its texts, as SQL over `entries e` (" AND … AND …"), with values."""
    clauses: list[str] = []
    values: list[object] = []
    for name, wanted, unwanted in where.by_name():
        if wanted:
            clauses.append(_any_of(name, len(wanted)))
            values.extend(wanted)
        if unwanted:
            # What has no value (NULL) is not excluded.
            clauses.append(f"NOT coalesce({_any_of(name, len(unwanted))}, 0)")
            values.extend(unwanted)
    if where.owners:
        clauses.append(_any_of("producer", len(where.owners)))
        values.extend(where.owners)
    for clause, value in (
        ("e.held = ?", None if where.held is None else int(where.held)),
        ("e.dedup_key = ?", where.dedup_key),
        ("e.id >= ?", where.id),
        ("e.id < ?", None if where.id is None else where.id + "g"),
        ("e.received_at >= ?", where.since),
        ("e.received_at < ?", where.until),
    ):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    return "".join(f" AND {clause}" for clause in clauses), values


def _any_of(name: str, count: int) -> str:
    places = ",".join("?" * count)
    column = _COLUMNS.get(name)
    if column is not None:
        return f"{column} IN ({places})"
    return (
        f"EXISTS (SELECT 1 FROM json_each(nullif(e.scope, ''), '$.{_SCOPES[name]}')"
        f" WHERE value IN ({places}))"
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
