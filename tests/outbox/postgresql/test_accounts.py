"""Several accounts in one database: none reads, writes or waits for what is another's."""

from __future__ import annotations

import pytest
from support.moves import fill, incoming, seen

from outboxd.errors import UnknownId
from outboxd.outbox import moving
from outboxd.outbox.mentions import Texts
from outboxd.outbox.model import (
    Attempt,
    DestinationHold,
    EntryChange,
    EntryFilter,
    Identity,
    ListPlace,
    Place,
    Settlement,
    Unsettled,
)
from outboxd.outbox.postgresql import schema
from outboxd.outbox.postgresql.connection import OutboxUnreachable, connect
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.sqlite.engine import SqliteEngine

HOLD = DestinationHold("maintenance", "me", 5)


@pytest.fixture
def make_engine(url, clock):
    """A gateway's connection, for an account."""
    made: list[PostgresEngine] = []

    def make(account: str, **settings) -> PostgresEngine:
        made.append(
            PostgresEngine(url, clock, gateway=f"g-{account}", destination=account, **settings)
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def pair(make_engine) -> tuple[PostgresEngine, PostgresEngine]:
    """One with an entry in every state, and an empty one."""
    full, empty = make_engine("full"), make_engine("empty")
    assert full.take_lease()
    fill(full)
    return full, empty


def keep(engine, *items):
    with engine.transaction():
        return engine.accept(items)


def rows(engine) -> list[tuple]:
    """All that there is of an account, as the tables have it."""
    return [
        engine.connection.execute(
            f"SELECT * FROM {table} WHERE destination = %s ORDER BY 1, 2",
            (engine.destination,),
        ).fetchall()
        for table in ("entries", "states", "dedup", "tallies", "deliverers", "moves")
    ]


def test_every_verb_that_reads_passes_over_what_is_anothers(pair):
    full, empty = pair
    entry = full.entries_after(0, 9, 1 << 20)[0]
    assert len(full.seq_range()) > 0
    assert empty.seq_range() == range(0)
    seqs = full.seq_range()
    assert empty.index_rows(seqs) == []
    assert empty.rows_by_block(100, seqs) == {}
    assert empty.texts(seqs, Texts("", "")) == []
    assert empty.entries_of(EntryFilter(), list(seqs)) == []
    for kind in Unsettled:
        assert full.unsettled_sums(kind, 256, Place(-1, 0)).by_block
        assert empty.unsettled_sums(kind, 256, Place(-1, 0)).by_block == {}
    for where in (EntryFilter(), EntryFilter(states=("dead",)), EntryFilter(held=True)):
        assert full.list_step(where, ListPlace(1 << 62), 99, 1 << 20, False).entries
        assert empty.list_step(where, ListPlace(1 << 62), 99, 1 << 20, False).entries == []
    assert empty.fetch(99, (), "mixed", 0.5, 3600).entries == []
    assert empty.fetch(99, (), "fifo", 0.0, 3600).entries == []
    assert empty.expired(99).entries == []
    assert full.oldest_pending_at() is not None
    assert full.last_dead_at() is not None
    assert empty.oldest_pending_at() is empty.last_dead_at() is None
    assert empty.own_reports_pending() == 0
    assert sum(empty.counts()) == 0
    assert empty.entries_after(0, 99, 1 << 20) == empty.identities_after("", 99) == []
    assert full.identities_after("", 99)
    with pytest.raises(UnknownId):
        empty.get(entry.id)


def test_every_verb_that_changes_leaves_what_is_anothers(pair):
    full, empty = pair
    before = rows(full)
    entries = full.entries_after(0, 99, 1 << 20)
    assert empty.take_lease()
    settled = [
        Settlement(e.seq, "delivered", Attempt(1, 1, "delivered", 201, None), revives=True)
        for e in entries
    ]
    with empty.transaction():
        empty.set_sending([entry.seq for entry in entries])
        empty.recover_sending()
        empty.settle(settled)
        for change in EntryChange:
            for entry in entries:
                with pytest.raises(UnknownId):
                    empty.change(change, entry.id)
            if change in (EntryChange.RETRY, EntryChange.DROP):
                empty.change_dead(change, EntryFilter(), ListPlace(1 << 62), 99)
        empty.prune(-1, 99, 1 << 60)
        empty.prune_dedup(99)
        empty.set_destination_hold(HOLD)
        empty.tell_release()
    assert rows(full) == before
    assert full.destination_hold().reason == "key revoked"
    assert full.look_around().deliverer == "g-full"
    assert empty.look_around().deliverer == "g-empty"


def test_a_key_is_known_within_its_account(make_engine):
    one, other = make_engine("one"), make_engine("other")
    (first,) = keep(one, incoming("a", 1, producer="p", dedup_key="k"))
    (second,) = keep(other, incoming("a", 1, producer="p", dedup_key="k"))
    assert first.status == second.status == "accepted"
    assert one.state_of_key("p", "k") == "pending"
    assert keep(other, incoming("a", 1, producer="p", dedup_key="k"))[0].id == second.id
    assert (one.counts().pending, other.counts().pending) == (1, 1)
    assert one.look_around().accepted == other.look_around().accepted == 1


def test_a_move_takes_one_account_along_and_leaves_the_other_in_use(
    make_engine, pair, tmp_path, clock
):
    full, _ = pair
    source = make_engine("full")
    other = make_engine("other")
    (kept,) = keep(other, incoming("stays", 1, dedup_key="k"))
    target = SqliteEngine(str(tmp_path / "to.db"), clock)
    wanted = seen(source)
    moving.move(source, target)
    assert seen(target) == wanted
    with pytest.raises(OutboxUnreachable):
        keep(full, incoming("late", 1))
    assert keep(other, incoming("after", 1))[0].status == "accepted"
    assert other.get(kept.id).body == incoming("stays", 1).body
    # And back, beside what came in meanwhile, into a name of its own.
    back = make_engine("back")
    moving.move(target, back)
    assert seen(back) == wanted
    assert other.counts().pending == 2
    target.close()


def test_what_was_in_flight_at_a_killed_gateway_is_marked_by_a_move(make_engine, tmp_path, clock):
    killed = make_engine("a", lease_s=0.1)
    killed.take_lease()
    (receipt,) = keep(killed, incoming("flew", 1))
    with killed.transaction():
        killed.set_sending(list(killed.seq_range()))
    killed.connection.close()
    source = make_engine("a")
    while source.look_around().lease_left_s > 0:
        pass  # by the server's clock
    target = SqliteEngine(str(tmp_path / "to.db"), clock)
    assert moving.move(source, target).doubtful == 1
    assert target.get(receipt.id).possible_duplicate
    target.close()


def test_a_key_from_before_there_were_producers_is_known_to_all(make_engine):
    engine = make_engine("a")
    (receipt,) = keep(engine, incoming("a", 1, dedup_key="old"))
    old = Identity("k:old", 1, receipt.id, 1 << 60, 0)
    with engine.transaction():
        engine.put_in([], [old])
    again = make_engine("a")
    (known,) = keep(again, incoming("b", 1, producer="token:b", dedup_key="old"))
    assert (known.status, known.id) == ("duplicate", receipt.id)
    assert again.state_of_key("token:b", "old") == "pending"


@pytest.mark.parametrize("is_left", [False, True], ids=["in use", "left by a move"])
def test_a_database_of_an_earlier_version_is_the_first_accounts(url, clock, is_left):
    with connect(url) as old:
        old.execute("CREATE TABLE outboxd_migrations (name text PRIMARY KEY)")
        for name, statements in schema.MIGRATIONS[:2]:
            old.execute(statements)
            old.execute("INSERT INTO outboxd_migrations VALUES (%s)", (name,))
        old.execute(
            "INSERT INTO entries VALUES (7, gen_random_uuid(), 5, NULL, NULL, 't', 'error', '',"
            " 'socket', 'k', 'p', NULL, '{}')"
        )
        old.execute(
            "INSERT INTO states VALUES (7, 'pending', false, 0, NULL, 0, NULL, 0, 0, false, NULL,"
            " '[]', 'p', NULL)"
        )
        old.execute("INSERT INTO dedup SELECT E'p:p\\nk', seq, id, 0, 1::bigint << 60 FROM entries")
        old.execute("INSERT INTO tallies VALUES ('g', 'p', 1, 0, 0, 0, 1)")
        old.execute(
            "INSERT INTO deliverers (destination, turn, sending, hold)"
            " VALUES ('komodor', 4, '{7}', '[\"r\",\"b\",5]')"
        )
        if is_left:
            for table in ("states", "deliverers"):
                old.execute(
                    f"CREATE TRIGGER outboxd_moved BEFORE INSERT OR UPDATE OR DELETE ON {table}"
                    " FOR EACH STATEMENT EXECUTE FUNCTION outboxd_moved()"
                )
    engine = PostgresEngine(url, clock)
    other = PostgresEngine(url, clock, destination="other")
    try:
        assert engine.counts().pending == 1
        assert [claimed.seq for claimed in engine.fetch(9, (), "mixed", 0.5, 3600).entries] == [7]
        assert engine.state_of_key("p", "k") == "pending"
        assert engine.destination_hold() is not None
        assert keep(other, incoming("a", 1))[0].status == "accepted"
        if is_left:
            with pytest.raises(OutboxUnreachable):
                keep(engine, incoming("a", 1))
        else:
            assert engine.take_lease()
            with engine.transaction():
                assert engine.recover_sending() == 1
    finally:
        engine.close()
        other.close()


def test_the_control_a_query_without_its_account_is_found(pair, monkeypatch):
    """What the two tests above would see of a verb that looks at all accounts."""
    full, empty = pair
    forgetful = {Unsettled.HELD: "held OR held"}
    monkeypatch.setattr("outboxd.outbox.postgresql.listing._UNSETTLED", forgetful)
    assert empty.unsettled_sums(Unsettled.HELD, 256, Place(-1, 0)).by_block
    assert full.unsettled_sums(Unsettled.HELD, 256, Place(-1, 0)).by_block
