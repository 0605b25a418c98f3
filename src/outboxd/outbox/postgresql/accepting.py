"""Events coming in: which are known already, and the rows of those that are not.

Inside a transaction of the caller's. The keys of a transaction are claimed in
sorted order by one statement, so that two gateways with the same keys in another
order never wait for each other in a circle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
import uuid_utils

from outboxd.outbox.identities import OLD_KEY, Now, Windows, key_identities, repeat_identity
from outboxd.outbox.model import Incoming, Receipt, State
from outboxd.outbox.postgresql.connection import only_value
from outboxd.outbox.postgresql.rows import OWN


class _Fresh(NamedTuple):
    """An event whose identities nothing before it in the transaction has."""

    seq: int
    id: str
    item: Incoming
    keys: tuple[str, ...]


def has_old_keys(connection: psycopg.Connection[Any], destination: str) -> bool:
    """Whether there are keys without their producer."""
    return bool(
        only_value(
            connection,
            "SELECT EXISTS (SELECT 1 FROM dedup WHERE destination = %s"
            " AND key >= 'k:' AND key < 'k;')",
            (destination,),
        )
    )


def accept(
    connection: psycopg.Connection[Any],
    destination: str,
    items: Sequence[Incoming],
    windows: Windows,
    now: Now,
) -> tuple[list[Receipt], list[Incoming]]:
    """Keep the events that are not known yet; a receipt each, in order, and those kept."""
    receipts: list[Receipt] = []
    kept: list[Incoming] = []
    for some in _in_turns(items):
        more, also = _accept(connection, destination, some, windows, now)
        receipts += more
        kept += also
    return receipts, kept


def _in_turns(items: Sequence[Incoming]) -> Iterator[list[Incoming]]:
    """An alert that fires again comes with a later mark, and is another event: behind
    the first, so that no statement claims a key twice."""
    some: list[Incoming] = []
    marks: dict[tuple[str, str | None], int] = {}
    for item in items:
        key = (item.producer, item.dedup_key)
        if item.dedup_mark > marks.get(key, item.dedup_mark):
            yield some
            some, marks = [], {}
        if item.dedup_mark:
            marks.setdefault(key, item.dedup_mark)
        some.append(item)
    yield some


def _accept(
    connection: psycopg.Connection[Any],
    destination: str,
    items: Sequence[Incoming],
    windows: Windows,
    now: Now,
) -> tuple[list[Receipt], list[Incoming]]:
    seqs = [
        seq
        for (seq,) in connection.execute(
            "SELECT nextval('outboxd_seq') FROM generate_series(1, %s)", (len(items),)
        )
    ]
    first: dict[str, _Fresh] = {}  # by key, within this transaction
    fresh: list[_Fresh] = []
    of_item: list[tuple[_Fresh, str]] = []  # whom each item is, or repeats, and by which key
    for seq, item in zip(seqs, items, strict=True):
        keys = _keys(item, windows.repeat_ms)
        known = next((key for key in keys if key in first), None)
        if known is not None:
            of_item.append((first[known], known))
            continue
        one = _Fresh(seq, str(uuid_utils.uuid7()), item, keys)
        fresh.append(one)
        first.update(dict.fromkeys(keys, one))
        of_item.append((one, ""))
    known_before = _known_by_old_keys(connection, destination, fresh, windows, now)
    unknown = [one for one in fresh if one.seq not in known_before]
    known_before |= _claim(connection, destination, unknown, windows, now)
    kept = [one for one in fresh if one.seq not in known_before]
    _insert(connection, destination, kept)
    receipts = [_receipt(one, key, known_before) for one, key in of_item]
    repeats = [
        (receipt.id, item.occurred_at or item.received_at)
        for receipt, item in zip(receipts, items, strict=True)
        if receipt.repeated
    ]
    if repeats:
        _count_repeats(connection, destination, repeats)
    return _with_states(connection, destination, receipts), [one.item for one in kept]


def _keys(item: Incoming, repeat_window_ms: int) -> tuple[str, ...]:
    keys = () if item.dedup_key is None else (key_identities(item.producer, item.dedup_key)[0],)
    return (*keys, repeat_identity(item.producer, item.body)) if repeat_window_ms else keys


class _Known(NamedTuple):
    id: str
    key: str


def _known_by_old_keys(
    connection: psycopg.Connection[Any],
    destination: str,
    fresh: Sequence[_Fresh],
    windows: Windows,
    now: Now,
) -> dict[int, _Known]:
    """Which are known by keys from before there were producers, by seq: nobody writes such
    any more, so that looking is enough."""
    if not windows.has_old_keys:
        return {}
    keys = {
        one.seq: OLD_KEY + one.item.dedup_key
        for one in fresh
        if one.item.dedup_key is not None and not one.item.dedup_mark
    }
    found = {
        key: str(id)
        for key, id in connection.execute(
            "SELECT key, id FROM dedup WHERE destination = %s AND key = ANY(%s)"
            " AND expires_at > %s",
            (destination, list(keys.values()), now.keys_ms),
        )
    }
    return {seq: _Known(found[key], key) for seq, key in keys.items() if key in found}


def _claim(
    connection: psycopg.Connection[Any],
    destination: str,
    fresh: Sequence[_Fresh],
    windows: Windows,
    now: Now,
) -> dict[int, _Known]:
    """Which of them are known already, by seq."""
    rows = [
        {
            "key": key,
            "seq": one.seq,
            "id": one.id,
            "mark": 0 if key.startswith("r:") else one.item.dedup_mark,
            "ends": now.wall_ms + (windows.repeat_ms if key.startswith("r:") else windows.key_ms),
        }
        for one in fresh
        for key in one.keys
    ]
    if not rows:
        return {}
    claimed = {
        key
        for (key,) in connection.execute(
            "INSERT INTO dedup (destination, key, seq, id, mark, expires_at)"
            " SELECT %s, key, seq, id, mark, ends FROM json_to_recordset(%s) AS v"
            ' (key text, seq bigint, id uuid, mark bigint, ends bigint) ORDER BY key COLLATE "C"'
            " ON CONFLICT (destination, key) DO UPDATE SET seq = excluded.seq, id = excluded.id,"
            " mark = excluded.mark, expires_at = excluded.expires_at"
            " WHERE dedup.expires_at <= CASE WHEN excluded.key LIKE 'r:%%' THEN %s ELSE %s END"
            " OR excluded.mark > dedup.mark RETURNING key",
            (destination, json.dumps(rows), now.wall_ms, now.keys_ms),
        )
    }
    if len(claimed) == len(rows):
        return {}
    others = [row["key"] for row in rows if row["key"] not in claimed]
    owners = {
        key: str(id)
        for key, id in connection.execute(
            # What has a mark is remembered from its last arrival on.
            "UPDATE dedup SET expires_at = CASE WHEN mark > 0 THEN %s ELSE expires_at END"
            " WHERE destination = %s AND key = ANY(%s) RETURNING key, id",
            (now.wall_ms + windows.key_ms, destination, others),
        )
    }
    known: dict[int, _Known] = {}
    for one in fresh:
        key = next((key for key in one.keys if key in owners), None)
        if key is not None:
            known[one.seq] = _Known(owners[key], key)
    # What a duplicate claimed besides is nobody's.
    given_up = [key for one in fresh if one.seq in known for key in one.keys if key in claimed]
    if given_up:
        connection.execute(
            "DELETE FROM dedup WHERE destination = %s AND key = ANY(%s)", (destination, given_up)
        )
    return known


def _insert(connection: psycopg.Connection[Any], destination: str, kept: Sequence[_Fresh]) -> None:
    if not kept:
        return
    rows = [
        {
            **one.item._asdict(),
            "body": one.item.body.decode(),
            "seq": one.seq,
            "id": one.id,
            "destination": destination,
        }
        for one in kept
    ]
    connection.execute(
        "WITH v AS (SELECT * FROM json_to_recordset(%s) AS v (seq bigint, id uuid,"
        " received_at bigint, occurred_at bigint, expires_at bigint, event_type text,"
        " severity text, scope text, source text, dedup_key text, producer text, hop text,"
        " body text, destination text)),"
        " kept AS (INSERT INTO entries SELECT * FROM v)"
        " INSERT INTO states (destination, seq, state, held, due_at, repeats, attempt_count, spent,"
        " possible_duplicate, attempts, producer, expires_at)"
        " SELECT destination, seq, 'pending', false, 0, 0, 0, 0, false, '[]', producer, expires_at"
        " FROM v",
        (json.dumps(rows),),
    )


def _receipt(one: _Fresh, key: str, known_before: dict[int, _Known]) -> Receipt:
    """`key`: by which it repeats another of the same transaction, "" where it does not."""
    known = known_before.get(one.seq)
    if known is not None:
        return Receipt(known.id, "duplicate", "", (key or known.key).startswith("r:"))
    if key:
        return Receipt(one.id, "duplicate", "", key.startswith("r:"))
    return Receipt(one.id, "accepted", State.PENDING.value)


def _count_repeats(
    connection: psycopg.Connection[Any], destination: str, repeats: list[tuple[str, int]]
) -> None:
    counted: dict[str, tuple[int, int]] = {}
    for id, at in repeats:
        counted[id] = (counted.get(id, (0, 0))[0] + 1, at)
    connection.execute(
        # Locked in the order of their seqs, as everybody locks several of them.
        f"WITH r AS MATERIALIZED (SELECT *, {OWN} FROM json_to_recordset(%(rows)s) AS r"
        " (id uuid, count int, at bigint)),"
        " v AS MATERIALIZED (SELECT destination, e.seq, r.count, r.at FROM r"
        " JOIN entries e USING (destination, id)),"
        " locked AS (SELECT s.seq FROM states s JOIN v USING (destination, seq)"
        " ORDER BY s.seq FOR UPDATE OF s)"
        " UPDATE states s SET repeats = s.repeats + v.count, last_occurred_at = v.at"
        " FROM v, locked WHERE s.destination = v.destination AND s.seq = v.seq"
        " AND locked.seq = v.seq",
        {
            "destination": destination,
            "rows": json.dumps(
                [{"id": id, "count": n, "at": at} for id, (n, at) in counted.items()]
            ),
        },
    )


def _with_states(
    connection: psycopg.Connection[Any], destination: str, receipts: list[Receipt]
) -> list[Receipt]:
    """What became of the first ones; what is gone for good was delivered, and pruned."""
    asked = {receipt.id for receipt in receipts if receipt.status == "duplicate"}
    if not asked:
        return receipts
    states = {
        str(id): state
        for id, state in connection.execute(
            "SELECT e.id, s.state FROM entries e JOIN states s USING (destination, seq)"
            " WHERE destination = %s AND e.id = ANY(%s)",
            (destination, list(asked)),
        )
    }
    return [
        receipt._replace(state=states.get(receipt.id, State.DELIVERED.value))
        if receipt.status == "duplicate"
        else receipt
        for receipt in receipts
    ]
