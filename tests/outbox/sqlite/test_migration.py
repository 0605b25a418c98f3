"""Files of earlier versions: opened, carried on, and salvaged like those of this one."""

from __future__ import annotations

import pytest
from sqlite_utils import Database

from outboxd.errors import OutboxUnusable
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import Attempt, EntryFilter, Settlement
from outboxd.outbox.sqlite import schema
from outboxd.outbox.sqlite.connection import suspect
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.migrations import migrated_definitions, migrations
from outboxd.outbox.sqlite.opening import open_outbox
from outboxd.outbox.sqlite.rescue import diagnosis, scrub


@pytest.fixture
def old_file(path, clock, event):
    """An outbox as the first version left it: 300 entries without a producer or a hop."""
    engine = SqliteEngine(path, clock)
    with engine.transaction():
        engine.accept([event(f"n{n}", key=f"k{n}") for n in range(300)])
    with engine.transaction():
        attempt = Attempt(5, 5, "delivered", 201, None)
        engine.settle([Settlement(seq, "delivered", attempt) for seq in range(1, 100)])
    for table, column in (("dedup", "mark"), ("entries", "hop"), ("entries", "producer")):
        engine.connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    engine.connection.execute("DELETE FROM _sqlite_migrations WHERE name > '0002'")
    # Its definitions stand there with the comments that they had then.
    engine.connection.execute("PRAGMA writable_schema = ON")
    for now, then in (
        ("see changes.py for the keys there are", "see store.py for the keys there are"),
        ("see accepting.py", "'k:' the producer's key, 'r:' a body's hash"),
    ):
        done = engine.connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE instr(sql, ?)",
            (now, then, now),
        )
        assert done.rowcount == 1
    engine.connection.execute("PRAGMA writable_schema = RESET")
    engine.close()
    return path


def by_producer(engine):
    found = {}
    for entry in read_page(engine, EntryFilter(), None, 1000).entries:
        found[entry.producer] = found.get(entry.producer, 0) + 1
    return found


def test_an_old_file_is_carried_on(old_file, clock, event):
    opened = open_outbox(old_file, clock)
    assert opened.recovery is None
    engine = opened.engine
    assert (engine.counts(), engine.waiting()) == ((201, 99, 0, 0), {"": 201})
    with engine.transaction():
        receipts = engine.accept([event("new", key="k7")._replace(producer="uid:1")])
        engine.accept([event("newer")._replace(producer="uid:1")])
        engine.settle([Settlement(150, "delivered", Attempt(5, 5, "delivered", 201, None))])
    assert receipts[0].status == "duplicate", "its keys are remembered"
    assert by_producer(engine) == {"": 300, "uid:1": 1}
    position = scrub.Position()
    while position is not None:
        findings = scrub.step(engine.connection, position)
        assert (findings.fault, findings.bodies) == ("", [])
        position = findings.next
    opened.close()
    again = open_outbox(old_file, clock)
    assert again.recovery is None
    again.close()


def test_rows_of_both_versions_are_salvaged(old_file, clock, event):
    opened = open_outbox(old_file, clock)
    with opened.engine.transaction():
        opened.engine.accept([event(f"m{n}")._replace(producer="uid:1") for n in range(50)])
    before = opened.engine.counts()
    opened.close()
    suspect(old_file, "a test wants it salvaged")
    again = open_outbox(old_file, clock)
    assert again.recovery is not None
    assert (again.recovery.salvaged, again.recovery.lost) == (350, 0)
    assert again.engine.counts() == before
    assert by_producer(again.engine) == {"": 300, "uid:1": 50}
    again.close()


def test_a_version_that_does_not_know_the_newest_migration_leaves_the_file_alone(path, clock):
    SqliteEngine(path, clock).close()
    engine = SqliteEngine(path, clock)
    engine.connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('outboxd', '0099_later', '2030')"
    )
    engine.close()
    with pytest.raises(OutboxUnusable, match="0099_later"):
        SqliteEngine(path, clock)


def test_a_new_file_has_the_tables_that_the_migrations_make():
    assert schema.newest_definitions() == migrated_definitions()


def test_a_file_whose_migrations_are_noted_in_other_words_is_judged_by_the_library(
    path, clock, monkeypatch
):
    SqliteEngine(path, clock).close()
    table, index = schema.BOOKKEEPING
    monkeypatch.setattr(schema, "BOOKKEEPING", (table.replace("TEXT", "VARCHAR"), index))
    assert diagnosis.of_file(path) == ""
    monkeypatch.setattr("outboxd.outbox.sqlite.migrations.migrated_definitions", set)
    assert "definitions" in diagnosis.of_file(path)


def test_a_new_file_counts_as_migrated(path, clock):
    engine = SqliteEngine(path, clock)
    assert migrations.pending(Database(engine.connection)) == []
    engine.close()
