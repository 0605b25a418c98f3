"""The verbs of an engine on a real server: those of every engine, then what gateways share."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from support.postgresql import Server, binaries
from support.server_home import server_home
from support.waiting import PATIENCE_S

from outboxd.errors import (
    CommitUnknown,
    LeaseLost,
    OutboxdError,
    OutboxUnreachable,
    OutboxUnusable,
    UnknownId,
)
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import Attempt, DestinationHold, EntryChange, EntryFilter, Settlement
from outboxd.outbox.postgresql.connection import check_promises
from outboxd.outbox.postgresql.engine import PostgresEngine

# The suite of the other engine: what it asks of any engine is asked of this one, too.
_file = Path(__file__).parents[1] / "test_engine.py"
_spec = importlib.util.spec_from_file_location("engine_suite", _file)
assert _spec is not None
assert _spec.loader is not None
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)

SHARED = (
    "test_an_event_that_was_rolled_back_is_not_there",
    "test_a_known_key_gets_the_first_receipt",
    "test_a_duplicate_of_a_dead_letter_says_so",
    "test_ended_windows_are_forgotten_in_steps",
    "test_a_key_counts_within_its_producer",
    "test_a_share_of_the_newest_comes_before_the_oldest",
    "test_what_is_taken_is_not_fetched_again",
    "test_few_entries_are_fetched_once_each",
    "test_an_entry_is_not_fetched_before_its_due_time",
    "test_a_due_time_written_before_the_clock_was_set_back_does_not_stall",
    "test_an_attempt_is_recorded_with_what_it_meant",
    "test_only_the_newest_attempts_are_kept",
    "test_a_late_outcome_changes_nothing_of_a_settled_or_dropped_entry",
    "test_a_dead_letter_is_retried_whatever_its_dedup_key",
    "test_a_retried_entry_does_not_expire_at_once",
    "test_a_held_entry_is_kept_back_until_released",
    "test_a_dropped_entry_leaves_nothing_behind_that_refuses_it_later",
    "test_many_dead_letters_are_changed_in_steps",
    "test_a_bulk_drop_leaves_nothing_behind",
    "test_pages_go_through_everything_newest_first",
    "test_filters",
    "test_the_json_of_an_entry_has_the_promised_keys",
    "test_entries_of_one_millisecond_have_short_ids_of_their_own",
    "test_numbers_in_details_keep_their_text",
)
for _name in SHARED:
    globals()[_name] = getattr(_suite, _name)


def keep(engine, *items):
    with engine.transaction():
        return engine.accept(items)


def another(url, clock, **settings):
    return PostgresEngine(url, clock, gateway="other", **settings)


def test_what_one_gateway_keeps_another_sees_and_counts(engine, url, clock, event):
    other = another(url, clock)
    (receipt,) = keep(engine, event(key="k"))
    assert keep(other, event(key="k")) == [receipt._replace(status="duplicate")]
    assert other.get(receipt.id).body == event().body
    (second,) = keep(other, event("b"))
    assert read_page(engine, EntryFilter(), None, 9).entries[0].id == second.id
    third = another(url, clock)
    assert third.counts().pending == 2
    third.close()
    other.close()


@pytest.mark.parametrize("in_order", [True, False])
def test_the_same_keys_in_both_orders_never_lock_each_other_out(
    engine, url, clock, event, in_order
):
    other = another(url, clock)
    keys = [f"k{n:03d}" for n in range(200)]
    mine = [event(f"mine {key}", key=key) for key in keys]
    theirs = [event(f"theirs {key}", key=key) for key in (keys if in_order else keys[::-1])]
    found = []
    for _ in range(3):
        barrier = threading.Barrier(2)

        def give(gateway, items, barrier=barrier):
            barrier.wait(PATIENCE_S)
            found.extend(keep(gateway, *items))

        threads = [
            threading.Thread(target=give, args=(engine, mine)),
            threading.Thread(target=give, args=(other, theirs)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(found) == 1200
    accepted = [receipt for receipt in found if receipt.status == "accepted"]
    assert len(accepted) == len({receipt.id for receipt in found}) == 200
    other.close()


# Before its second key who claims keys waits until another has its first one, too.
MEET = """
CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('test.claimed', true), '') = '' THEN
        PERFORM set_config('test.claimed', 'one', true);
    ELSIF current_setting('test.claimed') = 'one' THEN
        PERFORM set_config('test.claimed', 'more', true);
        PERFORM pg_advisory_xact_lock(4711, pg_backend_pid());
        WHILE (SELECT count(*) FROM pg_locks WHERE classid = 4711 AND locktype = 'advisory') < 2
        LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER meet BEFORE INSERT ON dedup FOR EACH ROW EXECUTE FUNCTION meet();
"""


def test_keys_that_are_not_sorted_would_lock_each_other_out(url, clock, event, monkeypatch, full):
    """The control: the same two gateways, with the keys claimed in the order they came."""
    if not full:
        pytest.skip("one of the full figures (--full)")
    execute = psycopg.Connection.execute

    def unsorted(self, query, *more, **named):
        return execute(self, query.replace(' ORDER BY key COLLATE "C"', ""), *more, **named)

    monkeypatch.setattr(psycopg.Connection, "execute", unsorted)
    gateways = [another(url, clock), another(url, clock)]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(MEET)
    failed: list[str] = []

    def give(gateway, items):
        try:
            keep(gateway, *items)
        except OutboxdError as error:
            failed.append(error.message)

    items = [event(f"{n}", key=f"{n:03d}") for n in range(200)]
    threads = [
        threading.Thread(target=give, args=(gateway, some))
        for gateway, some in zip(gateways, (items, items[::-1]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    (told,) = failed
    assert "deadlock" in told
    for gateway in gateways:
        gateway.close()


def test_equal_events_within_the_repeat_window_are_counted(url, clock, event):
    engine = PostgresEngine(url, clock, repeat_window_s=60)
    first, *_ = keep(engine, event(), event(occurred_at=5), event(key="k"))
    (again,) = keep(engine, event(occurred_at=9))
    assert (again.id, again.repeated) == (first.id, True)
    entry = engine.get(first.id)
    assert (entry.repeats, entry.last_occurred_at) == (3, 9)
    clock.advance(61)
    assert keep(engine, event())[0].status == "accepted"
    engine.close()


def test_pruning_deletes_only_what_was_delivered_long_ago(engine, clock, event, delivered):
    receipts = keep(engine, *[event(f"n{i}") for i in range(6)])
    seqs = [claimed.seq for claimed in engine.fetch(9, (), "fifo", 0, 300).entries]
    with engine.transaction():
        engine.settle([delivered(seq) for seq in seqs[:3]])
    clock.advance(100)
    with engine.transaction():
        engine.settle([delivered(seqs[3])])
    with engine.transaction():
        assert engine.prune(0, 2, clock.wall_ms()).deleted == 2
        assert engine.prune(0, 2, clock.wall_ms()) == (None, 1)
    assert engine.counts() == (2, 1, 0, 0)
    with pytest.raises(UnknownId):
        engine.get(receipts[0].id)


# --- one delivers ---


def test_one_gateway_delivers_at_a_time(engine, url, clock):
    other = another(url, clock)
    assert not other.take_lease()
    engine.give_up_lease()
    assert other.take_lease()
    other.close()


def test_a_former_deliverer_changes_nothing_and_keeps_taking_events(url, clock, event, delivered):
    former = PostgresEngine(url, clock, lease_s=0.05)
    assert former.take_lease()
    (receipt,) = keep(former, event())
    (claimed,) = former.fetch(1, (), "mixed", 0, 300).entries
    with former.transaction():
        former.set_sending([claimed.seq])
    heir = another(url, clock)
    while not heir.take_lease():  # until the lease has ended, by the database's clock
        pass
    with heir.transaction():
        assert heir.recover_sending() == 1
    assert heir.get(receipt.id).possible_duplicate

    def settle():
        with former.transaction():
            former.settle([delivered(claimed.seq)])
            former.set_sending([])

    with pytest.raises(LeaseLost):
        settle()
    assert former.get(receipt.id).state == "pending", "the fence took the settlement with it"
    assert former.lease is None
    assert keep(former, event("another"))[0].status == "accepted"
    former.close()
    heir.close()


def test_a_turn_that_fails_leaves_the_lease_as_it_was(engine):
    before = engine.lease

    def fail():
        with engine.transaction():
            engine.set_sending([1])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert engine.lease == before
    with engine.transaction():
        engine.set_sending([])
    assert engine.lease.turn == before.turn + 1


def test_the_hold_of_the_destination_is_everybodys(engine, url, clock):
    hold = DestinationHold("maintenance", "root", 5)
    with engine.transaction():
        engine.set_destination_hold(hold)
    other = another(url, clock)
    assert other.destination_hold() == hold
    with other.transaction():
        other.set_destination_hold(None)
    assert engine.destination_hold() is None
    other.close()


# --- the server ---


def test_a_connection_that_ended_is_made_anew(engine, url, event):
    keep(engine, event())
    (pid,) = engine.connection.execute("SELECT pg_backend_pid()").fetchone()
    with psycopg.connect(url, autocommit=True) as killer:
        killer.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(OutboxUnreachable):
        keep(engine, event("told that it was not kept"))
    assert keep(engine, event("after"))[0].status == "accepted"
    assert engine.counts().pending == 2


def test_several_gateways_may_migrate_at_once(server, clock):
    url, engines, faults = server.fresh(), [], []

    def open_one(n):
        try:
            engines.append(PostgresEngine(url, clock, gateway=f"g{n}"))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=open_one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (faults, len(engines)) == ([], 6)
    for each in engines:
        each.close()


def test_a_newer_version_s_outbox_is_left_alone(engine, url, clock):
    engine.connection.execute("INSERT INTO outboxd_migrations VALUES ('0099_later')")
    with pytest.raises(OutboxUnusable, match="0099_later"):
        PostgresEngine(url, clock)


@pytest.mark.parametrize(
    ("setting", "durability", "said"),
    [
        ("synchronous_commit = off", "local", "synchronous_commit"),
        ("synchronous_commit = local", "local", "synchronous_commit"),
        ("", "replicated", "synchronous_standby_names"),
    ],
)
def test_a_server_that_cannot_keep_the_promise_is_refused(url, setting, durability, said):
    with psycopg.connect(url, autocommit=True) as connection:
        if setting:
            connection.execute(f"SET {setting}")
        with pytest.raises(OutboxUnusable, match=said) as caught:
            check_promises(connection, durability)
        assert caught.value.exit_code == 78


def test_the_change_of_a_held_entry_is_counted(engine, event):
    (receipt,) = keep(engine, event()._replace(producer="token:a"))
    with engine.transaction():
        engine.change(EntryChange.HOLD, receipt.id)
    assert (engine.counts(), engine.waiting()) == ((1, 0, 0, 1), {"token:a": 1})
    attempt = Attempt(5, 5, "rejected", 400, "no")
    (seq,) = list(engine.seq_range())
    with engine.transaction():
        engine.settle([Settlement(seq, "dead", attempt, dead_reason="rejected")])
    assert (engine.counts(), engine.waiting()) == ((0, 0, 1, 0), {})


# --- commits ---


@contextmanager
def ends_in_commit(url, change):
    """The server ends a connection that commits such a change of an entry."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10);"
            " RETURN NULL; END'"
        )
        admin.execute(
            f"CREATE CONSTRAINT TRIGGER die AFTER {change} ON states DEFERRABLE INITIALLY"
            " DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
        )
        yield
        admin.execute("DROP TRIGGER die ON states")


def test_a_commit_whose_end_was_not_seen_is_told_from_one_that_failed(engine, url, clock, event):
    """The server ends the connection while it commits: nobody knows, nobody is answered."""
    with ends_in_commit(url, "INSERT"), pytest.raises(CommitUnknown):
        keep(engine, event(key="k"))
    assert keep(engine, event(key="k"))[0].status == "accepted", "asked again with the same key"
    assert engine.counts().pending == 1


def turn(engine, *settlements, sending=()):
    with engine.transaction():
        engine.settle(settlements)
        engine.set_sending(sending)


@pytest.fixture
def sent(engine, event):
    """An entry in flight, and what its answer means: it is to be sent again later."""
    engine.take_lease()
    keep(engine, event())
    (seq,) = list(engine.seq_range())
    turn(engine, sending=[seq])
    return Settlement(seq, "pending", Attempt(5, 5, "unavailable", 500, "busy"), due_at=7)


def test_a_renewal_does_not_make_a_failed_commit_pass_for_one_that_was_made(engine, url, sent):
    """The turn grows with each; what was not written would be forgotten and sent twice."""
    with ends_in_commit(url, "UPDATE"), pytest.raises(CommitUnknown):
        turn(engine, sent)
    with engine.transaction():
        engine.renew_lease()
    turn(engine, sent)
    (entry,) = listed(engine)
    assert (entry.attempt_count, entry.due_at) == (1, 7)


def test_what_was_committed_unseen_is_written_once_whatever_comes_between(engine, sent):
    connection = engine.connection
    execute = connection.execute

    def ends_behind(statement, *more):
        cursor = execute(statement, *more)
        if statement == "COMMIT":
            connection.close()
            raise psycopg.OperationalError("server closed the connection")
        return cursor

    connection.execute = ends_behind
    with pytest.raises(CommitUnknown):
        turn(engine, sent)
    with engine.transaction():
        engine.renew_lease()
    with suppress(ZeroDivisionError), engine.transaction():
        engine.settle([sent])
        raise ZeroDivisionError  # what is known of it stays known
    turn(engine, sent)
    (entry,) = listed(engine)
    assert (entry.attempt_count, entry.due_at) == (1, 7)


def listed(engine):
    return read_page(engine, EntryFilter(), None, 9).entries


def test_what_was_committed_before_the_server_died_is_a_duplicate_of_itself(clock, event, tmp_path):
    with server_home() as directory:
        server = Server(directory, binaries())
        server.start()
        engine = PostgresEngine(server.url(), clock)
        (receipt,) = keep(engine, event(key="k"))
        server.stop("immediate")
        with pytest.raises(OutboxUnreachable):
            keep(engine, event("while it is away"))
        server.start()
        assert keep(engine, event(key="k")) == [receipt._replace(status="duplicate")]
        engine.close()
        server.stop("immediate")


def test_an_alert_that_fires_again_is_a_new_event(engine, event):
    marks = (5, 5, 4, 6, 5)
    items = [event("alert", key="a")._replace(dedup_mark=mark) for mark in marks]
    one_by_one = [keep(engine, item)[0].status for item in items]
    assert one_by_one == ["accepted", "duplicate", "duplicate", "accepted", "duplicate"]
    later = [item._replace(dedup_key="b") for item in items]
    assert [receipt.status for receipt in keep(engine, *later)] == one_by_one
