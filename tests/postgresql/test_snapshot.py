"""A snapshot that is held elsewhere (a backup, a forgotten session) keeps vacuum away."""

from __future__ import annotations

import time
from typing import NamedTuple

import psycopg
import pytest
from support.moves import incoming

from outboxd.outbox.model import Attempt, Settlement
from outboxd.outbox.postgresql.cursor import Cursor
from outboxd.outbox.postgresql.engine import PostgresEngine

# What ten minutes leave behind at 50 a second.
DELIVERED = 30_000
RATE_SHARE_MIN = 0.4


def settled(seq: int) -> Settlement:
    return Settlement(seq, "delivered", Attempt(1, 1, "delivered", 201, None))


class Figure(NamedTuple):
    """Turns a second, and what a claim took of one, in ms."""

    turns: float
    claim_ms: float


def measured(engine: PostgresEngine, seconds: float) -> Figure:
    """A gateway that accepts 16 and delivers 16 in a turn."""
    turns, claims_s, began_s = 0, 0.0, time.monotonic()
    while time.monotonic() < began_s + seconds:
        with engine.transaction():
            engine.accept([incoming(f"{turns} {n}", 1) for n in range(16)])
        asked_s = time.monotonic()
        with engine.reading():
            claimed = engine.fetch(16, (), "mixed", 0.25, 86400.0).entries
        claims_s += time.monotonic() - asked_s
        with engine.transaction():
            engine.set_sending([entry.seq for entry in claimed])
        with engine.transaction():
            engine.settle([settled(entry.seq) for entry in claimed])
            engine.set_sending([])
        turns += 1
    return Figure(turns / (time.monotonic() - began_s), claims_s / turns * 1000)


@pytest.mark.timeout(180)
def test_a_snapshot_held_elsewhere_does_not_slow_claims(node, only_full, monkeypatch):
    """In one run: without it; with it, over much that was delivered; and, the control,
    with claims that look from the oldest entry on."""
    engine = PostgresEngine(node.url(), lease_s=60)
    assert engine.take_lease()
    try:
        measured(engine, 1.0)
        before = measured(engine, 2.0)
        with psycopg.connect(node.conninfo()) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM states")
            for start in range(0, DELIVERED, 1000):
                with engine.transaction():
                    first = max(engine.seq_range()) + 1
                    engine.accept([incoming(f"old {start + n}", 1) for n in range(1000)])
                with engine.transaction():
                    engine.settle([settled(seq) for seq in range(first, first + 1000)])
            measured(engine, 1.0)
            held = measured(engine, 2.0)
            monkeypatch.setattr(Cursor, "start", lambda self: self.reset() or 0)
            control = measured(engine, 2.0)
    finally:
        engine.close()
    print(f"before {before}, with the snapshot {held}, without the cursor {control}")
    assert held.turns > RATE_SHARE_MIN * before.turns
    assert held.claim_ms < control.claim_ms / 1.5
