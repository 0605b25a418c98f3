"""Where the deliverer's look begins: it passes what was settled, and nothing for good."""

from __future__ import annotations

import psycopg
import pytest

from outboxd.errors import CommitUnknown
from outboxd.outbox.model import Attempt, EntryChange, Settlement
from outboxd.outbox.postgresql.engine import PostgresEngine

ATTEMPT = Attempt(5, 5, "unavailable", 503, "no")


@pytest.fixture
def engine(engine):
    """As the deliverer's connection is, which goes by the indexes."""
    claiming = engine.beside("deliverer", claims=True)
    engine.give_up_lease()
    assert claiming.take_lease()
    yield claiming
    claiming.close()


def keep(engine, *items):
    with engine.transaction():
        return engine.accept(items)


def look(engine, count, taken=(), fresh_share=0.0):
    with engine.reading():
        return engine.fetch(count, taken, "mixed", fresh_share, 300)


def summaries(found):
    return [entry.body.split(b'"summary":"')[1].split(b'"')[0].decode() for entry in found.entries]


def settle(engine, *settlements):
    with engine.transaction():
        engine.settle(settlements)


def read_index_entries(engine) -> int:
    """How many the due index has given out so far."""
    engine.connection.execute("SELECT pg_stat_force_next_flush()")
    (count,) = engine.connection.execute(
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'states_due'"
        " AND schemaname = current_schema()"
    ).fetchone()
    return count


@pytest.mark.parametrize("fresh_share", [0.0, 0.25, 1.0])
def test_while_a_snapshot_is_held_a_look_passes_no_more_than_it_finds(
    engine, url, clock, event, delivered, fresh_share
):
    keep(engine, *[event(f"n{n}") for n in range(2000)])
    with psycopg.connect(url) as held:
        held.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        held.execute("SELECT count(*) FROM states")
        looks = 0
        before = read_index_entries(engine)
        while entries := look(engine, 20, fresh_share=fresh_share).entries:
            settle(engine, *[delivered(entry.seq) for entry in entries])
            looks += 1
        assert engine.counts().pending == 0
        assert looks == 100
        # Twice what there is, and some looks from the very start: without a cursor each
        # of the hundred looks would pass all that was settled before it, 100,000 in all.
        assert read_index_entries(engine) - before < 20_000


def test_what_was_numbered_early_and_committed_late_is_found(engine, url, clock, event, delivered):
    other = PostgresEngine(url, clock, gateway="other")
    with other.transaction():
        other.accept([event("early, late")])
        keep(engine, event("first"))
        (first,) = look(engine, 5).entries
        settle(engine, delivered(first.seq))
        keep(engine, event("second"))
        assert summaries(look(engine, 1)) == ["second"]
    found = look(engine, 5)
    if len(found.entries) < 2:  # then the next look is at hand
        assert found.next_due_at - clock.wall_ms() <= 1000
        clock.advance(1)
        found = look(engine, 5)
    assert summaries(found) == ["early, late", "second"]
    other.close()


def test_what_waits_again_is_found(engine, clock, event, delivered):
    receipts = keep(engine, *[event(f"n{n}") for n in range(4)])
    entries = look(engine, 4).entries
    settle(engine, *[delivered(entry.seq) for entry in entries[1:3]])
    assert summaries(look(engine, 1, [entries[0].seq])) == ["n3"]
    settle(engine, Settlement(entries[0].seq, "pending", ATTEMPT))
    assert summaries(look(engine, 1)) == ["n0"]
    settle(engine, Settlement(entries[0].seq, "dead", ATTEMPT, dead_reason="rejected"))
    assert summaries(look(engine, 1)) == ["n3"]
    with engine.transaction():
        engine.change(EntryChange.RETRY, receipts[0].id)
    engine.look_from_start()  # as the election does, which hears of it
    assert summaries(look(engine, 2)) == ["n0", "n3"]


@pytest.mark.parametrize("was_made", [False, True])
def test_an_attempt_counts_once_though_the_end_of_its_commit_was_not_seen(
    engine, url, event, was_made
):
    (receipt,) = keep(engine, event())
    (entry,) = look(engine, 1).entries
    settlement = Settlement(entry.seq, "pending", ATTEMPT, spent=1)

    def turn():
        with engine.transaction():
            engine.settle([settlement])
            engine.set_sending([])

    cut = _Cut(engine.connection, was_made)
    engine.link.connection = cut
    with pytest.raises(CommitUnknown):
        turn()
    turn()  # the sender hands in the same again
    found = engine.get(receipt.id)
    assert (found.attempt_count, found.spent) == (1, 1)
    engine.set_sending([])


class _Cut:
    """A connection that ends while it commits, before the server does, or after."""

    def __init__(self, connection, was_made: bool) -> None:
        self._connection, self._was_made = connection, was_made

    def execute(self, statement, *values):
        if statement != "COMMIT":
            return self._connection.execute(statement, *values)
        if self._was_made:
            self._connection.execute(statement)
        self._connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def __getattr__(self, name):
        return getattr(self._connection, name)
