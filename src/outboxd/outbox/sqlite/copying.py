"""Copies of an outbox: one made while it is in use, and how one that was put back is known.

After a checkpoint the file alone is the whole outbox, and only a checkpoint
changes it. So a copy is: empty the log, let it grow while the file is read, and
go on. Nobody waits for it, and nothing but the reader's disk has to hold it.

A file says of itself whether its log belongs to it (`running`, set by an agent
and taken back when it closes). A file that says so and has none was copied
without it: what stood in the log is lost, and that must be told. A copy that was
made here is marked with its time instead. Of either, what is pending may have
been delivered since: it is sent as a possible duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from outboxd.errors import DiskShort, OutboxUnusable
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue import diagnosis
from outboxd.outbox.sqlite.rows import get_meta, set_meta
from outboxd.times import rfc3339


async def copied(outbox: Outbox, engine: SqliteEngine) -> tuple[int, AsyncIterator[bytes]]:
    """How large a consistent copy of an outbox in use is, in bytes, and its parts.

    Raises:
        DiskShort: there is no room to empty the log.
    """
    copy = await outbox.read(lambda _: engine.begin_copy())

    async def parts() -> AsyncIterator[bytes]:
        try:
            offset = 0
            while offset < copy.size_bytes:
                chunk = await asyncio.to_thread(copy.read, offset)
                offset += len(chunk)
                yield chunk
        finally:
            engine.end_copy(copy)

    return copy.size_bytes, parts()


def seal(path: str) -> int:
    """Make of a copied file an outbox that knows what it is, and look whether it is
    whole; how many entries it has.

    Raises:
        OutboxUnusable: it is not.
    """
    engine = SqliteEngine(path)
    try:
        fault = diagnosis.after_opening(engine.connection, engine.sizes().stored)
        if fault:
            raise OutboxUnusable(f"the copy {path} is not whole: {fault}", "try again")
        with engine.transaction():
            set_meta(engine.connection, "copied_at", str(engine.clock.wall_ms()))
            set_meta(engine.connection, "running", None)
        counts = engine.counts()
    finally:
        engine.close()
    return counts.pending + counts.delivered + counts.dead


def what_was_put_back(engine: SqliteEngine, had_log: bool) -> str:
    """Whether this file is a copy, in words; "" for none. `had_log`: its log stood
    beside it before it was opened."""
    copied_at = get_meta(engine.connection, "copied_at")
    if copied_at is not None:
        return (
            f"a backup of {rfc3339(int(copied_at))} was put back: what was delivered since then"
            " is delivered again, as a possible duplicate"
        )
    if get_meta(engine.connection, "running") is not None and not had_log:
        return (
            f"{engine.path} was put there without its log ({engine.path}-wal): what the log held"
            " is missing, and what was delivered may be delivered again, as a possible duplicate"
        )
    return ""


def take_over(engine: SqliteEngine, was_put_back: bool) -> None:
    """The agent has the file from here on. A full disk does not keep it from starting."""
    with suppress(DiskShort), engine.transaction():
        if was_put_back:
            engine.doubt_pending()
        set_meta(engine.connection, "copied_at", None)
        set_meta(engine.connection, "running", "1")
