"""The outbox's tables, and how a file gets from one version to the next.

Definitions alone; nothing here reads or writes an entry, or loads sqlite-utils. The rules that the
code keeps stand here a second time as CHECK constraints, so that a bug meets
the database before it meets a customer.

Why the body has a table of its own: settling an entry rewrites the page that
its row is on. Without bodies some 25 rows share a page, so that settling costs
a fraction of the bytes, and a listing reads a fraction of the pages.

Why the checks say OR and not IN: for a list of three and more SQLite 3.40 fills
a temporary b-tree at every row, which took a third of the time of an insert.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import NamedTuple

# Stands in the file's header, so that somebody else's database is not taken
# for an outbox: "outb" in ASCII.
APPLICATION_ID = 0x6F757462

_COMMENT = re.compile(r"--[^\n]*")  # none of the texts has these signs within quotes

ENTRIES = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,            -- order of receipt
    id TEXT NOT NULL,                   -- UUIDv7, the receipt's id
    state TEXT NOT NULL CHECK (
        state = 'pending' OR state = 'delivered' OR state = 'dead'),
    held INTEGER NOT NULL CHECK (held IN (0, 1)),
    due_at INTEGER NOT NULL,            -- the earliest next claim; 0: at once
    received_at INTEGER NOT NULL,
    occurred_at INTEGER,                -- as the producer gave it
    expires_at INTEGER,
    ended_at INTEGER,                   -- delivered or died
    event_type TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (
        severity = 'information' OR severity = 'warning' OR severity = 'error'),
    scope TEXT NOT NULL,                -- JSON as sent, '' for none
    source TEXT NOT NULL CHECK (
        source = 'socket' OR source = 'batch' OR source = 'spool' OR source = 'agent'),
    dedup_key TEXT,
    repeats INTEGER NOT NULL CHECK (repeats >= 0),
    last_occurred_at INTEGER,
    attempt_count INTEGER NOT NULL CHECK (attempt_count >= 0),
    spent INTEGER NOT NULL CHECK (spent BETWEEN 0 AND attempt_count),
    possible_duplicate INTEGER NOT NULL CHECK (possible_duplicate IN (0, 1)),
    dead_reason TEXT CHECK (
        dead_reason = 'rejected' OR dead_reason = 'exhausted' OR dead_reason = 'expired'),
    attempts TEXT NOT NULL,             -- JSON [[at, duration_ms, outcome, status, error]...]
    head_crc INTEGER NOT NULL,          -- CRC-32 of what never changes, see checksums.py
    state_crc INTEGER NOT NULL,         -- CRC-32 of what a settlement changes
    CHECK ((state = 'dead') = (dead_reason IS NOT NULL)),
    CHECK ((state = 'pending') = (ended_at IS NULL))
)
"""

INDEXES = (
    "CREATE UNIQUE INDEX entries_id ON entries (id)",
    # What can be claimed. Most entries are due at once (0), so that a clock
    # that jumps moves none of them.
    "CREATE INDEX entries_due ON entries (due_at, seq) WHERE state = 'pending' AND held = 0",
    "CREATE INDEX entries_held ON entries (seq) WHERE held = 1",
    "CREATE INDEX entries_dead ON entries (seq) WHERE state = 'dead'",
    "CREATE INDEX entries_expiring ON entries (expires_at)"
    " WHERE state = 'pending' AND expires_at IS NOT NULL",
)

BODIES = """
CREATE TABLE bodies (
    seq INTEGER PRIMARY KEY,            -- its entry's
    body TEXT NOT NULL,                 -- the wire body, without stamps
    crc INTEGER NOT NULL                -- CRC-32 of seq and body
)
"""

DEDUP = """
CREATE TABLE dedup (
    key TEXT PRIMARY KEY,               -- see accepting.py
    seq INTEGER NOT NULL,               -- the first event's entry
    id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,        -- the end of the dedup window
    crc INTEGER NOT NULL
) WITHOUT ROWID
"""

SPOOL_PROGRESS = """
CREATE TABLE spool_progress (
    file_key TEXT PRIMARY KEY,          -- a spool file whose unlink is not yet certain
    lines_done INTEGER NOT NULL CHECK (lines_done >= 0),
    crc INTEGER NOT NULL
) WITHOUT ROWID
"""

META = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,               -- see changes.py for the keys there are
    value TEXT NOT NULL,
    crc INTEGER NOT NULL
) WITHOUT ROWID
"""

DAMAGED = """
CREATE TABLE damaged (                  -- rows that failed their checksum, kept for a person to see
    seq INTEGER,
    found_at INTEGER NOT NULL,
    detail TEXT NOT NULL,
    raw BLOB
)
"""


# By whom an event was handed in. Rows from before do not say, and cost nothing to
# have the column.
PRODUCER = "ALTER TABLE entries ADD COLUMN producer TEXT NOT NULL DEFAULT ''"


# The way of an event through other agents, NULL for none; and up to when a dedup
# key's event counts as the same one, 0 for always.
HOPS = (
    "ALTER TABLE entries ADD COLUMN hop TEXT",
    "ALTER TABLE dedup ADD COLUMN mark INTEGER NOT NULL DEFAULT 0",
)

# What each version of the file adds, oldest first. A new file has them all at once
# (`create`); one of an earlier version gets what it lacks by `migrations`.
MIGRATIONS: dict[str, tuple[str, ...]] = {
    "0001_entries": (
        ENTRIES,
        *INDEXES,
        BODIES,
        DEDUP,
        "CREATE INDEX dedup_expiring ON dedup (expires_at)",
        SPOOL_PROGRESS,
        META,
        DAMAGED,
    ),
    "0002_producer": (PRODUCER,),
    "0003_hops": HOPS,
}

# Where sqlite-utils 4 writes which migrations a file has had, as it defines it.
MIGRATION_SET = "outboxd"
BOOKKEEPING = (
    """CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
)""",
    """CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name")""",
)


class Definition(NamedTuple):
    """One table or index as SQLite lists it, but for comments and white space."""

    type: str
    name: str
    sql: str


def applied(connection: sqlite3.Connection) -> set[str]:
    """The names of the migrations that the file has had; none where it has no tables."""
    tables = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '_sqlite_migrations'"
    if connection.execute(tables).fetchone() is None:
        return set()
    names = "SELECT name FROM _sqlite_migrations WHERE migration_set = ?"
    return {name for (name,) in connection.execute(names, (MIGRATION_SET,))}


def definitions(connection: sqlite3.Connection) -> set[Definition]:
    """The tables and indexes that the file has, but for those of SQLite's own ANALYZE.

    SQLite keeps each text with its comments, as the version wrote it that made the
    table. They may have other words today, and mean nothing.
    """
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"
    return {
        Definition(kind, name, " ".join(_COMMENT.sub("", sql or "").split()))
        for kind, name, sql in connection.execute(query)
    }


def create(connection: sqlite3.Connection) -> None:
    """Make all tables in a file that has none, as if every migration had been applied."""
    for statements in (BOOKKEEPING, *MIGRATIONS.values()):
        for statement in statements:
            connection.execute(statement)
    note = (
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES (?, ?, strftime('%Y-%m-%d %H:%M:%S+00:00', 'now'))"
    )
    connection.executemany(note, [(MIGRATION_SET, name) for name in MIGRATIONS])


def newest_definitions() -> set[Definition]:
    """The tables and indexes of a file that has had all migrations."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        create(fresh)
        return definitions(fresh)
