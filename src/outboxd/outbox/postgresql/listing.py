"""A listing's steps in SQL, and what an index kept in memory reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from outboxd.outbox.mentions import Text, in_last_error, mentions
from outboxd.outbox.model import (
    SCOPE_LISTED_MAX,
    UNLISTED,
    Entry,
    EntryFilter,
    IndexRow,
    ListPlace,
    ListStep,
    Place,
    Unsettled,
    UnsettledSums,
)
from outboxd.outbox.postgresql.rows import ENTRY, entry_of, shown

SCAN_ROWS = 500  # looked at in one step
SEQ_MAX = 1 << 62

_COLUMNS = {
    "state": "s.state",
    "type": "e.event_type",
    "severity": "e.severity",
    "reason": "s.dead_reason",
    "status": "(s.attempts -> -1 ->> 3)::int",
    "source": "e.source",
    "producer": "e.producer",
}
_SCOPES = {"cluster": "clusters", "namespace": "namespaces", "service": "servicesNames"}
_UNSETTLED = {
    Unsettled.DUE: "state = 'pending' AND NOT held",
    Unsettled.HELD: "held",
    Unsettled.DEAD: "state = 'dead'",
}
# Of an index, at once: the server adds them up, some 10 ms of its time.
_UNSETTLED_ROWS = 50_000


def conditions(where: EntryFilter) -> tuple[str, list[Any]]:
    """The filter, but for its texts, as SQL (" AND … AND …"), with values."""
    clauses: list[str] = []
    values: list[Any] = []
    for name, wanted, unwanted in where.by_name():
        if wanted:
            clauses.append(_any_of(name))
            values.append(list(wanted))
        if unwanted:
            clauses.append(f"NOT coalesce({_any_of(name)}, false)")
            values.append(list(unwanted))
    if where.owners:
        clauses.append(_any_of("producer"))
        values.append(list(where.owners))
    for clause, value in (
        ("s.held = %s", where.held),
        ("e.dedup_key = %s", where.dedup_key),
        ("e.id::text LIKE %s || '%%'", where.id),
        ("e.received_at >= %s", where.since),
        ("e.received_at < %s", where.until),
    ):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    return "".join(f" AND {clause}" for clause in clauses), values


def _any_of(name: str) -> str:
    column = _COLUMNS.get(name)
    if column is not None:
        return f"{column} = ANY(%s)"
    return f"(nullif(e.scope, '')::jsonb -> '{_SCOPES[name]}') ?| %s"


def step(
    connection: psycopg.Connection[Any],
    destination: str,
    where: EntryFilter,
    place: ListPlace,
    limit: int,
    bytes_max: int,
    is_begun: bool,
) -> ListStep:
    """Look at the next rows, newest first. Their entries have no short ids yet: see `shown`."""
    dead = where.states == ("dead",) or bool(where.dead_reasons)
    driver = "state = 'dead'" if dead else "held" if where.held else "true"
    ((floor,),) = connection.execute(
        f"SELECT min(seq) FROM (SELECT seq FROM states WHERE destination = %s AND {driver}"
        " AND seq < %s ORDER BY seq DESC LIMIT %s) few",
        (destination, place.before_seq, SCAN_ROWS),
    )
    if floor is None:
        return ListStep([], None, False)
    clauses, values = conditions(where)
    rows = connection.execute(
        f"{ENTRY} AND s.seq < %s AND s.seq >= %s{clauses} ORDER BY s.seq DESC",
        (destination, place.before_seq, floor, *values),
    )
    found: list[Entry] = []
    size = 0
    for row in rows:
        entry = entry_of(row)
        if not _matches(where, entry):
            continue
        if size + len(entry.body) > bytes_max and (is_begun or found):
            return ListStep(found, ListPlace(entry.seq + 1), True)
        found.append(entry)
        size += len(entry.body)
        if len(found) == limit:
            return ListStep(found, ListPlace(entry.seq), True)
    return ListStep(found, ListPlace(floor), False)


def _matches(where: EntryFilter, entry: Entry) -> bool:
    if where.error and not in_last_error(entry.attempts, where.error.casefold()):
        return False
    text = Text(entry.id, entry.dedup_key, entry.attempts, entry.body.decode())
    return not where.q or mentions(text, where.q.casefold())


def entries_of(
    connection: psycopg.Connection[Any],
    destination: str,
    where: EntryFilter,
    seqs: Sequence[int],
) -> list[Entry]:
    """Those of some entries that match but for its texts, newest first."""
    clauses, values = conditions(where)
    rows = connection.execute(
        f"{ENTRY} AND s.seq = ANY(%s){clauses} ORDER BY s.seq DESC",
        (destination, list(seqs), *values),
    )
    return shown(connection, destination, [entry_of(row) for row in rows])


def seq_range(connection: psycopg.Connection[Any], destination: str) -> range:
    """The seqs of all entries."""
    ((low, high),) = connection.execute(
        "SELECT min(seq), max(seq) FROM states WHERE destination = %s", (destination,)
    )
    return range(0) if high is None else range(low, high + 1)


def index_rows(
    connection: psycopg.Connection[Any], destination: str, seqs: range
) -> list[IndexRow]:
    """The entries with these seqs."""
    rows = connection.execute(
        "SELECT seq, e.received_at, e.event_type, e.severity, s.state, s.held::int,"
        " CASE WHEN length(e.scope) > %s THEN %s ELSE e.scope END, s.dead_reason,"
        " (s.attempts -> -1 ->> 3)::int, e.source, e.producer"
        " FROM entries e JOIN states s USING (destination, seq) WHERE destination = %s"
        " AND seq >= %s AND seq < %s ORDER BY seq",
        (SCOPE_LISTED_MAX, UNLISTED, destination, seqs.start, seqs.stop),
    )
    return [IndexRow(*row) for row in rows]


def unsettled_sums(
    connection: psycopg.Connection[Any],
    destination: str,
    kind: Unsettled,
    block_rows: int,
    after: Place,
) -> UnsettledSums:
    """See `Engine.unsettled_sums`. Added up there: of a million entries that wait a few
    thousand sums come here."""
    # Only those that are due are listed by another order than their seq.
    place = "due_at, seq" if kind is Unsettled.DUE else "0::bigint, seq"
    behind = "(due_at, seq) > (%(due_at)s, %(seq)s)" if kind is Unsettled.DUE else "seq > %(seq)s"
    sums = connection.execute(
        f"WITH part (due_at, seq) AS (SELECT {place} FROM states"
        f" WHERE destination = %(destination)s AND {_UNSETTLED[kind]} AND {behind}"
        f" ORDER BY {place.removeprefix('0::bigint, ')} LIMIT %(limit)s)"
        " SELECT seq / %(block_rows)s, sum(seq)::bigint, count(*), max(ARRAY[due_at, seq])"
        " FROM part GROUP BY 1",
        {
            "destination": destination,
            **after._asdict(),
            "limit": _UNSETTLED_ROWS,
            "block_rows": block_rows,
        },
    ).fetchall()
    is_full = sum(count for _, _, count, _ in sums) == _UNSETTLED_ROWS
    last = Place(*max(place for *_, place in sums)) if is_full else None
    return UnsettledSums({block: total for block, total, *_ in sums}, last)


def rows_by_block(
    connection: psycopg.Connection[Any], destination: str, block_rows: int, seqs: range
) -> dict[int, int]:
    """How many entries there are, by `seq // block_rows`."""
    return dict(
        connection.execute(
            "SELECT seq / %s, count(*) FROM states WHERE destination = %s AND seq >= %s"
            " AND seq < %s GROUP BY 1",
            (block_rows, destination, seqs.start, seqs.stop),
        ).fetchall()
    )
