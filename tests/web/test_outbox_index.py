"""The index follows the outbox through everything that may happen to an entry."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from support.waiting import PATIENCE_S

from outboxd.clock import FakeClock
from outboxd.outbox.engine import SearchLimits
from outboxd.outbox.mentions import Texts
from outboxd.outbox.model import Attempt, EntryChange, EntryFilter, Incoming, Settlement
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite import query
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.web import outbox_index, searches
from outboxd.web.outbox_index import OutboxIndex
from outboxd.web.pace import IDLE_SLICE_S, SLICE_S
from outboxd.web.tally import BLOCK_ROWS

NOW = 1_750_000_000_000


def item(number: int) -> Incoming:
    event_type = ("backup", "deploy")[number % 2]
    body = b'{"eventType": "%s", "summary": "run %d"}' % (event_type.encode(), number)
    return Incoming(body, event_type, "information", "", "socket", NOW + number)


def changed(outbox, change, id):
    return outbox.change(lambda engine: engine.change(change, id))


@asynccontextmanager
async def opened(path: str):
    clock = FakeClock(NOW)
    outbox = await Outbox.start(SqliteEngine(path, clock))
    index = OutboxIndex(outbox, clock)
    yield outbox, index, clock
    await index.close()
    await outbox.stop()


async def states(index: OutboxIndex, clock: FakeClock) -> dict[str, int]:
    clock.advance(60)
    assert await index.catch_up(PATIENCE_S)
    facets = await index.tally.facets(EntryFilter())
    counted = dict(facets.values["state"])
    return {**counted, "held": dict(facets.values["held"]).get("true", 0)}


def settlement(seq: int, kind: str):
    attempt = Attempt(NOW, 5, kind, 201, None)
    return Settlement(
        seq, kind if kind != "rejected" else "dead", attempt,
        dead_reason="rejected" if kind == "rejected" else None,
    )  # fmt: skip


Step = Callable[[Outbox, list[str]], Awaitable[object]]

STEPS: list[tuple[str, Step, dict[str, int]]] = [
    (
        "deliveries, old and new",
        lambda outbox, ids: outbox.exchange(
            [settlement(seq, "delivered") for seq in (1, 2, 3, len(ids) - 1, len(ids))], ()
        ),
        {"pending": -5, "delivered": 5},
    ),
    (
        "a death",
        lambda outbox, ids: outbox.exchange([settlement(10, "rejected")], ()),
        {"pending": -1, "dead": 1},
    ),
    (
        "a retry of the dead one",
        lambda outbox, ids: changed(outbox, EntryChange.RETRY, ids[9]),
        {"pending": 1, "dead": -1},
    ),
    ("a hold", lambda outbox, ids: changed(outbox, EntryChange.HOLD, ids[20]), {"held": 1}),
    ("a release", lambda outbox, ids: changed(outbox, EntryChange.RELEASE, ids[20]), {"held": -1}),
    ("a drop", lambda outbox, ids: changed(outbox, EntryChange.DROP, ids[30]), {"pending": -1}),
    (
        "a prune of what was delivered",
        lambda outbox, ids: outbox.change(lambda engine: engine.prune(0, 10**6, 2**60)),
        {"delivered": -5},
    ),
    ("more arrivals", lambda outbox, ids: outbox.accept([item(1), item(2)]), {"pending": 2}),
]


def test_every_change_of_an_entry_reaches_the_counts(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            receipts = await outbox.accept([item(n) for n in range(3 * BLOCK_ROWS)])
            ids = [receipt.id for receipt in receipts]
            before = await states(index, clock)
            assert before == {"pending": len(ids), "held": 0}
            for name, step, change in STEPS:
                await step(outbox, ids)
                after = await states(index, clock)
                moved = {
                    state: after.get(state, 0) - before.get(state, 0)
                    for state in after.keys() | before.keys()
                }
                assert {state: by for state, by in moved.items() if by} == change, name
                counts = outbox.counts
                assert sum(after.values()) - after["held"] == sum(counts) - counts.held, name
                before = after

    asyncio.run(main())


def test_what_an_operator_did_is_known_at_once(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            receipts = await outbox.accept([item(n) for n in range(9)])
            await outbox.exchange([settlement(seq, "rejected") for seq in (1, 2, 3)], ())
            assert (await states(index, clock))["dead"] == 3
            await changed(outbox, EntryChange.RETRY, receipts[0].id)
            assert await index.catch_up(PATIENCE_S)  # at the same moment of the clock
            facets = await index.tally.facets(EntryFilter())
            assert dict(facets.values["state"])["dead"] == 2

    asyncio.run(main())


def test_only_the_blocks_that_changed_are_read_again(tmp_path, monkeypatch) -> None:
    read: list[int] = []
    put = outbox_index.Tally.put

    def noted(self, number, rows):
        read.append(number)
        put(self, number, rows)

    monkeypatch.setattr(outbox_index.Tally, "put", noted)

    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(4 * BLOCK_ROWS)])
            await states(index, clock)
            assert sorted(read) == [0, 1, 2, 3, 4]
            read.clear()
            await outbox.exchange([settlement(BLOCK_ROWS + 5, "delivered")], ())
            await states(index, clock)
            assert sorted(read) == [1, 4], "the one that changed, and the one that grows"

    asyncio.run(main())


def test_a_first_answer_comes_at_once_and_grows(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, _):
            await outbox.accept([item(n) for n in range(6 * BLOCK_ROWS)])
            assert not await index.catch_up(0)
            while not await index.catch_up(0.01):
                pass
            assert len(index.tally) == 6 * BLOCK_ROWS

    asyncio.run(main())


def test_a_text_is_found_in_old_bodies_and_in_new_ones(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(2500)])
            await states(index, clock)

            async def matched(text: str) -> int:
                where = EntryFilter(q=text)
                while not (scan := await index.find_texts(Texts.of(where), 0.05)).is_done:
                    pass
                return (await index.tally.facets(where, scan.places)).matched

            assert await matched("RUN 12") == 111, "12, 120 to 129, 1200 to 1299"
            await outbox.accept([item(12)])
            await states(index, clock)
            assert await matched("RUN 12") == 112

    asyncio.run(main())


def test_every_look_is_at_a_small_part_so_that_the_writer_can_go_on(tmp_path) -> None:
    entries = 8 * BLOCK_ROWS

    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(entries)])
            seen: list[int] = []
            read = outbox.read

            async def noted(look):
                def inner(engine):
                    answer = look(engine)
                    seen.append(len(answer) if isinstance(answer, list) else 0)
                    return answer

                return await read(inner)

            outbox.read = noted
            assert await index.catch_up(PATIENCE_S)
            clock.advance(60)
            assert await index.catch_up(PATIENCE_S)
            assert max(seen) <= BLOCK_ROWS + 1
            assert sum(seen) > entries

    asyncio.run(main())


@pytest.mark.parametrize(("slice_s", "most"), [(IDLE_SLICE_S, 256), (SLICE_S, 128)])
def test_beside_traffic_half_as_much_is_read_at_once(
    tmp_path, monkeypatch, slice_s: float, most: int
) -> None:
    monkeypatch.setattr(outbox_index.Pace, "slice_s", slice_s)
    monkeypatch.setattr(query, "SLICE_S", 3600.0)  # a busy machine reads even less
    read: list[int] = []
    index_rows = SqliteEngine.index_rows

    def noted(engine, seqs):
        rows = index_rows(engine, seqs)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(SqliteEngine, "index_rows", noted)

    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, _):
            await outbox.accept([item(n) for n in range(3 * BLOCK_ROWS)])
            assert await index.catch_up(PATIENCE_S)
            assert len(index.tally) == 3 * BLOCK_ROWS
            assert max(read) == most

    asyncio.run(main())


def test_what_fails_after_it_was_looked_at_is_found_by_its_error(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(50)])
            await states(index, clock)
            where = EntryFilter(q="no such field")
            scan = await index.find_texts(Texts.of(where), PATIENCE_S)
            assert scan.below(1 << 40, 10) == []
            attempt = Attempt(NOW, 5, "rejected", 422, "no such field")
            await outbox.exchange([Settlement(7, "dead", attempt, dead_reason="rejected")], ())
            await states(index, clock)
            scan = await index.find_texts(Texts.of(where), PATIENCE_S)
            assert scan.below(1 << 40, 10) == [7]

    asyncio.run(main())


def test_a_search_that_nobody_asks_for_any_more_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(SqliteEngine, "search_limits", SearchLimits(rows_max=64, look_s=0.0))

    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(3000)])
            texts = Texts.of(EntryFilter(q="nowhere"))
            scan = await index.find_texts(texts, 0.1)
            assert not scan.is_done
            clock.advance(searches.WANTED_S + 1)
            running = index._searches._running
            assert running is not None
            async with asyncio.timeout(PATIENCE_S):
                await running
            assert not scan.is_done

    asyncio.run(main())


def test_what_nobody_looks_at_is_let_go(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(10)])
            await states(index, clock)
            index.let_go()
            assert len(index.tally) == 0
            assert (await states(index, clock))["pending"] == 10

    asyncio.run(main())


def test_what_was_let_go_is_gone_without_the_collector(tmp_path) -> None:
    """Which leaves alone what the agent's start has made, the first index among it."""

    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(10)])
            await states(index, clock)
            kept = [weakref.ref(index.tally), weakref.ref(index.tally._groups)]
            gc.disable()
            try:
                index.let_go()
                assert [each() for each in kept] == [None, None]
            finally:
                gc.enable()

    asyncio.run(main())


def test_what_nobody_looks_at_is_read_no_further(tmp_path) -> None:
    async def main() -> None:
        async with opened(str(tmp_path / "outbox.db")) as (outbox, index, clock):
            await outbox.accept([item(n) for n in range(5_000)])
            assert not await index.catch_up(0)
            index.let_go()
            await asyncio.sleep(0.05)
            assert len(index.tally) == 0
            assert (await states(index, clock))["pending"] == 5_000

    asyncio.run(main())
