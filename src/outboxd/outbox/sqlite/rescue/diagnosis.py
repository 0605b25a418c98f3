"""Whether an outbox's files are what was written: before SQLite opens them, and after.

SQLite changes what it opens (a log that does not fit is thrown away), so the
first look is at the bytes. It must never write, and never call somebody else's
file ours: what shows no trace of an outbox is refused and left alone.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple

from outboxd.errors import OutboxUnusable
from outboxd.outbox.sqlite import schema
from outboxd.outbox.sqlite.connection import SqliteTrouble, classify
from outboxd.outbox.sqlite.rescue import scrub, wal
from outboxd.outbox.sqlite.rescue.pages import (
    MAGIC,
    PAGE_SIZES,
    TABLE_INTERIOR,
    Images,
    stated_page_bytes,
)
from outboxd.outbox.sqlite.rescue.wal import WalCondition, WalLog

# Up to here every page and row is checked at the start: about a second on a
# slow machine. Of larger ones the ends, and the rest by the scrubber.
WHOLE_CHECK_BYTES = 16 * 1024 * 1024
_PART_CHECK_S = 0.3
_WAL_BYTES_READ_MAX = 1 << 30

_OURS = b"head_crc INTEGER NOT NULL"  # of the text of our schema


class Files(NamedTuple):
    """The bytes of an outbox's two files."""

    database: memoryview
    log_bytes: memoryview
    log: WalLog | None

    def images(self) -> Images:
        """All page images, without those of a transaction that was never finished."""
        log = self.log
        if log is not None and log.verdict is not WalCondition.DAMAGED:
            log = log._replace(frames=log.frames[: log.committed])
        return Images(self.database, log)

    def show_an_outbox(self) -> bool:
        """Whether anything in them is an outbox's."""
        return any(_contains(view, _OURS) for view in (self.database, self.log_bytes))


def read_files(path: str, log_path: str) -> Files:
    """Map the two files; a missing one is empty."""
    database, log_bytes = _map(path), _map(log_path)
    log = _read_log(log_bytes[:_WAL_BYTES_READ_MAX], database) if log_bytes.nbytes else None
    return Files(database, log_bytes, log)


def _read_log(log_bytes: memoryview, database: memoryview) -> WalLog:
    """The log; where its own header is damaged the size of its pages is the file's,
    or that by which more of it makes sense."""
    stated = stated_page_bytes(database)
    logs = [wal.read(log_bytes, size) for size in ((stated,) if stated else PAGE_SIZES)]
    return max(logs, key=lambda log: sum(frame.sound for frame in log.frames))


def _map(path: str) -> memoryview:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return memoryview(b"")
    try:
        size = os.fstat(fd).st_size
        if not size:
            return memoryview(b"")
        # The map goes with its last user: no one has to close it.
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
    finally:
        os.close(fd)


def _contains(view: memoryview, needle: bytes) -> bool:
    whole = view.obj
    return whole.find(needle) >= 0 if isinstance(whole, mmap.mmap) else needle in bytes(view)


def before_opening(path: str, was_outbox: bool) -> str:
    """What is damaged, "" for nothing. `was_outbox`: there is other evidence
    that an outbox stood here.

    Raises:
        OutboxUnusable: the file is somebody else's.
        OSError: it cannot be read.
    """
    if os.path.isdir(path):
        return ""  # the opening says what is wrong
    files = read_files(path, path + "-wal")
    if _is_unwritten(files.database):
        return _of_empty(path, files, was_outbox)
    head = files.images().newest(1)
    if bytes(head[:16]) != MAGIC:
        if not files.show_an_outbox():
            raise OutboxUnusable(
                f"{path} is no outbox, and no database at all",
                "set [outbox] path to a file of the agent's own, or move this one away",
            )
        return "the file's header is damaged"
    if _is_foreign(head):
        if files.show_an_outbox():
            return "the file's header is damaged"
        raise OutboxUnusable(
            f"{path} is a database of another program",
            "set [outbox] path to a file of the agent's own",
        )
    fault = header_fault(head)
    if fault:
        return fault
    if files.log is not None and files.log.verdict is WalCondition.DAMAGED:
        return files.log.detail
    return ""


def is_cut_short(path: str) -> bool:
    """Whether there is a file, and no more in it than a start that a power cut ended."""
    database = _map(path)
    return database.nbytes > 0 and _is_unwritten(database)


def _is_unwritten(database: memoryview) -> bool:
    """Whether the file holds nothing: it is empty, or a part of the first page, as a
    power cut leaves it while it is made. That page is synced before there is another,
    and holds no table before there is."""
    if database.nbytes > max(PAGE_SIZES):
        return False
    return not any(database) or _is_part_of_first_page(database)


def _is_part_of_first_page(database: memoryview) -> bool:
    # https://sqlite.org/fileformat.html: the page size stands at 16 (with ours, no whole
    # file is shorter), the number of the first page's cells, one a table, at 103.
    page_bytes = stated_page_bytes(database)
    starts = bytes(database[:16]) == MAGIC and page_bytes > 0
    has_table = any(database[103:105]) or any(database[512:])
    return starts and database.nbytes < page_bytes and not has_table


def _of_empty(path: str, files: Files, was_outbox: bool) -> str:
    # SQLite would throw a log away whose database is empty.
    if files.log is not None and files.log.frames:
        return "the file is missing or empty, but its log is not"
    if was_outbox and os.path.exists(path):
        return "the file was emptied"
    return ""


def is_of_outbox(head: bytes) -> bool:
    """Whether a file that begins with these bytes (72 or more) says that it is an outbox."""
    return head[:16] == MAGIC and _application_id(head) == schema.APPLICATION_ID


def _is_foreign(head: memoryview) -> bool:
    return _application_id(head) != schema.APPLICATION_ID and _has_tables(head)


def _application_id(head: bytes | memoryview) -> int:
    return int.from_bytes(head[68:72], "big")


def _has_tables(head: memoryview) -> bool:
    """Whether the first page lists any: by itself, or on pages beneath it."""
    return int.from_bytes(head[103:105], "big") > 0 or head[100] == TABLE_INTERIOR


def header_fault(head: memoryview) -> str:
    """What is wrong with the first page's header, whose constants we know:
    some of these SQLite answers with errors that look like something else."""
    has_tables = _has_tables(head)
    sound = (
        bytes(head[18:20]) in (b"\1\1", b"\2\2")
        and bytes(head[20:24]) == b"\0\x40\x20\x20"
        and int.from_bytes(head[44:48], "big") in ((4,) if has_tables else (0, 4))
        and int.from_bytes(head[56:60], "big") in ((1,) if has_tables else (0, 1))
        and int.from_bytes(head[60:64], "big") == 0
        and not any(head[72:92])
    )
    return "" if sound else "the file's header is damaged"


# --- after SQLite opened them ----------------------------------------------------


def after_opening(connection: sqlite3.Connection, bytes_on_disk: int) -> str:
    """What is damaged, "" for nothing. Bounded: large outboxes are looked at in part."""
    try:
        fault = schema_fault(connection)
        if fault:
            return fault
        if bytes_on_disk > WHOLE_CHECK_BYTES:
            return _part(connection)
        (answer,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        return _all_rows(connection) if answer == "ok" else str(answer)
    except UnicodeDecodeError as error:
        return str(error)  # SQLite quotes damaged text
    except sqlite3.Error as error:
        # Besides CORRUPT there are the odd words in which SQLite and Python
        # say that a value is none of what can stand there.
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or classify(error) in (SqliteTrouble.DAMAGED, SqliteTrouble.BUG):
            return str(error)
        raise


def of_file(path: str) -> str:
    """As `after_opening`, of a file that our own opening could not open."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        return after_opening(connection, os.stat(path).st_size)
    finally:
        connection.close()


def schema_fault(connection: sqlite3.Connection) -> str:
    """Whether the tables are defined as this version defines them."""
    found = schema.definitions(connection)
    if found == schema.newest_definitions():
        return ""
    # Another version of sqlite-utils may define the table of its own in other words.
    from outboxd.outbox.sqlite.migrations import migrated_definitions

    return "" if found == migrated_definitions() else "the definitions of its tables are damaged"


def _all_rows(connection: sqlite3.Connection) -> str:
    position: scrub.Position | None = scrub.Position()
    while position is not None:
        findings = scrub.step(connection, position, 1000)
        if findings.fault:
            return findings.fault
        if findings.bodies:
            return f"entry {findings.bodies[0][0]}: {findings.bodies[0][1]}"
        position = findings.next
    return ""


def _part(connection: sqlite3.Connection) -> str:
    """The small tables, then the newest and the oldest entries, as time allows.

    A body that is damaged is left to be set aside by itself.
    """
    until = perf_counter() + _PART_CHECK_S
    (newest,) = connection.execute("SELECT max(seq) FROM entries").fetchone()
    starts = (scrub.Position("small"), scrub.Position("entries", max((newest or 0) - 1000, 0)))
    for start in (*starts, scrub.Position()):
        position: scrub.Position | None = start
        while position is not None and position.phase == start.phase:
            findings = scrub.step(connection, position)
            if findings.fault:
                return findings.fault
            position = findings.next
            if perf_counter() > until:
                return ""
    return ""


def was_outbox(path: str) -> bool:
    """Whether an outbox has stood at `path`: the agent laid its ballast beside it."""
    with suppress(OSError):
        return os.stat(path + ".ballast").st_size > 0
    return False
