"""What changes entries that are there: settlements, the operator, upkeep, meta.

Inside a transaction that the caller opens and commits. Plain SQL; nothing here
decides anything about delivery.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from outboxd.outbox.identities import key_identities, repeat_identity
from outboxd.outbox.model import (
    Attempt,
    ChangeStep,
    DeadReason,
    Entry,
    EntryChange,
    EntryFilter,
    ListPlace,
    PruneStep,
    Settlement,
    State,
)
from outboxd.outbox.sqlite import listing, query
from outboxd.outbox.sqlite.accepting import NO_ATTEMPTS
from outboxd.outbox.sqlite.rows import (
    CountChanges,
    StateRow,
    fresh_state_crc,
    head_crc,
    insert_rows,
    read_states,
    state_crc,
    text_crc,
    write_states,
)

# The newest attempts that an entry keeps; `attempt_count` counts them all.
ATTEMPTS_KEPT = 50

_encode = msgspec.json.Encoder().encode
# Of the bodies that one step of a change of many reads.
_STEP_BYTES = 4 * 1024 * 1024

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


# --- the operator --------------------------------------------------------------


def change(
    connection: sqlite3.Connection, change: EntryChange, id: str, tally: CountChanges
) -> Entry:
    """Do it; the entry as it is now, or as it was before a drop. Raises UnknownId."""
    entry = query.get(connection, id)
    if change is EntryChange.DROP:
        drop(connection, entry, tally)
        return entry
    if change is EntryChange.RETRY:
        if entry.state == State.DELIVERED:
            return entry
        retry(connection, [entry], tally)
    elif entry.state == State.PENDING:  # only what is pending can be held
        (row,) = read_states(connection, [entry.seq])
        changed = row._replace(held=int(change is EntryChange.HOLD))
        tally.move(row, changed)
        write_states(connection, [changed])
    return query.get(connection, id)


def change_dead(
    connection: sqlite3.Connection,
    change: EntryChange,
    where: EntryFilter,
    place: ListPlace,
    limit: int,
    tally: CountChanges,
) -> ChangeStep:
    """Retry or drop at most `limit` of those that match, in a slice of some milliseconds."""
    assert change in (EntryChange.RETRY, EntryChange.DROP)
    dead = where._replace(states=(State.DEAD.value,))
    entries, following, _ = listing.list_step(connection, dead, place, limit, _STEP_BYTES, False)
    if change is EntryChange.RETRY:
        retry(connection, entries, tally)
    else:
        for entry in entries:
            drop(connection, entry, tally)
    return ChangeStep(following, len(entries))


def retry(connection: sqlite3.Connection, entries: Sequence[Entry], tally: CountChanges) -> None:
    """Dead letters become pending again, with their attempts spent forgotten.

    Their dedup keys stand in no way. A ttl that ran out no longer counts. On a
    pending entry: due at once.
    """
    for entry in entries:
        if entry.state == State.DEAD and entry.expires_at is not None:
            _clear_expiry(connection, entry)
    rows = read_states(connection, [entry.seq for entry in entries])
    retried = [
        row._replace(state=State.PENDING, dead_reason=None, ended_at=None, due_at=0, spent=0)
        for row in rows
    ]
    for before, after in zip(rows, retried, strict=True):
        tally.move(before, after)
    write_states(connection, retried)


def _clear_expiry(connection: sqlite3.Connection, entry: Entry) -> None:
    crc = head_crc(
        entry.seq, entry.id, entry.received_at, entry.occurred_at, None, entry.event_type,
        entry.severity, entry.scope, entry.source, entry.dedup_key, entry.producer,
        entry.hop,
    )  # fmt: skip
    connection.execute(
        "UPDATE entries SET expires_at = NULL, head_crc = ? WHERE seq = ?", (crc, entry.seq)
    )


def drop(connection: sqlite3.Connection, entry: Entry, tally: CountChanges) -> None:
    """Remove an entry for good, pending or dead (a delivered one too).

    Its identities go with it: an exported dead letter can be handed in again.
    """
    connection.execute("DELETE FROM entries WHERE seq = ?", (entry.seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (entry.seq,))
    own = [repeat_identity(entry.producer, entry.body)]
    if entry.dedup_key is not None:
        own += key_identities(entry.producer, entry.dedup_key)
    connection.execute(
        "DELETE FROM dedup WHERE key IN (SELECT value FROM json_each(?)) AND id = ?",
        (msgspec.json.encode(own).decode(), entry.id),
    )
    tally.add(entry.state, int(entry.held), entry.producer, -1)


# --- upkeep --------------------------------------------------------------------


def prune(
    connection: sqlite3.Connection,
    after_seq: int,
    window: int,
    ended_before: int,
    tally: CountChanges,
) -> PruneStep:
    """Delete what was delivered long ago, among the `window` entries after `after_seq`."""
    last, seen = connection.execute(
        "SELECT max(seq), count(*) FROM"
        " (SELECT seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)",
        (after_seq, window),
    ).fetchone()
    if last is None:
        return PruneStep(None, 0)
    where = "seq > ? AND seq <= ? AND state = 'delivered' AND ended_at < ?"
    bounds = (after_seq, last, ended_before)
    connection.execute(
        f"DELETE FROM bodies WHERE seq IN (SELECT seq FROM entries WHERE {where})", bounds
    )
    deleted = connection.execute(f"DELETE FROM entries WHERE {where}", bounds).rowcount
    tally.delivered -= deleted
    return PruneStep(last if seen == window else None, deleted)


def prune_dedup(connection: sqlite3.Connection, now: int, limit: int) -> int:
    """Forget identities whose window has ended; how many."""
    return connection.execute(
        "DELETE FROM dedup WHERE key IN"
        " (SELECT key FROM dedup WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now, limit),
    ).rowcount


def set_aside_damaged(
    connection: sqlite3.Connection, seq: int, detail: str, now: int, tally: CountChanges
) -> None:
    """A row failed its checksum: keep what there is where a person can see it."""
    rows = connection.execute(
        "SELECT state, held, producer FROM entries WHERE seq = ?", (seq,)
    ).fetchall()
    connection.execute(
        "INSERT INTO damaged VALUES"
        " (?, ?, ?, (SELECT CAST(body AS BLOB) FROM bodies WHERE seq = ?))",
        (seq, now, detail, seq),
    )
    connection.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    connection.execute("DELETE FROM bodies WHERE seq = ?", (seq,))
    for state, held, producer in rows:
        tally.add(state, held, producer, -1)


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
