"""The one connection to the outbox's file, and what SQLite's errors mean.

It must never be opened twice: EXCLUSIVE locking, set before the first access,
keeps the WAL index in memory instead of a `-shm` file (with which a restart on
a full disk died with SIGBUS), stays clear of the WAL-reset corruption that
SQLite had until 3.51.3 with two connections, and keeps a second agent out.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from enum import Enum, auto

from outboxd.disk import has_inodes, room_hint
from outboxd.errors import (
    EX_IOERR,
    EX_NOPERM,
    DiskShort,
    OutboxDamaged,
    OutboxdError,
    OutboxLocked,
    OutboxUnusable,
    SyncFailed,
)
from outboxd.outbox.sqlite import schema

# The page cache bounds the agent's memory whatever the size of the backlog.
CACHE_KIB = 8192
# A busy prepared statement stays compiled: batches come in powers of two.
CACHED_STATEMENTS = 256
INCREMENTAL = 2  # of SQLite's auto_vacuum
# Of a new file; those of earlier versions have 4 KiB. A commit writes whole pages,
# so that with pages half as large an event of 2 KB costs two thirds of the bytes.
PAGE_BYTES = 2048


class SqliteTrouble(Enum):
    """What an error of SQLite means for us."""

    FULL = auto()  # no room: nothing was kept; goes on when there is room
    FATAL = auto()  # the disk failed a write or sync: stop and start afresh
    DAMAGED = auto()  # the file is not what was written: stop, recover at start
    LOCKED = auto()  # another process has it
    BUG = auto()  # ours


def classify(error: sqlite3.Error) -> SqliteTrouble:
    """What an error means, from SQLite's primary result code (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return SqliteTrouble.BUG
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return SqliteTrouble.FULL
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return SqliteTrouble.FATAL
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SqliteTrouble.DAMAGED
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SqliteTrouble.LOCKED
    return SqliteTrouble.BUG


def translate(error: sqlite3.Error | UnicodeDecodeError, path: str) -> OutboxdError:
    """The error in our own words.

    Where SQLite quotes damaged text in its message, Python cannot even read that.
    """
    trouble = SqliteTrouble.DAMAGED if isinstance(error, UnicodeDecodeError) else classify(error)
    name = getattr(error, "sqlite_errorname", "")
    if trouble is SqliteTrouble.FULL:
        return DiskShort(
            f"no room on the disk of {path}: nothing was kept",
            f"{room_hint(path)}; it goes on by itself",
        )
    if trouble is SqliteTrouble.FATAL:
        return SyncFailed(
            f"the disk failed while writing {path}: {error} ({name})",
            "the agent stops and starts afresh; "
            + ("look at the kernel's log for the disk" if has_inodes(path) else room_hint(path)),
        )
    if trouble is SqliteTrouble.DAMAGED:
        return OutboxDamaged(
            f"{path} is damaged: {error} ({name})",
            "start the agent: it sets the file aside and salvages what can be read",
            str(error),
        )
    if trouble is SqliteTrouble.LOCKED:
        return OutboxLocked(f"{path} is open in another process", "stop the other agent first")
    return OutboxdError(f"internal error on {path}: {error} ({name})", "please report it")


def suspect(path: str, why: str) -> None:
    """Remember for the next start that damage was seen while running.

    A courtesy to the next start, which looks for itself too: so no sync, and
    no failure of its own.
    """
    with suppress(OSError), open(path + ".suspect", "w") as file:
        file.write(why)


def unusable(error: OSError, path: str) -> OutboxdError:
    """Why the file cannot be opened or made."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskShort(f"no room on the disk to make {path}", room_hint(path))
    if error.errno == errno.EISDIR:
        return OutboxUnusable(
            f"{path} is a directory", "set [outbox] path to a file, or move the directory away"
        )
    if error.errno == errno.EINVAL:
        told = f"{path} is no outbox: {error.strerror}"
        return OutboxUnusable(told, "set [outbox] path to a file of its own")
    failure = OutboxUnusable(
        f"cannot open {path}: {error.strerror}",
        "the agent's user must be able to read and write it and its directory",
    )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        failure.exit_code = EX_NOPERM
    elif error.errno == errno.EIO:
        failure.exit_code = EX_IOERR
    return failure


def connect(path: str) -> sqlite3.Connection:
    """Open the file with the settings that the promise rests on.

    Writes nothing by itself, but SQLite may recover the WAL at the first read.

    Raises:
        sqlite3.Error: as SQLite says; see `translate`.
        OSError: the file cannot be opened or made.
    """
    # Events may say what is not for everyone; SQLite gives its log the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(
        path,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=CACHED_STATEMENTS,
    )
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if not pages:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        (auto_vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        if auto_vacuum != INCREMENTAL:
            # Of effect only before the first table. Setting it writes to the file
            # even where it is set: a start on a full disk failed by that.
            connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        for pragma in (
            "journal_mode = WAL",
            # Of 1,000 rebuilt power-loss images NORMAL lost acknowledged rows
            # in 77 %, OFF in half, FULL in none. The default depends on the build.
            "synchronous = FULL",
            # Python hides a failed automatic checkpoint: ours is explicit.
            "wal_autocheckpoint = 0",
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",
            # Debian's build overwrites what is deleted, page by page; pruning
            # would write each body once more.
            "secure_delete = FAST",
            "cell_size_check = ON",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        # Take the lock now rather than at the first write.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables to this version's form.

    Raises:
        OutboxUnusable: the file belongs to another program or a newer version.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application_id != schema.APPLICATION_ID:
        raise OutboxUnusable(
            f"{path} is a database of another program",
            "set [outbox] path to a file of the agent's own",
        )
    applied = schema.applied(connection)
    unknown = applied - schema.MIGRATIONS.keys()
    if unknown and not applied >= schema.MIGRATIONS.keys():
        # A newer version has applied ours too: this is a flipped bit in a name.
        raise OutboxDamaged(
            f"{path} is damaged: its list of migrations names {', '.join(sorted(unknown))}",
            "start the agent: it sets the file aside and salvages what can be read",
        )
    if unknown:
        raise OutboxUnusable(
            f"{path} was written by a newer version of outboxd ({', '.join(sorted(unknown))})",
            "install that version again, or set [outbox] path to another file",
        )
    if applied == schema.MIGRATIONS.keys():
        return
    # One transaction: a power cut between two would leave tables of no version.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if tables:
            from outboxd.outbox.sqlite import migrations

            migrations.apply(connection)
        else:
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            schema.create(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
