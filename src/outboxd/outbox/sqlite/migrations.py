"""Bringing an older file's tables to this version's form, by the migrations of sqlite-utils.

It must only be imported where a migration is to run: sqlite-utils brings a command
line's libraries, some 4 MiB that an agent whose file is new, or of this version, never
needs.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from outboxd.outbox.sqlite.schema import MIGRATION_SET, MIGRATIONS, Definition, definitions

migrations = Migrations(MIGRATION_SET)


def _register(name: str, statements: tuple[str, ...]) -> None:
    @migrations(name=name)
    def migrate(db: Database) -> None:
        for statement in statements:
            db.execute(statement)


for _name, _statements in MIGRATIONS.items():
    _register(_name, _statements)


def apply(connection: sqlite3.Connection) -> None:
    """Apply what the file has not had; within the caller's transaction."""
    migrations.apply(Database(connection))


def migrated_definitions() -> set[Definition]:
    """The tables and indexes of a fresh file, as this version of sqlite-utils makes it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        apply(fresh)
        return definitions(fresh)
