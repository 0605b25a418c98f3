"""A listing: what a filter finds, in slices that hold nobody up and pages that fit."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from outboxd.clock import FakeClock
from outboxd.outbox import listing
from outboxd.outbox.engine import Engine
from outboxd.outbox.filters import read_filter
from outboxd.outbox.listing import Listing, read_page
from outboxd.outbox.mentions import Text, mentions
from outboxd.outbox.model import Attempt, EntryChange, EntryFilter, Incoming, Settlement
from outboxd.outbox.sqlite import listing as sql
from outboxd.outbox.sqlite.engine import SqliteEngine


def item(number: int, **more) -> Incoming:
    body = {"eventType": "backup", "summary": f"run {number}", **more.pop("body", {})}
    fields = {"source": "socket", "received_at": int(time.time() * 1000), **more}
    return Incoming(json.dumps(body).encode(), "backup", "information", "", **fields)


@pytest.fixture
def engine(tmp_path):
    engine = SqliteEngine(str(tmp_path / "outbox.db"))
    yield engine
    engine.close()


def accept(engine: Engine, *items: Incoming) -> list[str]:
    with engine.transaction():
        return [receipt.id for receipt in engine.accept(items)]


def settle(engine: Engine, *settlements: Settlement) -> None:
    with engine.transaction():
        engine.settle(settlements)


def found(engine: Engine, **query: str) -> list[int]:
    where = read_filter(list(query.items()))
    return [entry.seq for entry in read_page(engine, where, None, 100).entries]


def stocked(engine: Engine) -> list[str]:
    ids = accept(
        engine,
        item(1, dedup_key="nightly-backup", producer="uid:0"),
        item(2, source="spool", producer="token:web"),
        item(3, body={"details": {"colour": "teal", "deep": [{"n": 12345}]}}),
        item(4),
        item(5),
    )
    settle(
        engine,
        Settlement(
            4, "dead", Attempt(1, 1, "rejected", 422, "no such Field"), dead_reason="rejected"
        ),
        Settlement(5, "pending", Attempt(1, 1, "unavailable", 503, "upstream"), due_at=9),
    )
    return ids


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({"reason": "rejected"}, [4]),
        ({"status": "422"}, [4]),
        ({"notStatus": "422"}, [5, 3, 2, 1]),
        ({"source": "spool"}, [2]),
        ({"notSource": "socket"}, [2]),
        ({"producer": "token:web"}, [2]),
        ({"notProducer": "uid:0"}, [5, 4, 3, 2]),
        ({"notReason": "rejected"}, [5, 3, 2, 1]),
        ({"key": "nightly-backup"}, [1]),
        ({"error": "SUCH field"}, [4]),
        ({"q": "nightly"}, [1]),
        ({"q": "422"}, [4]),
        ({"q": "upstream"}, [5]),
        ({"q": "12345"}, [3]),
        ({"q": "teal"}, [3]),
        ({"q": "colour"}, []),
        ({"q": "eventtype"}, []),
        ({"state": "pending"}, [5, 3, 2, 1]),
        ({"notState": "dead", "notSource": "spool"}, [5, 3, 1]),
        ({"notCluster": "prod"}, [5, 4, 3, 2, 1]),
    ],
)
def test_each_filter_finds_what_it_names(engine, query, seqs) -> None:
    stocked(engine)
    assert found(engine, **query) == seqs


def test_an_id_is_found_by_its_beginning_and_by_a_search(engine) -> None:
    ids = stocked(engine)
    entries = {entry.id: entry for entry in read_page(engine, EntryFilter(), None, 10).entries}
    for seq, id in enumerate(ids, start=1):
        short = entries[id].short_id
        assert id.startswith(short)
        assert found(engine, id=short) == [seq]
        assert found(engine, id=id) == [seq]
        assert found(engine, q=id) == [seq]
        assert engine.get(id).short_id == short


def test_pending_entries_are_listed_in_order_whatever_they_wait_for(engine) -> None:
    ids = stocked(engine)
    with engine.transaction():
        engine.change(EntryChange.HOLD, ids[1])
    pages, cursor = [], None
    while True:
        page = read_page(engine, EntryFilter(states=("pending",)), cursor, 1)
        pages += [entry.seq for entry in page.entries]
        cursor = page.next
        if cursor is None:
            break
    assert pages == [5, 3, 2, 1]
    assert found(engine, state="pending", held="false") == [5, 3, 1]
    assert found(engine, state="pending", held="true") == [2]


def test_a_page_ends_after_a_megabyte_and_the_next_goes_on(engine) -> None:
    big = {"details": {"x": "y" * 256 * 1024}}
    accept(engine, *(item(n, body=big) for n in range(20)))
    seen, cursor = [], None
    while True:
        page = read_page(engine, EntryFilter(), cursor, 1000)
        assert sum(len(e.body) for e in page.entries) <= listing.PAGE_BYTES_MAX
        assert page.entries
        seen += [entry.seq for entry in page.entries]
        cursor = page.next
        if cursor is None:
            break
    assert seen == list(range(20, 0, -1))


def test_a_single_event_that_is_larger_than_a_page_is_a_page(engine) -> None:
    accept(engine, item(1), item(2, body={"details": {"x": "y" * 2 * 1024 * 1024}}), item(3))
    page = read_page(engine, EntryFilter(), "3", 10)
    assert [entry.seq for entry in page.entries] == [2]
    assert [e.seq for e in read_page(engine, EntryFilter(), page.next, 10).entries] == [1]


class Steps:
    """Rows that each slice of a listing looked at, counted by SQLite's own progress."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def of(self, **query: str) -> list[int]:
        listing = Listing(read_filter(list(query.items())), None, 100)
        ticks, slices, done = [0], [], False
        connection = self.engine.connection

        def tick() -> int:
            ticks[0] += 1
            return 0

        connection.set_progress_handler(tick, 100)
        while not done:
            ticks[0] = 0
            done = listing.step(self.engine)
            slices.append(ticks[0])
        connection.set_progress_handler(None, 0)
        return slices


@pytest.mark.parametrize("query", [{"state": "pending"}, {"state": "dead"}, {"held": "true"},
                                   {"reason": "expired"}, {"id": "ffffffff"},
                                   {"since": "2999-01-01T00:00:00Z"}])  # fmt: skip
def test_what_an_index_knows_does_not_read_the_whole_table(engine, query) -> None:
    accept(engine, *(item(n) for n in range(5000)))
    settle(
        engine,
        *(
            Settlement(seq, "delivered", Attempt(1, 1, "delivered", 201, None))
            for seq in range(1, 5001)
        ),
    )
    everything = sum(Steps(engine).of(type="none such"))
    assert sum(Steps(engine).of(**query)) < everything / 4


def test_a_time_from_which_on_holds_where_the_clock_was_set_back(tmp_path) -> None:
    clock = FakeClock(int(time.time() * 1000))
    engine = SqliteEngine(str(tmp_path / "outbox.db"), clock)
    now = clock.wall_ms()
    accept(engine, *(item(n, received_at=now) for n in range(600)))
    accept(engine, *(item(n, received_at=now - 86_400_000) for n in range(600)))
    where = EntryFilter(since=now - 1000)
    seqs, cursor = [], None
    while True:
        page = read_page(engine, where, cursor, 500)
        seqs += [entry.seq for entry in page.entries]
        cursor = page.next
        if cursor is None:
            break
    assert seqs == list(range(600, 0, -1))
    engine.close()


def test_a_slice_ends_when_its_time_is_over_however_large_the_bodies_are(
    engine, monkeypatch
) -> None:
    accept(engine, *(item(n, body={"details": {"x": "y" * 100_000}}) for n in range(40)))
    looks = 0
    now = 0.0

    def clock() -> float:  # each look at a body takes two milliseconds
        nonlocal now
        now += 0.002
        return now

    monkeypatch.setattr(sql, "perf_counter", clock)
    search = Listing(EntryFilter(q="nowhere"), None, 10)
    while not search.step(engine):
        looks += 1
    assert looks >= 40 / 3


@pytest.mark.parametrize(
    ("body", "needle", "is_there"),
    [
        ('{"summary": "Gr\\u00fcn"}', "grün", True),
        ('{"summary": "say \\"hi\\""}', 'say "hi"', True),
        ('{"details": {"n": 12345678901234567890.10}}', "67890.10", True),
        ('{"details": {"ok": true, "no": null}}', "true", True),
        ('{"details": {"ok": true, "no": null}}', "null", False),
        ('{"details": {"needle": 1}}', "needle", False),
        ('{"details": {"a": {"b": ["deep needle"]}}}', "needle", True),
        ('{"scope": {"clusters": ["prod-eu"]}}', "prod-eu", True),
        ('{"scope": {"clusters": ["prod-eu"]}}', "clusters", False),
    ],
)
def test_a_text_is_looked_for_where_a_reader_sees_it(body, needle, is_there) -> None:
    assert mentions(Text("id", None, "[]", body), needle) is is_there


def test_a_large_listing_holds_one_page_at_a_time(engine) -> None:
    accept(engine, *(item(n, body={"details": {"x": "y" * 200_000}}) for n in range(60)))
    tracemalloc.start()
    read_page(engine, EntryFilter(), None, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * listing.PAGE_BYTES_MAX
