"""Counts that gateways keep together agree with the entries, whoever changes them at once."""

from __future__ import annotations

import threading
import time

import pytest
from support.waiting import PATIENCE_S

from outboxd.outbox.model import Attempt, EntryChange, Settlement
from outboxd.outbox.postgresql.engine import PostgresEngine


def keep(engine, *items):
    with engine.transaction():
        return engine.accept(items)


def counted(engine) -> dict[str, int]:
    return dict(engine.connection.execute("SELECT state, count(*) FROM states GROUP BY state"))


def await_lock_wait(engine) -> None:
    """Until somebody waits for a row that this transaction has."""
    end_s = time.monotonic() + PATIENCE_S
    while not engine.connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name = 'outboxd default'"
    ).fetchone()[0]:
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("change", [EntryChange.DROP, EntryChange.HOLD, EntryChange.RETRY])
@pytest.mark.parametrize("state", ["delivered", "dead"])
def test_an_entry_that_is_settled_while_an_operator_changes_it_is_counted_as_it_was(
    engine, url, clock, event, change, state
):
    """The operator's gateway has read it as pending, and waits for the row."""
    other = PostgresEngine(url, clock, gateway="other")
    (receipt,) = keep(engine, event())
    (entry,) = engine.fetch(1, (), "mixed", 0, 300).entries

    def act() -> None:
        with other.transaction():
            other.change(change, receipt.id)

    operator = threading.Thread(target=act)
    with engine.transaction():
        attempt = Attempt(5, 5, state, 201, None)
        reason = "rejected" if state == "dead" else None
        engine.settle([Settlement(entry.seq, state, attempt, dead_reason=reason)])
        operator.start()
        await_lock_wait(engine)
    operator.join(PATIENCE_S)
    for gateway in (engine, other):
        gateway.look_around()
        counts = gateway.counts()
        found = counted(engine)
        assert (counts.pending, counts.delivered, counts.dead, counts.held) == (
            found.get("pending", 0),
            found.get("delivered", 0),
            found.get("dead", 0),
            0,
        )
    other.close()


def test_what_waits_and_is_not_counted_is_not_passed_over(engine, clock, event):
    keep(engine, event())
    engine.connection.execute("UPDATE tallies SET pending = 0")  # as no code of ours does
    engine.look_around()
    assert engine.counts().pending == 1
    engine.connection.execute("UPDATE states SET state = 'delivered', ended_at = 5")
    clock.advance(10)
    engine.look_around()
    assert engine.counts().pending == 0
