"""One suite for the verbs of an engine, on real files."""

from __future__ import annotations

import json
import os
import sqlite3
import stat

import msgspec
import pytest

from outboxd.errors import BadQuery, OutboxUnusable, UnknownId
from outboxd.outbox.bulk import BulkChange
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import (
    Attempt,
    DestinationHold,
    EntryChange,
    EntryFilter,
    ListPlace,
    Receipt,
    Settlement,
    SpoolMark,
)
from outboxd.outbox.shapes import attempts_json, entry_json
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue import scrub

ALL = EntryFilter()
HORIZON_S = 300.0


def keep(engine: SqliteEngine, *items):
    with engine.transaction():
        return engine.accept(items)


def settle(engine: SqliteEngine, *settlements):
    with engine.transaction():
        engine.settle(settlements)


def fetch(
    engine: SqliteEngine, count: int = 10, taken=(), order: str = "mixed", share: float = 0.0
):
    return engine.fetch(count, taken, order, share, HORIZON_S).entries


def test_a_receipt_names_an_entry_that_is_there_after_reopening(engine, path, clock, event):
    (receipt,) = keep(engine, event())
    engine.close()
    again = SqliteEngine(path, clock)
    entry = again.get(receipt.id)
    assert (entry.state, entry.body) == ("pending", event().body)
    assert again.counts() == (1, 0, 0, 0)
    again.close()


def test_the_connection_is_as_durable_as_promised(engine):
    pragma = lambda name: engine.connection.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    assert pragma("synchronous") == 2
    assert pragma("journal_mode") == "wal"
    assert pragma("locking_mode") == "exclusive"
    assert pragma("wal_autocheckpoint") == 0


def test_no_shared_memory_file_is_made(engine, path, event):
    keep(engine, event())
    assert not os.path.exists(path + "-shm")


def test_an_event_that_was_rolled_back_is_not_there(engine, event):
    def fail():
        with engine.transaction():
            engine.accept([event()])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert engine.counts() == (0, 0, 0, 0)
    assert read_page(engine, ALL, None, 10).entries == []
    keep(engine, event())
    assert engine.counts().pending == 1


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 127, 500])
def test_any_number_of_events_goes_in_one_transaction(engine, event, count):
    receipts = keep(engine, *[event(f"n{i}") for i in range(count)])
    assert len({r.id for r in receipts}) == count
    listed = read_page(engine, ALL, None, 1000).entries
    assert [e.id for e in reversed(listed)] == [r.id for r in receipts]
    assert all(
        engine.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok" for _ in "x"
    )


# --- dedup ---


def test_a_known_key_gets_the_first_receipt(engine, event):
    first, second = keep(engine, event("a", key="k"), event("b", key="k"))
    (third,) = keep(engine, event("c", key="k"))
    assert first.status == "accepted"
    assert second == Receipt(first.id, "duplicate", "pending")
    assert third == Receipt(first.id, "duplicate", "pending")
    assert engine.counts().pending == 1


def test_a_duplicate_of_a_dead_letter_says_so(engine, event):
    (first,) = keep(engine, event(key="k"))
    settle(engine, Settlement(1, "dead", None, dead_reason="rejected"))
    assert keep(engine, event(key="k")) == [Receipt(first.id, "duplicate", "dead")]


def test_the_key_window_survives_reopening_and_pruning(engine, path, clock, event, delivered):
    (first,) = keep(engine, event(key="k"))
    settle(engine, delivered(1))
    clock.advance(10)
    with engine.transaction():
        assert engine.prune(0, 100, clock.wall_ms()) == (None, 1)
    engine.close()
    again = SqliteEngine(path, clock)
    assert keep(again, event(key="k")) == [Receipt(first.id, "duplicate", "delivered")]
    clock.advance(7 * 86400)
    assert keep(again, event(key="k"))[0].status == "accepted"
    again.close()


DAY_S = 86400


@pytest.mark.parametrize("jumps_s", [(30 * DAY_S,), (8 * DAY_S, 8 * DAY_S), (-DAY_S, 40 * DAY_S)])
def test_a_clock_that_is_set_forward_ends_no_window(path, clock, event, jumps_s):
    """Or an event whose answer was lost would be taken for a new one."""
    engine = SqliteEngine(path, clock)
    (first,) = keep(engine, event(key="k"))
    for jump_s in jumps_s:
        clock.jump(jump_s)
        with engine.transaction():
            assert engine.prune_dedup(100) == 0
        (again,) = keep(engine, event(key="k"))
        assert (again.status, again.id) == ("duplicate", first.id)
    (later,) = keep(engine, event(key="later"))
    clock.advance(7 * DAY_S - 1)
    assert keep(engine, event(key="k"))[0].status == "duplicate"
    clock.advance(1)
    assert keep(engine, event(key="k"))[0].status == "accepted", "a window has passed"
    assert keep(engine, event(key="later"))[0].id != later.id
    engine.close()


def test_and_none_outlasts_two_steps_that_nobody_saw_the_time_between(path, clock, event):
    """A key is known for one window: a step adds nothing to one that is over."""
    engine = SqliteEngine(path, clock)
    clock.jump(30 * DAY_S)
    (first,) = keep(engine, event(key="k"))
    clock.advance(8 * DAY_S)
    clock.jump(30 * DAY_S)
    (again,) = keep(engine, event(key="k"))
    assert (again.status, again.id) != ("duplicate", first.id)
    engine.close()


def test_a_repeat_is_told_by_the_clock_that_is_set(path, clock, event):
    engine = SqliteEngine(path, clock, repeat_window_s=60)
    keep(engine, event())
    clock.jump(3600)
    assert keep(engine, event())[0].status == "accepted"
    engine.close()


def test_ended_windows_are_forgotten_in_steps(engine, clock, event):
    keep(engine, *[event(key=f"k{i}") for i in range(10)])
    clock.advance(8 * 86400)
    with engine.transaction():
        assert engine.prune_dedup(6) == 6
        assert engine.prune_dedup(6) == 4


def test_a_key_counts_within_its_producer(engine, event):
    alice, bob, again = keep(
        engine,
        event("alice's", key="k")._replace(producer="uid:1"),
        event("bob's", key="k")._replace(producer="uid:2"),
        event("alice's again", key="k")._replace(producer="uid:1"),
    )
    assert (alice.status, bob.status, again.status) == ("accepted", "accepted", "duplicate")
    assert again.id == alice.id
    with engine.transaction():
        engine.change(EntryChange.DROP, alice.id)
    once_more = keep(engine, event("alice's", key="k")._replace(producer="uid:1"))
    assert once_more[0].status == "accepted", "what is dropped leaves no key behind"
    assert engine.get(bob.id).producer == "uid:2"


def test_a_key_from_before_entries_had_a_producer_counts_until_its_window_ends(
    engine, path, clock, event
):
    (old,) = keep(engine, event(key="k"))
    engine.close()
    engine = SqliteEngine(path, clock)
    (again,) = keep(engine, event(key="k")._replace(producer="uid:1"))
    assert (again.status, again.id) == ("duplicate", old.id)
    clock.advance(8 * 86400)
    with engine.transaction():
        engine.prune_dedup(100)
    (fresh,) = keep(engine, event(key="k")._replace(producer="uid:1"))
    assert fresh.status == "accepted"
    assert keep(engine, event(key="k"))[0].status == "accepted", "and none is left for others"
    engine.close()


def test_equal_events_of_two_producers_are_no_repeats(path, clock, event):
    engine = SqliteEngine(path, clock, repeat_window_s=60)
    receipts = keep(engine, *[event()._replace(producer=f"uid:{n}") for n in (1, 2, 1)])
    assert [receipt.status for receipt in receipts] == ["accepted", "accepted", "duplicate"]
    engine.close()


def test_what_waits_is_counted_by_producer_through_every_change(engine, path, clock, event):
    def by(uid, n):
        return event(f"n{n}")._replace(producer=f"uid:{uid}")

    receipts = keep(engine, *[by(n % 2 + 1, n) for n in range(8)], event("nobody's"))
    assert engine.waiting() == {"uid:1": 4, "uid:2": 4, "": 1}
    attempt = Attempt(5, 5, "delivered", 201, None)
    settle(
        engine,
        Settlement(1, "delivered", attempt, first_of="uid:1"),
        Settlement(2, "dead", attempt, dead_reason="rejected"),
        Settlement(3, "pending", attempt, first_of="uid:1"),
    )
    assert engine.waiting() == {"uid:1": 3, "uid:2": 3, "": 1}
    with engine.transaction():
        engine.change(EntryChange.RETRY, receipts[1].id)
        engine.change(EntryChange.HOLD, receipts[3].id)
        engine.change(EntryChange.DROP, receipts[4].id)
        engine.set_aside_damaged(6, "test")
        engine.change(EntryChange.DROP, receipts[8].id)
    assert engine.waiting() == {"uid:1": 2, "uid:2": 3}
    engine.close()
    again = SqliteEngine(path, clock)
    assert again.waiting() == {"uid:1": 2, "uid:2": 3}
    again.close()


def test_repeats_are_counted_at_the_first_one(path, clock, event):
    engine = SqliteEngine(path, clock, repeat_window_s=60)
    (first,) = keep(engine, event())
    receipts = keep(engine, *[event(occurred_at=5000 + i) for i in range(100)])
    assert {r.id for r in receipts} == {first.id}
    entry = engine.get(first.id)
    assert (entry.repeats, entry.last_occurred_at) == (100, 5099)
    assert fetch(engine)[0].repeats == 100
    clock.advance(61)
    assert keep(engine, event())[0].status == "accepted"
    engine.close()


def test_repeats_within_one_transaction_are_counted(path, clock, event):
    engine = SqliteEngine(path, clock, repeat_window_s=60)
    receipts = keep(engine, *[event() for _ in range(10)])
    assert [r.status for r in receipts] == ["accepted"] + ["duplicate"] * 9
    assert engine.get(receipts[0].id).repeats == 9
    engine.close()


def test_a_key_stands_before_the_repeat_window(path, clock, event):
    engine = SqliteEngine(path, clock, repeat_window_s=60)
    keep(engine, event(key="k"))
    (again,) = keep(engine, event(key="k"))
    assert again.status == "duplicate"
    assert engine.get(again.id).repeats == 0
    engine.close()


# --- claiming and settling ---


def test_a_share_of_the_newest_comes_before_the_oldest(engine, event):
    keep(engine, *[event(f"n{i}") for i in range(20)])
    assert [c.seq for c in fetch(engine, 8, share=0.25)] == [20, 19, 1, 2, 3, 4, 5, 6]


def test_what_is_taken_is_not_fetched_again(engine, event):
    keep(engine, *[event(f"n{i}") for i in range(5)])
    assert [c.seq for c in fetch(engine, 10, taken={1, 2, 5})] == [3, 4]


def test_few_entries_are_fetched_once_each(engine, event):
    keep(engine, *[event(f"n{i}") for i in range(3)])
    assert sorted(c.seq for c in fetch(engine, 8, share=0.5)) == [1, 2, 3]


def test_strict_order_goes_past_what_waits_by_itself(engine, clock, event):
    keep(engine, *[event(f"n{i}") for i in range(3)])
    assert [c.seq for c in fetch(engine, 2, order="fifo")] == [1, 2]
    settle(engine, Settlement(1, "pending", None, due_at=clock.wall_ms() + 5000))
    assert [c.seq for c in fetch(engine, 2, order="fifo")] == [2, 3]
    clock.advance(5)
    assert [c.seq for c in fetch(engine, 2, order="fifo")] == [1, 2]


def test_a_rejected_entry_is_revived_and_no_other(engine, clock, event):
    keep(engine, *[event(f"n{i}") for i in range(3)])
    attempt = Attempt(clock.wall_ms(), 1, "rejected", 400, "400")
    settle(engine, Settlement(1, "dead", attempt, dead_reason="rejected"))
    settle(engine, Settlement(2, "dead", None, dead_reason="expired"))
    settle(engine, Settlement(3, "delivered", attempt))
    for seq in (1, 2, 3):
        settle(engine, Settlement(seq, "pending", None, revives=True))
    assert [c.seq for c in fetch(engine, 3)] == [1]
    assert (engine.counts().pending, engine.counts().dead, engine.counts().delivered) == (1, 1, 1)


def test_a_ttl_does_not_end_because_the_clock_was_set(engine, clock, event):
    keep(engine, event("old", at=clock.wall_ms(), expires_at=clock.wall_ms() + 60_000))
    until = clock.wall_ms()
    clock.jump(86400)
    keep(engine, event("new", at=clock.wall_ms(), expires_at=clock.wall_ms() + 60_000))
    steps = [(until, 86_400_000)]
    assert engine.expired(9, steps).entries == []
    clock.advance(61)
    assert [seq for seq, _ in engine.expired(9, steps).entries] == [1, 2]
    assert [seq for seq, _ in engine.expired(9).entries] == [1, 2]


def test_an_entry_is_not_fetched_before_its_due_time(engine, clock, event):
    keep(engine, event())
    settle(engine, Settlement(1, "pending", None, due_at=clock.wall_ms() + 5000))
    assert fetch(engine) == []
    clock.advance(5)
    assert [c.seq for c in fetch(engine)] == [1]


def test_a_due_time_written_before_the_clock_was_set_back_does_not_stall(engine, clock, event):
    keep(engine, event())
    settle(engine, Settlement(1, "pending", None, due_at=clock.wall_ms() + 5000))
    clock.jump(-86400)
    assert [c.seq for c in fetch(engine)] == [1]


def test_an_attempt_is_recorded_with_what_it_meant(engine, clock, event):
    (receipt,) = keep(engine, event())
    attempt = Attempt(clock.wall_ms(), 30, "unavailable", None, "no connection")
    settle(engine, Settlement(1, "pending", attempt, 0, 1, possible_duplicate=True))
    attempt = Attempt(clock.wall_ms() + 1000, 12, "delivered", 201, None)
    settle(engine, Settlement(1, "delivered", attempt))
    entry = engine.get(receipt.id)
    assert (entry.state, entry.attempt_count, entry.spent) == ("delivered", 2, 1)
    assert entry.possible_duplicate
    assert [a["outcome"] for a in attempts_json(entry)] == ["unavailable", "delivered"]
    assert (entry.last_outcome, entry.last_status) == ("delivered", 201)
    assert engine.counts() == (0, 1, 0, 0)


def test_a_first_attempt_is_settled_without_reading_and_ends_in_the_same_row(path, clock, event):
    """Side by side, with and without the mark: every column is the same."""
    outcomes = [
        {"state": "delivered"},
        {"state": "dead", "dead_reason": "rejected"},
        {"state": "pending", "due_at": 77, "spent": 1, "possible_duplicate": True},
    ]
    rows = []
    for number, first_of in enumerate(("uid:1", None)):
        engine = SqliteEngine(f"{path}-{number}", clock)
        keep(engine, *[event(f"n{n}")._replace(producer="uid:1") for n in range(6)])
        with engine.transaction():
            id = read_page(engine, ALL, None, 1).entries[0].id
            engine.change(EntryChange.HOLD, id)
        attempt = Attempt(5, 5, "delivered", 201, None)
        settlements = [
            Settlement(seq, outcome["state"], attempt, first_of=first_of)._replace(**outcome)
            for seq, outcome in enumerate(outcomes * 2, 1)
        ]
        settle(engine, *settlements)
        assert engine.counts() == (2, 2, 2, 1)
        rows.append(
            engine.connection.execute(
                "SELECT seq, state, held, due_at, ended_at, repeats, attempt_count, spent,"
                " possible_duplicate, dead_reason, attempts, state_crc FROM entries ORDER BY seq"
            ).fetchall()
        )
        assert scrub.step(engine.connection, scrub.Position()).fault == ""
        engine.close()
    assert rows[0] == rows[1]


def test_first_attempts_are_settled_without_a_query_unless_one_is_not_as_it_came_in(engine, event):
    receipts = keep(engine, *[event(f"n{n}")._replace(producer="uid:1") for n in range(8)])
    attempt = Attempt(5, 5, "delivered", 201, None)
    statements: list[str] = []
    engine.connection.set_trace_callback(statements.append)
    settle(engine, *[Settlement(seq, "delivered", attempt, first_of="uid:1") for seq in (1, 2, 3)])
    assert {each.split()[0] for each in statements} == {"BEGIN", "WITH", "COMMIT"}
    with engine.transaction():
        engine.change(EntryChange.HOLD, receipts[7].id)
    statements.clear()
    settle(engine, *[Settlement(seq, "delivered", attempt, first_of="uid:1") for seq in (7, 8)])
    engine.connection.set_trace_callback(None)
    assert {each.split()[0] for each in statements} == {"BEGIN", "WITH", "SELECT", "COMMIT"}
    assert engine.counts() == (3, 5, 0, 0)


def test_a_first_attempt_whose_row_was_changed_meanwhile_is_read(engine, event):
    """The checksum is the guard: what an operator did to it stays."""
    receipts = keep(engine, *[event(f"n{n}")._replace(producer="uid:1") for n in range(4)])
    with engine.transaction():
        engine.change(EntryChange.HOLD, receipts[0].id)
        engine.change(EntryChange.DROP, receipts[1].id)
    attempt = Attempt(5, 5, "unavailable", 503, None)
    settle(
        engine,
        *[Settlement(seq, "pending", attempt, spent=1, first_of="uid:1") for seq in (1, 2, 3, 4)],
    )
    held = engine.get(receipts[0].id)
    assert (held.held, held.attempt_count, held.spent) == (True, 1, 1)
    assert engine.counts() == (3, 0, 0, 1)
    settle(engine, Settlement(3, "delivered", attempt, first_of="uid:1"))
    entry = engine.get(receipts[2].id)
    assert (entry.state, entry.attempt_count) == ("delivered", 2), "a stale mark loses nothing"
    settle(engine, Settlement(3, "dead", attempt, dead_reason="rejected", first_of="uid:1"))
    assert engine.get(receipts[2].id).state == "delivered"
    assert scrub.step(engine.connection, scrub.Position()).fault == ""


def test_only_the_newest_attempts_are_kept(engine, event):
    (receipt,) = keep(engine, event())
    for i in range(60):
        settle(engine, Settlement(1, "pending", Attempt(i, 1, "throttled", 429, None)))
    entry = engine.get(receipt.id)
    attempts = attempts_json(entry)
    assert (entry.attempt_count, len(attempts)) == (60, 50)
    assert attempts[-1]["at"] == "1970-01-01T00:00:00.059Z"


def test_a_late_outcome_changes_nothing_of_a_settled_or_dropped_entry(engine, event, delivered):
    first, second = keep(engine, event("a"), event("b"))
    settle(engine, delivered(1))
    settle(engine, Settlement(1, "dead", None, dead_reason="rejected"))
    assert engine.get(first.id).state == "delivered"
    with engine.transaction():
        engine.change(EntryChange.DROP, second.id)
    settle(engine, delivered(2))
    assert engine.counts() == (0, 1, 0, 0)


def test_what_was_in_flight_at_a_crash_is_a_possible_duplicate(engine, path, clock, event):
    keep(engine, *[event(f"n{i}") for i in range(4)])
    with engine.transaction():
        engine.settle([])
        engine.set_sending([2, 3])
    engine.connection.close()  # no farewell
    again = SqliteEngine(path, clock)
    with again.transaction():
        assert again.recover_sending() == 2
    doubtful = {c.seq for c in fetch(again) if c.possible_duplicate}
    assert doubtful == {2, 3}
    with again.transaction():
        assert again.recover_sending() == 0
    again.close()


# --- the operator ---


def test_a_dead_letter_is_retried_whatever_its_dedup_key(engine, event):
    (receipt,) = keep(engine, event(key="k"))
    settle(engine, Settlement(1, "dead", None, dead_reason="exhausted"))
    with engine.transaction():
        entry = engine.change(EntryChange.RETRY, receipt.id)
    assert (entry.state, entry.dead_reason, entry.spent) == ("pending", None, 0)
    assert [c.seq for c in fetch(engine)] == [1]
    assert engine.counts() == (1, 0, 0, 0)


def test_a_retried_entry_does_not_expire_at_once(engine, clock, event):
    (receipt,) = keep(engine, event(expires_at=clock.wall_ms() + 1))
    settle(engine, Settlement(1, "dead", None, dead_reason="expired"))
    with engine.transaction():
        assert engine.change(EntryChange.RETRY, receipt.id).expires_at is None


def dead_ones(engine, event, count):
    """`count` dead letters: rejected with 400 and 422 in turn, every third expired."""
    receipts = keep(engine, *[event(f"n{i}", key=f"k{i}") for i in range(count)])
    for seq in range(1, count + 1):
        reason, attempt = "expired", None
        if seq % 3:
            reason, attempt = "rejected", Attempt(5, 5, "rejected", (400, 422)[seq % 2], "no")
        settle(engine, Settlement(seq, "dead", attempt, dead_reason=reason))
    return receipts


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (EntryFilter(dead_reasons=("expired",)), [9, 6, 3]),
        (EntryFilter(dead_reasons=("expired", "rejected"), last_statuses=(422,)), [7, 5, 1]),
        (EntryFilter(last_statuses=(400, 422), q="n1"), [2]),
        (EntryFilter(last_statuses=(500,)), []),
    ],
)
def test_many_dead_letters_are_changed_in_steps(engine, event, where, found):
    dead_ones(engine, event, 10)
    assert [entry.seq for entry in read_page(engine, where, None, 100).entries] == found
    before = engine.counts()
    retried, place = 0, ListPlace()
    while place is not None:
        with engine.transaction():
            step = engine.change_dead(EntryChange.RETRY, where, place, 3)
        retried, place = retried + step.changed, step.place
    assert retried == len(found)
    assert {claimed.seq for claimed in fetch(engine, 100)} == set(found)
    assert engine.counts() == before._replace(pending=len(found), dead=before.dead - len(found))


def test_a_bulk_drop_leaves_nothing_behind(engine, event):
    dead_ones(engine, event, 7)
    bulk = BulkChange(EntryChange.DROP, EntryFilter(dead_reasons=("rejected",)))
    while not bulk.is_done:
        with engine.transaction():
            step = bulk.step(engine)
        bulk.committed(step)
    assert (bulk.changed, engine.counts()) == (5, (0, 0, 2, 0))
    assert keep(engine, event(key="k0"))[0].status == "accepted"
    assert keep(engine, event(key="k2"))[0].status == "duplicate"


def test_a_held_entry_is_kept_back_until_released(engine, event):
    (receipt,) = keep(engine, event())
    with engine.transaction():
        assert engine.change(EntryChange.HOLD, receipt.id).held
    assert fetch(engine) == []
    assert engine.counts() == (1, 0, 0, 1)
    with engine.transaction():
        assert not engine.change(EntryChange.RELEASE, receipt.id).held
    assert len(fetch(engine)) == 1


def test_a_dropped_entry_leaves_nothing_behind_that_refuses_it_later(engine, event):
    (receipt,) = keep(engine, event(key="k"))
    with engine.transaction():
        engine.change(EntryChange.DROP, receipt.id)
    with pytest.raises(UnknownId):
        engine.get(receipt.id)
    assert keep(engine, event(key="k"))[0].status == "accepted"


def test_the_destinations_hold_outlives_reopening(engine, path, clock):
    hold = DestinationHold("maintenance", "root", 5)
    with engine.transaction():
        engine.set_destination_hold(hold)
    engine.close()
    again = SqliteEngine(path, clock)
    assert again.destination_hold() == hold
    with again.transaction():
        again.set_destination_hold(None)
    assert again.destination_hold() is None
    again.close()


# --- listing ---


def test_pages_go_through_everything_newest_first(engine, event):
    keep(engine, *[event(f"n{i}") for i in range(25)])
    seen, cursor = [], None
    while True:
        page = read_page(engine, ALL, cursor, 10)
        seen += [e.seq for e in page.entries]
        cursor = page.next
        if cursor is None:
            break
    assert seen == list(range(25, 0, -1))


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 30, "²"])
def test_a_cursor_that_no_listing_gave_is_refused(engine, cursor):
    with pytest.raises(BadQuery, match="cursor"):
        read_page(engine, ALL, cursor, 10)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (EntryFilter(states=("dead",)), [2]),
        (EntryFilter(states=("pending", "delivered")), [4, 3, 1]),
        (EntryFilter(event_types=("alert",)), [3]),
        (EntryFilter(severities=("error", "warning")), [4, 3]),
        (EntryFilter(clusters=("b",)), [4]),
        (EntryFilter(namespaces=("x",)), [4]),
        (EntryFilter(services=("s",)), [4]),
        (EntryFilter(clusters=("b",), severities=("information",)), []),
        (EntryFilter(held=True), [3]),
        (EntryFilter(q="GRÜN"), [1]),
        (EntryFilter(q='say "hi"'), [2]),
        (EntryFilter(since=2000, until=4000), [3, 2]),
    ],
)
def test_filters(engine, event, where, found):
    scope = '{"clusters":["b"],"servicesNames":["s"],"namespaces":["x"]}'
    receipts = keep(
        engine,
        event("alles grün", at=1000),
        event('say \\"hi\\"', at=2000),
        event("c", at=3000, event_type="alert", severity="error"),
        event("d", at=4000, severity="warning", scope=scope),
    )
    settle(engine, Settlement(2, "dead", None, dead_reason="rejected"))
    with engine.transaction():
        engine.change(EntryChange.HOLD, receipts[2].id)
    assert [e.seq for e in read_page(engine, where, None, 10).entries] == found


def test_the_json_of_an_entry_has_the_promised_keys(engine, event):
    (receipt,) = keep(engine, event())
    told = json.loads(msgspec.json.encode(entry_json(engine.get(receipt.id))))
    assert {
        "id", "state", "held", "eventType", "summary", "severity", "scope", "details",
        "occurredAt", "receivedAt", "dueAt", "deliveredAt", "source", "dedupKey", "repeats",
        "attemptCount", "lastOutcome", "lastStatus", "lastError", "deadReason",
    } <= told.keys()  # fmt: skip
    assert told["scope"] == {"clusters": ["a"]}


def test_entries_of_one_millisecond_have_short_ids_of_their_own(engine, event):
    ids = [receipt.id for _ in range(2) for receipt in keep(engine, *(event(),) * 5)]
    listed = read_page(engine, EntryFilter(), None, 20).entries
    shown = {entry.id: entry.short_id for entry in listed}
    for id in ids:
        assert len(shown[id]) >= 13
        assert [other for other in ids if other.startswith(shown[id])] == [id]
        assert engine.get(id).short_id == shown[id]


def test_numbers_in_details_keep_their_text(engine, event):
    (receipt,) = keep(engine, event())
    assert b'"n":1.10' in msgspec.json.encode(entry_json(engine.get(receipt.id)))


# --- pruning ---


def test_pruning_deletes_only_what_was_delivered_long_ago(engine, clock, event, delivered):
    keep(engine, *[event(f"n{i}") for i in range(6)])
    settle(engine, delivered(1), delivered(2), Settlement(3, "dead", None, dead_reason="rejected"))
    clock.advance(100)
    settle(engine, delivered(4))
    with engine.transaction():
        assert engine.prune(0, 2, clock.wall_ms()) == (2, 2)
        assert engine.prune(2, 100, clock.wall_ms()) == (None, 0)
    assert [e.seq for e in read_page(engine, ALL, None, 10).entries] == [6, 5, 4, 3]
    assert engine.counts() == (2, 1, 1, 0)
    assert engine.connection.execute("SELECT count(*) FROM bodies").fetchone() == (4,)


# --- the file ---


def test_counts_are_the_same_after_reopening(engine, path, clock, event, delivered):
    keep(engine, *[event(f"n{i}") for i in range(6)])
    settle(engine, delivered(1), Settlement(2, "dead", None, dead_reason="expired"))
    with engine.transaction():
        engine.change(EntryChange.HOLD, read_page(engine, ALL, None, 1).entries[0].id)
    before = engine.counts()
    engine.close()
    again = SqliteEngine(path, clock)
    assert again.counts() == before == (4, 1, 1, 1)
    again.close()


def test_the_schema_refuses_what_the_code_must_never_do(engine, event):
    keep(engine, event())
    for wrong in (
        "state = 'dead'",
        "state = 'lost'",
        "ended_at = 5",
        "spent = 3",
        "held = 2",
        "severity = 'loud'",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            engine.connection.execute(f"UPDATE entries SET {wrong}")


def test_a_newer_version_s_outbox_is_left_alone(engine, path, clock):
    engine.connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('outboxd', '9999_future', 'now')"
    )
    engine.close()
    with pytest.raises(OutboxUnusable, match="newer version"):
        SqliteEngine(path, clock)


def test_spool_progress_is_kept_until_forgotten(engine, path, clock, event):
    with engine.transaction():
        engine.accept([event()])
        engine.mark_spool(SpoolMark("f1", 3))
        engine.mark_spool(SpoolMark("f2", 1))
        engine.forget_spool(["f2"])
    engine.close()
    again = SqliteEngine(path, clock)
    assert again.spool_progress() == {"f1": 3}
    again.close()


def test_the_file_is_not_for_everyone(engine, path):
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_flipped_bit_in_a_body_is_seen_when_it_is_claimed(engine, event):
    keep(engine, event("sound"), event())
    engine.connection.execute("UPDATE bodies SET body = replace(body, 'release 12', 'release 13')")
    found = engine.fetch(10, (), "mixed", 0.0, HORIZON_S)
    assert ([claimed.seq for claimed in found.entries], found.damaged) == ([1], [2])


def test_a_seq_is_never_given_twice(engine, path, clock, event, delivered):
    (first,) = keep(engine, event(key="k"))
    settle(engine, delivered(1))
    clock.advance(1)
    with engine.transaction():
        engine.prune(0, 10, clock.wall_ms())
    engine.close()
    again = SqliteEngine(path, clock)
    keep(again, event())
    assert keep(again, event(key="k")) == [Receipt(first.id, "duplicate", "delivered")]
    again.close()


def test_a_key_with_a_mark_is_known_until_a_later_mark_comes(engine, event, clock):
    def alert(mark, producer="token:am"):
        item = event("alert", key="alert:f:firing")._replace(producer=producer, dedup_mark=mark)
        (receipt,) = keep(engine, item)
        return receipt

    first = alert(1000)
    assert first.status == "accepted"
    for mark in (1000, 999, 1):  # a resend, and a Prometheus that saw it earlier
        again = alert(mark)
        assert (again.status, again.id) == ("duplicate", first.id)
    later = alert(1001)
    assert later.status == "accepted"
    assert alert(1000).id == later.id
    assert alert(1001).status == "duplicate"
    assert alert(1001, "token:other").status == "accepted"


def test_a_key_with_a_mark_is_remembered_from_its_last_arrival_on(engine, event, clock):
    engine.set_windows(100.0, 0.0)
    item = event("alert", key="a")._replace(dedup_mark=7)
    (first,) = keep(engine, item)
    for _ in range(5):
        clock.advance(80)
        (again,) = keep(engine, item)
        assert (again.status, again.id) == ("duplicate", first.id)
    clock.advance(101)
    assert keep(engine, item)[0].status == "accepted"


def test_two_of_one_alert_in_one_commit_are_one_event(engine, event):
    item = event("alert", key="a")
    receipts = keep(engine, *(item._replace(dedup_mark=mark) for mark in (5, 5, 4, 6, 5)))
    assert [r.status for r in receipts] == [
        *("accepted", "duplicate", "duplicate", "accepted", "duplicate")
    ]


def test_a_hop_is_kept_with_its_entry(engine, event):
    hop = '{"ageMs":4000,"attempts":2}'
    (receipt,) = keep(engine, event("far")._replace(hop=hop))
    assert engine.get(receipt.id).hop == hop
    assert engine.fetch(1, (), "fifo", 0.0, 60.0).entries[0].hop == hop
