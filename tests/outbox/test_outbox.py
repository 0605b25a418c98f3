"""The outbox as the event loop sees it: group commit, failures, reads in between."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading

import pytest
from support.waiting import PATIENCE_S

from outboxd.errors import DiskShort, SyncFailed, UnknownId
from outboxd.outbox.model import EntryChange, EntryFilter, SpoolMark
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.ballast import Ballast
from outboxd.outbox.sqlite.engine import SqliteEngine


class Failing(SqliteEngine):
    """An engine whose commits fail as SQLite would, when told."""

    failures: list[tuple[int, str]]
    gate: threading.Event | None = None
    committing: threading.Event | None = None

    def commit(self) -> None:
        if self.committing is not None:
            self.committing.set()
        if self.gate is not None:
            self.gate.wait(PATIENCE_S)
        if self.failures:
            code, name = self.failures.pop(0)
            error = sqlite3.OperationalError(name)
            error.sqlite_errorcode = code
            error.sqlite_errorname = name
            raise error
        super().commit()


FULL = (sqlite3.SQLITE_FULL, "SQLITE_FULL")
FSYNC = (1034, "SQLITE_IOERR_FSYNC")


def run(path, clock, scenario, ballast_bytes=4096):
    async def main():
        engine = Failing(path, clock)
        engine.failures = []
        engine.ballast = Ballast(path, ballast_bytes)
        outbox = await Outbox.start(engine)
        try:
            await scenario(outbox, engine)
        finally:
            engine.failures = []
            await outbox.stop()
            engine.connection.close()  # after a failed sync the agent would end without it

    asyncio.run(main())


def sql(outbox, statement):
    """Ask the database itself, or do damage to it."""
    return outbox.read(lambda engine: engine.connection.execute(statement).fetchall())


def test_all_who_wait_share_the_next_commit(path, clock, event):
    async def scenario(outbox, engine):
        engine.gate = threading.Event()
        commits = []
        outbox.on_commit = lambda duration_s, rows: commits.append(rows)
        first = outbox.accept([event("first")])
        await asyncio.sleep(0)
        others = [outbox.accept([event(f"n{i}")]) for i in range(50)]
        engine.gate.set()
        await asyncio.gather(first, *others)
        assert sum(commits) == 51
        assert len(commits) <= 2
        assert outbox.counts.pending == 51

    run(path, clock, scenario)


def test_a_receipt_comes_only_after_the_commit(path, clock, event):
    async def scenario(outbox, engine):
        engine.gate = threading.Event()
        waiting = outbox.accept([event()])
        await asyncio.sleep(0.05)  # time enough for a writer that would not wait
        assert not waiting.done()
        engine.gate.set()
        (receipt,) = await waiting
        assert receipt.status == "accepted"

    run(path, clock, scenario)


def test_a_full_disk_refuses_intake_and_keeps_nothing(path, clock, event):
    async def scenario(outbox, engine):
        engine.failures = [FULL]
        with pytest.raises(DiskShort):
            await outbox.accept([event()])
        assert outbox.counts.pending == 0
        assert (await outbox.accept([event()]))[0].status == "accepted"

    run(path, clock, scenario)


def test_outcomes_are_written_with_the_ballasts_room(path, clock, event, delivered):
    async def scenario(outbox, engine):
        await outbox.accept([event()])
        assert engine.ballast.lay(0)
        engine.failures = [FULL]
        await outbox.exchange([delivered(1)], ())
        assert outbox.counts.delivered == 1
        assert not engine.ballast.present()

    run(path, clock, scenario)


def test_without_ballast_the_outcomes_stay_with_the_sender(path, clock, event, delivered):
    async def scenario(outbox, engine):
        await outbox.accept([event()])
        engine.failures = [FULL]
        with pytest.raises(DiskShort):
            await outbox.exchange([delivered(1)], ())
        assert outbox.counts == (1, 0, 0, 0)
        await outbox.exchange([delivered(1)], ())
        assert outbox.counts == (0, 1, 0, 0)

    run(path, clock, scenario)


def test_a_failed_sync_is_never_tried_again(path, clock, event):
    async def scenario(outbox, engine):
        heard = []
        outbox.on_fatal = heard.append
        engine.failures = [FSYNC]
        with pytest.raises(SyncFailed):
            await outbox.accept([event()])
        with pytest.raises(SyncFailed):
            await outbox.accept([event()])
        assert len(heard) == 1
        assert heard[0].exit_code == 74
        assert outbox.counts.pending == 0

    run(path, clock, scenario)


def test_one_bad_operation_does_not_take_the_others_with_it(path, clock, event):
    async def scenario(outbox, engine):
        engine.gate = threading.Event()
        first = outbox.accept([event("first")])
        await asyncio.sleep(0)
        good = outbox.accept([event("good")])
        bad = asyncio.ensure_future(
            outbox.change(lambda engine: engine.change(EntryChange.RETRY, "no such id"))
        )
        await asyncio.sleep(0)
        engine.gate.set()
        assert (await first)[0].status == "accepted"
        assert (await good)[0].status == "accepted"
        with pytest.raises(UnknownId):
            await bad
        assert outbox.counts.pending == 2

    run(path, clock, scenario)


def test_a_damaged_body_is_set_aside_and_told_and_not_sent(path, clock, event):
    async def scenario(outbox, engine):
        told = []
        outbox.on_damage = lambda seq, detail: told.append(seq)
        await outbox.accept([event("a"), event("b")])
        await outbox.read(
            lambda engine: engine.connection.execute("UPDATE bodies SET body = '{}' WHERE seq = 1")
        )
        found, *_ = await outbox.fetch(
            10, exclude=(), order="mixed", fresh_share=0, due_horizon_s=300
        )
        assert [claimed.seq for claimed in found] == [2]
        assert told == [1]
        assert outbox.damage.lost == 1
        assert outbox.counts.pending == 1
        kept = await outbox.read(
            lambda engine: engine.connection.execute("SELECT seq, raw FROM damaged").fetchall()
        )
        assert kept == [(1, b"{}")]

    run(path, clock, scenario)


def test_a_missing_body_is_damage_too(path, clock, event):
    async def scenario(outbox, engine):
        await outbox.accept([event("a")])
        await sql(outbox, "DELETE FROM bodies")
        found, *_ = await outbox.fetch(
            10, exclude=(), order="mixed", fresh_share=0, due_horizon_s=300
        )
        assert found == []
        assert outbox.damage.lost == 1

    run(path, clock, scenario)


def test_spool_progress_is_committed_with_the_events_and_forgotten(path, clock, event):
    async def scenario(outbox, engine):
        await outbox.accept([event()], SpoolMark("file", 1))
        assert engine.spool_progress() == {"file": 1}
        await outbox.forget_spool(["file"])
        assert engine.spool_progress() == {}

    run(path, clock, scenario)


def test_a_listing_and_commits_go_on_together(path, clock, event):
    async def scenario(outbox, engine):
        await outbox.accept([event(f"n{i}") for i in range(500)])
        page, _ = await asyncio.gather(
            outbox.page(EntryFilter(q="n7"), None, 1000),
            outbox.accept([event("while listing")]),
        )
        assert len(page.entries) == 11

    run(path, clock, scenario)


def test_the_log_is_emptied_into_the_file_at_the_end(path, clock, event):
    async def scenario(outbox, engine):
        await outbox.accept([event()])
        assert outbox.sizes().log > 0

    run(path, clock, scenario)
    assert not os.path.exists(path + "-wal") or os.path.getsize(path + "-wal") == 0


def test_the_ballast_has_its_size_and_gives_it_back(tmp_path):
    ballast = Ballast(str(tmp_path / "o.db"), 65536)
    assert not ballast.present()
    assert ballast.lay(0)
    assert os.path.getsize(ballast.path) == 65536
    assert ballast.present()
    assert ballast.release()
    assert not ballast.release()


def test_no_ballast_is_laid_where_room_is_short(tmp_path):
    ballast = Ballast(str(tmp_path / "o.db"), 65536)
    assert not ballast.lay(1 << 60)


# --- claimed as they come in --------------------------------------------------


def offer(outbox, count=2, sending=()):
    return outbox.claim_next(count, sending, exclude=sending, order="mixed", due_horizon_s=300)


def in_flight(engine):
    row = engine.connection.execute("SELECT value FROM meta WHERE key = 'sending'").fetchone()
    return [] if row is None else json.loads(row[0])


def test_what_comes_in_is_claimed_by_the_commit_that_accepts_it(path, clock, event):
    async def scenario(outbox, engine):
        heard = []
        outbox.on_arrival = lambda has_claimed: heard.append(has_claimed)
        commits = []
        outbox.on_commit = lambda duration_s, rows: commits.append(rows)
        await outbox.accept([event("in flight")])
        claim = offer(outbox, sending=[1])
        await outbox.accept([event("b"), event("c"), event("d")])
        claimed = await outbox.take_claimed(claim)
        assert len(claimed) == 2
        assert {entry.seq for entry in claimed} < {2, 3, 4}
        assert in_flight(engine) == [1, *(entry.seq for entry in claimed)]
        assert (heard, len(commits)) == ([False, True], 2)
        # It was for once.
        await outbox.accept([event("e")])
        assert len(in_flight(engine)) == 3
        assert heard[2:] == [False]

    run(path, clock, scenario)


def test_an_offer_that_is_taken_back_claims_nothing(path, clock, event):
    async def scenario(outbox, engine):
        claim = offer(outbox)
        assert await outbox.take_claimed(claim) == []
        await outbox.accept([event("a")])
        assert in_flight(engine) == []

    run(path, clock, scenario)


def test_an_offer_that_is_taken_back_too_late_is_waited_for(path, clock, event):
    async def scenario(outbox, engine):
        claim = offer(outbox)
        engine.gate, engine.committing = threading.Event(), threading.Event()
        accepted = outbox.accept([event("a")])
        await asyncio.to_thread(engine.committing.wait, PATIENCE_S)
        taking = asyncio.create_task(outbox.take_claimed(claim))
        await asyncio.sleep(0)
        assert not taking.done()
        engine.gate.set()
        await accepted
        assert [entry.seq for entry in await taking] == [1]

    run(path, clock, scenario)


def test_a_full_disk_claims_nothing_and_costs_no_ballast(path, clock, event):
    async def scenario(outbox, engine):
        assert engine.ballast.lay(0)
        claim = offer(outbox)
        engine.failures = [FULL]
        with pytest.raises(DiskShort):
            await outbox.accept([event("a")])
        with pytest.raises(DiskShort):
            await outbox.take_claimed(claim)
        assert in_flight(engine) == []
        assert engine.ballast.present()
        assert outbox.counts.pending == 0

    run(path, clock, scenario)


def test_after_a_damaged_body_the_sender_is_told_to_look_again(path, clock, event):
    async def scenario(outbox, engine):
        await outbox.accept([event("a"), event("b")])
        await outbox.change(
            lambda engine: engine.connection.execute(
                "UPDATE bodies SET body = replace(body, 'a', 'b') WHERE seq = 1"
            )
        )
        heard = []
        outbox.on_arrival = lambda has_claimed: heard.append(has_claimed)
        found = await outbox.fetch(2, exclude=(), order="mixed", fresh_share=0.0, due_horizon_s=300)
        assert [entry.seq for entry in found.entries] == [2]
        assert heard == [False]

    run(path, clock, scenario)
