"""A snapshot that is held elsewhere (a backup, a forgotten session) keeps vacuum away."""

from __future__ import annotations

import time

import psycopg
import pytest
from support.moves import incoming

from outboxd.outbox.model import Attempt, Settlement
from outboxd.outbox.postgresql.cursor import Cursor
from outboxd.outbox.postgresql.engine import PostgresEngine

# What ten minutes leave behind at 33 a second.
DELIVERED = 20_000
RATE_SHARE_MIN = 0.4


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


@pytest.mark.timeout(180)
def test_a_snapshot_held_elsewhere_does_not_slow_claims(node, only_full, monkeypatch):
    """In one run: without it; with it, over much that was delivered; and, the control,
    with claims that look from the oldest entry on."""
    engine = PostgresEngine(node.url(), lease_s=60)
    assert engine.take_lease()
    try:
        rate(engine, 1.0)
        before = rate(engine, 2.0)
        with psycopg.connect(node.conninfo()) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM states")
            for start in range(0, DELIVERED, 1000):
                with engine.transaction():
                    first = max(engine.seq_range()) + 1
                    engine.accept([incoming(f"old {start + n}", 1) for n in range(1000)])
                with engine.transaction():
                    engine.settle([settled(seq) for seq in range(first, first + 1000)])
            rate(engine, 1.0)
            held, read = rate(engine, 2.0), passed(engine)
            monkeypatch.setattr(Cursor, "start", lambda self: self.reset() or 0)
            control = passed(engine)
    finally:
        engine.close()
    print(f"turns/s: {before:.0f}, with the snapshot {held:.0f}")
    print(f"entries read by a claim: {read}, the control {control}")
    assert held > RATE_SHARE_MIN * before
    assert control > DELIVERED > 4 * read
