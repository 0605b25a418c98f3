"""The page's index over an outbox that other gateways change as well."""

from __future__ import annotations

import threading

import pytest
from support.moves import incoming
from support.waiting import PATIENCE_S

from outboxd.outbox.model import Attempt, EntryChange, EntryFilter, Settlement
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.postgresql import listing
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.web import outbox_index
from outboxd.web.outbox_index import OutboxIndex

DONE = Attempt(1, 1, "delivered", 201, None)


@pytest.fixture
def other(url, clock):
    engine = PostgresEngine(url, clock, gateway="other")
    yield engine
    engine.close()


class Look:
    """What the page of one gateway shows."""

    def __init__(self, url, clock):
        self._url, self._clock = url, clock

    async def __aenter__(self):
        engine = PostgresEngine(self._url, self._clock, gateway="shows")
        self._outbox = await Outbox.start(engine, reading=engine.beside("reader"))
        self._index = OutboxIndex(self._outbox, self._clock)
        return self

    async def __aexit__(self, *_):
        await self._index.close()
        await self._outbox.stop()

    async def states(self, after_s: float = 1.0) -> dict[str, int]:
        """A second later."""
        self._clock.advance(after_s)
        await self._outbox.read(lambda engine: engine.look_around())
        self._outbox.take_counts()
        while not await self._index.catch_up(30):
            pass
        facets = await self._index.tally.facets(EntryFilter())
        return dict(facets.values["state"])


async def test_what_other_gateways_take_and_change_is_shown_a_second_later(url, clock, other):
    async with Look(url, clock) as look:
        with other.transaction():
            receipts = other.accept([incoming(f"{n}", 1) for n in range(600)])
        assert await look.states() == {"pending": 600}
        entry = other.get(receipts[300].id)
        with other.transaction():
            other.settle([Settlement(entry.seq, "dead", DONE, dead_reason="rejected")])
            other.settle([Settlement(entry.seq + 1, "delivered", DONE)])
        assert await look.states() == {"pending": 598, "dead": 1, "delivered": 1}
        with other.transaction():
            other.change(EntryChange.RETRY, entry.id)
            other.change(EntryChange.DROP, receipts[5].id)
        assert await look.states() == {"pending": 598, "delivered": 1}


@pytest.mark.parametrize("looks_again", [True, False], ids=["looks", "does not, the control"])
async def test_an_entry_that_got_its_number_early_and_was_committed_late_is_shown(
    url, clock, other, monkeypatch, looks_again
):
    """Delivered before anybody looked, it changes no sum of what waits."""
    if not looks_again:
        monkeypatch.setattr(outbox_index, "FILLS_UP_S", -1.0)
    late = PostgresEngine(url, clock, gateway="late")
    has_number, may_commit = threading.Event(), threading.Event()

    def accept_late():
        with late.transaction():
            late.accept([incoming("late", 1)])
            has_number.set()
            assert may_commit.wait(PATIENCE_S)

    def deliver_all():
        with other.transaction():
            other.settle([Settlement(seq, "delivered", DONE) for seq in other.seq_range()])

    with other.transaction():
        other.accept([incoming(f"before {n}", 1) for n in range(300)])
    thread = threading.Thread(target=accept_late)
    thread.start()
    try:
        assert has_number.wait(PATIENCE_S)
        with other.transaction():
            other.accept([incoming(f"{n}", 1) for n in range(700)])
        async with Look(url, clock) as look:
            deliver_all()
            assert await look.states() == {"delivered": 1000}
            may_commit.set()
            thread.join(PATIENCE_S)
            deliver_all()
            shown = {"delivered": 1001 if looks_again else 1000}
            assert await look.states() == shown
    finally:
        may_commit.set()
        thread.join(PATIENCE_S)
        late.close()


async def test_very_many_that_wait_are_added_up_in_parts(url, clock, other, monkeypatch):
    monkeypatch.setattr(listing, "_UNSETTLED_ROWS", 64)
    async with Look(url, clock) as look:
        with other.transaction():
            other.accept([incoming(f"{n}", 1) for n in range(1000)])
            for seq in other.seq_range()[:200]:
                other.settle([Settlement(seq, "pending", DONE, due_at=5 + seq % 3)])
        assert await look.states() == {"pending": 1000}
        with other.transaction():
            other.settle([Settlement(other.seq_range()[130], "delivered", DONE)])
        assert await look.states() == {"pending": 999, "delivered": 1}
        assert await look.states() == {"pending": 999, "delivered": 1}
