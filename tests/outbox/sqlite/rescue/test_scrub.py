"""The look through the open outbox finds what SQLite's own check does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from outboxd.errors import OutboxDamaged
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import EntryChange, SpoolMark
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue import recovery, scrub
from outboxd.outbox.sqlite.rescue.scrub import Position, Scrubber


def look(engine: SqliteEngine, rows: int = 3) -> tuple[list[str], list[int]]:
    """A whole pass: faults, and entries with damaged bodies."""
    position: Position | None = Position()
    faults, bodies = [], []
    while position is not None:
        findings = scrub.step(engine.connection, position, rows)
        if findings.fault:
            faults.append(findings.fault)
        bodies += [seq for seq, _ in findings.bodies]
        position = findings.next
    return faults, bodies


@pytest.fixture
def filled(engine: SqliteEngine, event) -> SqliteEngine:
    with engine.transaction():
        engine.accept([event(f"number {n}", key=f"key {n}") for n in range(10)])
        engine.mark_spool(SpoolMark("file", 4))
        engine.set_sending([1])
        engine.change(EntryChange.HOLD, read_page(engine, _all(), None, 1).entries[0].id)
    return engine


def _all():
    from outboxd.outbox.model import EntryFilter

    return EntryFilter()


def test_a_sound_outbox_has_nothing_to_show(filled: SqliteEngine):
    assert look(filled) == ([], [])


def test_entries_that_wait_for_their_backoff_are_in_the_index_too(filled: SqliteEngine):
    filled.connection.execute("BEGIN")
    filled.change(EntryChange.RETRY, read_page(filled, _all(), None, 10).entries[3].id)
    filled.connection.execute("COMMIT")
    assert look(filled) == ([], [])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE entries SET event_type = 'deplox' WHERE seq = 4", "what it is failed"),
        ("UPDATE entries SET attempt_count = 2 WHERE seq = 4", "its state failed"),
        ("UPDATE entries SET state_crc = state_crc + 1 WHERE seq = 4", "its state failed"),
        ("UPDATE entries SET id = CAST(x'ff' AS TEXT) WHERE seq = 4", "no UTF-8"),
        ("DELETE FROM entries WHERE seq = 4", "a body but no entry 4"),
        ("UPDATE dedup SET seq = 9 WHERE key = 'k:key 3'", "dedup window"),
        ("UPDATE meta SET value = '[2]'", "a setting"),
        ("UPDATE spool_progress SET lines_done = 5", "spool file's progress"),
    ],
)
def test_a_changed_value_is_found(filled: SqliteEngine, change: str, found: str):
    filled.connection.execute(change)
    faults, bodies = look(filled)
    assert bodies == []
    assert len(faults) == 1
    assert found in faults[0]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE bodies SET body = replace(body, 'number 3', 'number 8') WHERE seq = 4",
        "UPDATE bodies SET body = CAST(x'ff' AS TEXT) WHERE seq = 4",
        "UPDATE bodies SET crc = 0 WHERE seq = 4",
        "DELETE FROM bodies WHERE seq = 4",
    ],
)
def test_a_damaged_or_missing_body_is_found(filled: SqliteEngine, change: str):
    filled.connection.execute(change)
    assert look(filled) == ([], [4])


@pytest.mark.parametrize("index", ["entries_due", "entries_id"])
def test_an_entry_that_its_index_does_not_know_is_found(filled: SqliteEngine, index: str):
    db = filled.connection
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
    # As if a page of the index had gone: the index is made while the entry is away.
    db.execute("CREATE TEMP TABLE away AS SELECT * FROM entries WHERE seq = 4")
    db.execute("DELETE FROM entries WHERE seq = 4")
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET sql = NULL WHERE 0")
    db.execute(f"DROP INDEX {index}")
    narrower = sql + (" AND seq != 4" if " WHERE " in sql else " WHERE seq != 4")
    db.execute(narrower)
    db.execute("INSERT INTO entries SELECT * FROM away")
    db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, index))
    path = filled.path
    filled.close()
    again = SqliteEngine(path)
    faults, _ = look(again, 100)
    again.close()
    assert len(faults) == 1
    assert "index" in faults[0]


async def test_a_damaged_body_is_set_aside_and_counted_while_the_agent_goes_on(
    filled: SqliteEngine,
):
    filled.connection.execute("UPDATE bodies SET crc = 0 WHERE seq = 4")
    outbox = await Outbox.start(filled)
    told: list[int] = []
    outbox.on_damage = lambda seq, detail: told.append(seq)
    scrubber = Scrubber(outbox, filled)
    while not scrubber.passes:
        await scrubber.step()
    assert told == [4]
    assert outbox.damage == (0, 1)
    assert outbox.counts.pending == 9
    await outbox.stop()


def test_what_only_a_salvage_can_mend_ends_the_agent_and_is_remembered(filled: SqliteEngine):
    filled.connection.execute("UPDATE entries SET attempt_count = 2 WHERE seq = 4")

    async def main() -> None:
        outbox = await Outbox.start(filled)
        told: list[object] = []
        outbox.on_fatal = told.append
        with pytest.raises(OutboxDamaged, match="its state failed"):
            await Scrubber(outbox, filled).step()
        assert told == [outbox.fatal]
        await outbox.stop()

    asyncio.run(main())
    assert recovery.suspicion(filled.path) == "entry 4: its state failed its checksum"
    assert Path(filled.path + ".suspect").exists()
