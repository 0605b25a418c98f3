"""What changes entries that are there: settlements, the operator, upkeep.

Inside a transaction of the caller's. Whoever changes several entries locks them in the
order of their seqs, so that no two wait for each other in a circle. Nothing here decides
anything about delivery.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg

from outboxd.outbox.identities import key_identities, repeat_identity
from outboxd.outbox.model import (
    ChangeStep,
    Entry,
    EntryChange,
    EntryFilter,
    ListPlace,
    PruneStep,
    Settlement,
    State,
)
from outboxd.outbox.postgresql import listing, query
from outboxd.outbox.postgresql.rows import OWN, legible
from outboxd.outbox.postgresql.tallies import CountChanges

ATTEMPTS_KEPT = 50
# Of the bodies that one step of a change of many reads.
_STEP_BYTES = 4 * 1024 * 1024
_BEFORE_AND_AFTER = " RETURNING s.producer, b.state, b.held, s.state, s.held"


def settle(
    connection: psycopg.Connection[Any],
    destination: str,
    settlements: Sequence[Settlement],
    now: int,
    tally: CountChanges,
) -> None:
    """See `Engine.settle`."""
    rows = [
        {
            "seq": each.seq,
            "state": each.state,
            "attempt": legible(each.attempt),
            "due_at": each.due_at,
            "spent": each.spent,
            "doubtful": each.possible_duplicate,
            "dead_reason": each.dead_reason,
            "revives": each.revives,
        }
        for each in settlements
    ]
    changed = connection.execute(
        f"WITH v AS MATERIALIZED (SELECT *, {OWN} FROM json_to_recordset(%(rows)s) AS v"
        " (seq bigint, state text, attempt jsonb, due_at bigint, spent int, doubtful boolean,"
        " dead_reason text, revives boolean)),"
        " before AS (SELECT s.seq, s.state, s.held, s.attempts FROM states s"
        " JOIN v USING (destination, seq) WHERE s.state = 'pending'"
        " OR (v.revives AND s.dead_reason = 'rejected') ORDER BY s.seq FOR UPDATE OF s)"
        " UPDATE states s SET state = v.state,"
        " held = b.held AND v.state = 'pending',"
        " due_at = CASE WHEN v.state = 'pending' THEN v.due_at ELSE 0 END,"
        " ended_at = CASE WHEN v.state = 'pending' THEN NULL ELSE %(now)s::bigint END,"
        " attempt_count = s.attempt_count + (v.attempt IS NOT NULL)::int,"
        " spent = s.spent + v.spent,"
        " possible_duplicate = s.possible_duplicate OR v.doubtful,"
        " dead_reason = v.dead_reason,"
        " attempts = CASE WHEN v.attempt IS NULL THEN s.attempts ELSE (CASE WHEN"
        " jsonb_array_length(s.attempts) >= %(kept)s THEN s.attempts - 0 ELSE s.attempts END)"
        " || jsonb_build_array(v.attempt) END"
        " FROM v, before b WHERE s.destination = v.destination AND s.seq = v.seq"
        " AND b.seq = v.seq" + _BEFORE_AND_AFTER,
        {
            "destination": destination,
            "rows": json.dumps(rows),
            "now": now,
            "kept": ATTEMPTS_KEPT,
        },
    ).fetchall()
    tally.moved(changed)


def change(
    connection: psycopg.Connection[Any],
    destination: str,
    change: EntryChange,
    id: str,
    tally: CountChanges,
) -> Entry:
    """See `Engine.change`."""
    entry = query.get(connection, destination, id)
    if change is EntryChange.DROP:
        _drop(connection, destination, entry, tally)
        return entry
    if change is EntryChange.RETRY:
        _retry(connection, destination, [entry.seq], tally)
    elif entry.state == State.PENDING:
        changed = connection.execute(
            "WITH before AS (SELECT destination, seq, state, held FROM states"
            " WHERE destination = %s AND seq = %s AND state = 'pending' FOR UPDATE)"
            " UPDATE states s SET held = %s FROM before b"
            " WHERE s.destination = b.destination AND s.seq = b.seq" + _BEFORE_AND_AFTER,
            (destination, entry.seq, change is EntryChange.HOLD),
        ).fetchall()
        tally.moved(changed)
    return query.get(connection, destination, id)


def change_dead(
    connection: psycopg.Connection[Any],
    destination: str,
    change: EntryChange,
    where: EntryFilter,
    place: ListPlace,
    limit: int,
    tally: CountChanges,
) -> ChangeStep:
    """See `Engine.change_dead`."""
    dead = where._replace(states=(State.DEAD.value,))
    step = listing.step(connection, destination, dead, place, limit, _STEP_BYTES, False)
    if change is EntryChange.RETRY:
        _retry(connection, destination, [entry.seq for entry in step.entries], tally)
    else:
        for entry in step.entries:
            _drop(connection, destination, entry, tally)
    return ChangeStep(step.place, len(step.entries))


def _retry(
    connection: psycopg.Connection[Any],
    destination: str,
    seqs: Sequence[int],
    tally: CountChanges,
) -> None:
    changed = connection.execute(
        # As they are once nobody else can change them: the counts must agree.
        "WITH before AS (SELECT destination, seq, state, held FROM states WHERE destination = %s"
        " AND seq = ANY(%s) AND state <> 'delivered' ORDER BY seq FOR UPDATE)"
        " UPDATE states s SET state = 'pending', dead_reason = NULL, ended_at = NULL,"
        " due_at = 0, spent = 0,"
        " expires_at = CASE WHEN b.state = 'dead' THEN NULL ELSE s.expires_at END"
        " FROM before b WHERE s.destination = b.destination AND s.seq = b.seq" + _BEFORE_AND_AFTER,
        (destination, list(seqs)),
    ).fetchall()
    tally.moved(changed)


def _drop(
    connection: psycopg.Connection[Any], destination: str, entry: Entry, tally: CountChanges
) -> None:
    own = [repeat_identity(entry.producer, entry.body)]
    if entry.dedup_key is not None:
        own += key_identities(entry.producer, entry.dedup_key)
    connection.execute(
        "DELETE FROM dedup WHERE destination = %s AND key = ANY(%s) AND id = %s",
        (destination, own, entry.id),
    )
    whose = (destination, entry.seq)
    gone = connection.execute(
        "DELETE FROM states WHERE destination = %s AND seq = %s RETURNING producer, state, held",
        whose,
    ).fetchall()
    connection.execute("DELETE FROM entries WHERE destination = %s AND seq = %s", whose)
    for producer, state, held in gone:  # as it was then, and not when it was read
        tally.count(producer, state, held, -1)


def prune(
    connection: psycopg.Connection[Any],
    destination: str,
    after_seq: int,
    window: int,
    ended_before: int,
    tally: CountChanges,
) -> PruneStep:
    """See `Engine.prune`. By the time of their end, and not by seq: `after_seq` only says
    to go on."""
    deleted = connection.execute(
        "WITH gone AS (DELETE FROM states WHERE destination = %(destination)s AND seq IN ("
        "SELECT seq FROM states WHERE destination = %(destination)s AND state = 'delivered'"
        " AND ended_at < %(before)s ORDER BY ended_at LIMIT %(limit)s"
        " FOR UPDATE SKIP LOCKED) RETURNING destination, seq, producer),"
        " bodies AS (DELETE FROM entries WHERE (destination, seq) IN"
        " (SELECT destination, seq FROM gone))"
        " SELECT producer, count(*) FROM gone GROUP BY producer",
        {"destination": destination, "before": ended_before, "limit": window},
    ).fetchall()
    count = 0
    for producer, some in deleted:
        tally.count(producer, State.DELIVERED, False, -some)
        count += some
    return PruneStep(after_seq + 1 if count == window else None, count)


def prune_dedup(connection: psycopg.Connection[Any], destination: str, now: int, limit: int) -> int:
    """See `Engine.prune_dedup`."""
    return connection.execute(
        "DELETE FROM dedup WHERE destination = %(destination)s AND key IN (SELECT key FROM dedup"
        " WHERE destination = %(destination)s AND expires_at <= %(now)s"
        " ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)",
        {"destination": destination, "now": now, "limit": limit},
    ).rowcount
