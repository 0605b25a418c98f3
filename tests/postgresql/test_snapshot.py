"""A snapshot that is held elsewhere (a backup, a forgotten session) keeps vacuum away."""

from __future__ import annotations

import time

import psycopg
import pytest
from support.moves import incoming

from outboxd.outbox.model import Attempt, Settlement
from outboxd.outbox.postgresql.cursor import Cursor
from outboxd.outbox.postgresql.engine import PostgresEngine

# What ten minutes leave behind at 333 a second.
DELIVERED = 200_000
RATE_SHARE_MIN = 0.4
# The best of some counts: what else the machine does is in none of them, or in all.
WINDOWS, WINDOW_S = 4, 1.0


def settled(seq: int) -> Settlement:
    return Settlement(seq, "delivered", Attempt(1, 1, "delivered", 201, None))


def turn(engine: PostgresEngine, number: int) -> None:
    """A gateway accepts 16 and delivers 16."""
    with engine.transaction():
        engine.accept([incoming(f"{number} {n}", 1) for n in range(16)])
    with engine.reading():
        claimed = engine.fetch(16, (), "mixed", 0.25, 86400.0).entries
    with engine.transaction():
        engine.set_sending([entry.seq for entry in claimed])
    with engine.transaction():
        engine.settle([settled(entry.seq) for entry in claimed])
        engine.set_sending([])


def rate(engine: PostgresEngine, seconds: float) -> float:
    """Turns a second."""
    turns, began_s = 0, time.monotonic()
    while time.monotonic() < began_s + seconds:
        turn(engine, turns)
        turns += 1
    return turns / (time.monotonic() - began_s)


def passed(engine: PostgresEngine) -> int:
    """How many entries of the index a claim reads, at best."""

    def counted() -> int:  # it goes on from one transaction to the next
        ((count,),) = engine.connection.execute(
            "SELECT pg_stat_get_xact_tuples_returned('states_due'::regclass)"
        )
        return int(count)

    found = []
    for number in range(5):
        turn(engine, number)
        with engine.transaction():
            before = counted()
            engine.fetch(16, (), "mixed", 0.25, 86400.0)
            found.append(counted() - before)
    return min(found)


def leave_behind(conninfo: str, engine: PostgresEngine) -> None:
    """As many that were pending and are delivered, in one statement each: what that leaves
    of every row and in every index is what the agent's own statements leave, one by one."""
    with engine.transaction():
        engine.accept([incoming("old", 1)])
    with psycopg.connect(conninfo, autocommit=True) as connection:
        ((first,),) = connection.execute("SELECT max(seq) FROM entries").fetchall()
        connection.execute("SELECT setval('outboxd_seq', %s)", (first + DELIVERED,))
        others = {"seq": "t.seq + n", "id": "gen_random_uuid()"}
        for table in ("entries", "states"):
            columns = [
                name
                for (name,) in connection.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
                    " AND table_schema = current_schema() ORDER BY ordinal_position",
                    (table,),
                )
            ]
            values = ", ".join(others.get(name, f"t.{name}") for name in columns)
            connection.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values}"
                f" FROM {table} t, generate_series(1, %s) n WHERE t.seq = %s",
                (DELIVERED - 1, first),
            )
        done = connection.execute(
            "UPDATE states SET state = 'delivered', ended_at = 1 WHERE state = 'pending'"
        )
        assert done.rowcount == DELIVERED


@pytest.mark.alone
def test_a_snapshot_held_elsewhere_does_not_slow_claims(node, only_full, monkeypatch):
    """In one run: without it; with it, over much that was delivered; and, the control,
    with claims that look from the oldest entry on."""
    engine = PostgresEngine(node.url(), lease_s=60)
    assert engine.take_lease()
    try:
        rate(engine, 1.0)
        before = max(rate(engine, WINDOW_S) for _ in range(WINDOWS))
        with psycopg.connect(node.conninfo()) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM states")
            began_s = time.monotonic()
            leave_behind(node.conninfo(), engine)
            left_s = time.monotonic() - began_s
            rate(engine, 1.0)
            held = max(rate(engine, WINDOW_S) for _ in range(WINDOWS))
            read = passed(engine)
            monkeypatch.setattr(Cursor, "start", lambda self: self.reset() or 0)
            control = passed(engine)
    finally:
        engine.close()
    print(f"turns/s: {before:.0f}, with the snapshot {held:.0f} (made in {left_s:.0f} s)")
    print(f"entries read by a claim: {read}, the control {control}")
    assert held > RATE_SHARE_MIN * before
    assert control > DELIVERED > 4 * read
