"""Entries on their way out: which may be claimed next, and what their attempts meant.

Inside a transaction (or, to look, a read) that the caller opens. An entry is claimed
by the commit that records it as in flight. Plain SQL; it decides nothing about
delivery.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from outboxd.outbox.model import Attempt, Claimed, DeadReason, Fetched, Settlement, State
from outboxd.outbox.sqlite.rows import (
    NO_ATTEMPTS,
    CountChanges,
    StateRow,
    body_crc,
    fresh_state_crc,
    insert_rows,
    read_states,
    state_crc,
    write_states,
)

# The newest attempts that an entry keeps; `attempt_count` counts them all.
ATTEMPTS_KEPT = 50


DUE = "state = 'pending' AND held = 0"

_encode = msgspec.json.Encoder().encode


class _DueRow(NamedTuple):
    """What is read of an entry that may be sent; a body may be missing."""

    seq: int
    id: str
    body: str | None
    received_at: int
    occurred_at: int | None
    expires_at: int | None
    attempt_count: int
    spent: int
    possible_duplicate: int
    repeats: int
    last_occurred_at: int | None
    source: str
    producer: str
    hop: str | None
    crc: int | None  # of the body


_DUE_COLUMNS = ", ".join(
    f"{'b' if name in ('body', 'crc') else 'e'}.{name}" for name in _DueRow._fields
)
_decode_due = msgspec.json.Decoder(list[_DueRow]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
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
) -> Fetched:
    """Entries that may be sent now, except those in `taken`; see `Engine.fetch`.

    A due time beyond the horizon was written before the clock was set back.
    """
    values = {
        "taken": msgspec.json.encode(list(taken)).decode(),
        "now": now,
        "horizon": horizon,
        "count": count,
    }
    seqs = _fifo(connection, values) if fifo else _mixed(connection, values, count, fresh_share)
    entries: list[Claimed] = []
    damaged: list[int] = []
    for row in _due_rows(connection, seqs):
        body = (row.body or "").encode()
        if row.body is None or row.crc != body_crc(row.seq, body):
            damaged.append(row.seq)
        else:
            entries.append(_claimed(row, body))
    return Fetched(entries, damaged, next_due_at(connection, now))


def _due_rows(connection: sqlite3.Connection, seqs: list[int]) -> list[_DueRow]:
    """In the order of `seqs`."""
    if not seqs:
        return []
    (text,) = connection.execute(
        f"SELECT json_group_array(json_array({_DUE_COLUMNS})) FROM entries e"
        " LEFT JOIN bodies b ON b.seq = e.seq WHERE e.seq IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(seqs).decode(),),
    ).fetchone()
    by_seq = {row.seq: row for row in _decode_due(text)}
    return [by_seq[seq] for seq in seqs if seq in by_seq]


def _claimed(row: _DueRow, body: bytes) -> Claimed:
    return Claimed(
        seq=row.seq,
        id=row.id,
        body=body,
        received_at=row.received_at,
        occurred_at=row.occurred_at,
        expires_at=row.expires_at,
        attempt_count=row.attempt_count,
        spent=row.spent,
        possible_duplicate=bool(row.possible_duplicate),
        repeats=row.repeats,
        last_occurred_at=row.last_occurred_at,
        source=row.source,
        producer=row.producer,
        hop=row.hop,
    )


def _seqs(connection: sqlite3.Connection, sql: str, values: dict[str, object]) -> list[int]:
    (text,) = connection.execute(f"SELECT json_group_array(seq) FROM ({sql})", values).fetchone()
    return _decode_seqs(text)


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
            f"SELECT seq FROM entries INDEXED BY entries_due WHERE {DUE} AND {sql} LIMIT :wanted",
            {**values, "wanted": wanted + len(chosen)},
        )
        already = set(chosen)
        chosen += [seq for seq in found if seq not in already][:wanted]
    return chosen


def _fifo(connection: sqlite3.Connection, values: dict[str, object]) -> list[int]:
    return _seqs(
        connection,
        "SELECT seq FROM (SELECT seq FROM entries WHERE seq IN"
        " (SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {DUE} AND due_at = 0 AND {_NOT_TAKEN} ORDER BY seq LIMIT :count)"
        " UNION SELECT seq FROM entries INDEXED BY entries_due"
        f" WHERE {DUE} AND due_at > 0 AND (due_at <= :now OR due_at > :horizon)"
        f" AND {_NOT_TAKEN}) ORDER BY seq LIMIT :count",
        values,
    )


def next_due_at(connection: sqlite3.Connection, after: int) -> int | None:
    """The earliest due time of an entry that waits for its own backoff."""
    (at,) = connection.execute(
        f"SELECT min(due_at) FROM entries INDEXED BY entries_due WHERE {DUE} AND due_at > ?",
        (after,),
    ).fetchone()
    return None if at is None else int(at)


# --- settling ----------------------------------------------------------------


def settle(
    connection: sqlite3.Connection, settlements: Sequence[Settlement], now: int, tally: CountChanges
) -> None:
    """Write what the attempts meant.

    An entry that the operator dropped meanwhile is passed over; one that is no
    longer pending stays as it is, but for a rejected one that is revived.
    """
    by_seq = {settlement.seq: settlement for settlement in settlements}
    for seq in _settle_first_ones(connection, settlements, now, tally):
        del by_seq[seq]
    changed = []
    for row in read_states(connection, by_seq) if by_seq else ():
        settlement = by_seq[row.seq]
        is_revived = settlement.revives and row.dead_reason == DeadReason.REJECTED
        if row.state != State.PENDING and not is_revived:
            continue
        settled = _settled(row, settlement, now)
        tally.move(row, settled)
        changed.append(settled)
    if changed:
        write_states(connection, changed)


def _settled(row: StateRow, settlement: Settlement, now: int) -> StateRow:
    attempt, ends = settlement.attempt, settlement.state != State.PENDING
    return StateRow(
        seq=row.seq,
        state=settlement.state,
        held=0 if ends else row.held,
        due_at=0 if ends else settlement.due_at,
        ended_at=now if ends else None,
        repeats=row.repeats,
        last_occurred_at=row.last_occurred_at,
        attempt_count=row.attempt_count + (attempt is not None),
        spent=row.spent + settlement.spent,
        possible_duplicate=row.possible_duplicate | settlement.possible_duplicate,
        dead_reason=settlement.dead_reason,
        attempts=row.attempts if attempt is None else _with_attempt(row.attempts, attempt),
        producer=row.producer,
    )


def _with_attempt(attempts: str, attempt: Attempt) -> str:
    added = _encode(attempt).decode()
    if attempts == NO_ATTEMPTS:
        return f"[{added}]"
    kept = msgspec.json.decode(attempts)[-(ATTEMPTS_KEPT - 1) :]
    return _encode([*kept, attempt]).decode()


def _settle_first_ones(
    connection: sqlite3.Connection, settlements: Sequence[Settlement], now: int, tally: CountChanges
) -> list[int]:
    """Settle those entries which are as they came in, without reading them; their seqs.

    Nearly every entry is delivered at its first attempt. What its row holds is
    known then, and its checksum says whether it still does: what an operator has
    held, or what repeats were counted at, has another one and is left to be read.
    """
    first = {each.seq: each for each in settlements if each.first_of is not None}
    if not first:
        return []
    alike: dict[tuple[object, ...], list[_FirstRow]] = {}
    for each in first.values():
        row, changed = _first_row(each, now)
        alike.setdefault(changed, []).append(row)
    count = sum(
        insert_rows(connection, _FIRST_HEAD, rows, _SETTLE_FIRST, more=changed)
        for changed, rows in alike.items()
    )
    done = list(first)
    if count < len(first):
        wanted = [row._asdict() for rows in alike.values() for row in rows]
        (text,) = connection.execute(
            "SELECT json_group_array(seq) FROM entries JOIN json_each(?) v"
            " ON seq = json_extract(v.value, '$.seq')"
            " AND state_crc = json_extract(v.value, '$.state_crc')",
            (msgspec.json.encode(wanted).decode(),),
        ).fetchone()
        done = msgspec.json.decode(text, type=list[int])
    moved = Counter((first[seq].state, first[seq].first_of or "") for seq in done)
    for (state, producer), count in moved.items():
        tally.add(State.PENDING, 0, producer, -count)
        tally.add(state, 0, producer, +count)
    return done


class _FirstRow(NamedTuple):
    """What is another in each of the entries whose first attempt ended alike."""

    seq: int
    attempts: str
    state_crc: int
    fresh_crc: int


_FIRST_HEAD = f"WITH v ({', '.join(_FirstRow._fields)}) AS ("
# The plus keeps SQLite from an index that the statement itself changes.
_SETTLE_FIRST = (
    ") UPDATE entries SET attempts = v.attempts, state_crc = v.state_crc, state = ?, due_at = ?,"
    " ended_at = ?, attempt_count = ?, spent = ?, possible_duplicate = ?, dead_reason = ?"
    " FROM v WHERE entries.seq = v.seq AND entries.state_crc = v.fresh_crc"
    " AND +entries.state = 'pending' AND +entries.held = 0 AND entries.attempt_count = 0"
)


def _first_row(settlement: Settlement, now: int) -> tuple[_FirstRow, tuple[object, ...]]:
    """As `_settled` would make it of an entry as it came in, without making that: the
    row, and what the statement changes in all of them."""
    seq, state, attempt = settlement.seq, settlement.state, settlement.attempt
    due_at, ended_at = (settlement.due_at, None) if state == "pending" else (0, now)
    count, attempts = 0, NO_ATTEMPTS
    if attempt is not None:
        count, attempts = 1, f"[{_encode(attempt).decode()}]"
    spent, doubtful = settlement.spent, int(settlement.possible_duplicate)
    reason = settlement.dead_reason
    crc = state_crc(
        seq, state, 0, due_at, ended_at, 0, None, count, spent, doubtful, reason, attempts
    )
    changed = (state, due_at, ended_at, count, spent, doubtful, reason)
    return _FirstRow(seq, attempts, crc, fresh_state_crc(seq)), changed
