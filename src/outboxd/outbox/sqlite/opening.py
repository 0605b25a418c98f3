"""How an outbox is opened: directory, lock, recovery, migration, in that order.

The agent opens with `open_outbox`, commands with `open_offline` while no agent
runs. Nothing is deleted here; what is damaged is set aside (see recovery).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import perf_counter
from typing import NamedTuple

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from outboxd.clock import Clock
from outboxd.disk import sync_directory
from outboxd.errors import DiskShort, OutboxDamaged, OutboxdError, OutboxLocked, Unavailable
from outboxd.files import check_replaceable
from outboxd.outbox.moving import refuse_moved
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite import copying
from outboxd.outbox.sqlite.connection import translate, unusable
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.lock import OutboxLock
from outboxd.outbox.sqlite.owner import as_owner
from outboxd.outbox.sqlite.rescue import diagnosis, recovery
from outboxd.outbox.sqlite.rescue.recovery import Recovery, Rescue
from outboxd.outbox.sqlite.upkeep import FileUpkeep
from outboxd.outbox.upkeep import UpkeepJob

# How long another's lock is waited for: a command is done by then, an agent is not.
BUSY_WAIT_S = 1.0


class Opened(NamedTuple):
    """An open outbox and the lock that goes with it.

    `recovery` says what was damaged, if anything was; `rescues` what of it is
    still to be salvaged while the agent works (`recovery.in_background`).
    """

    engine: SqliteEngine
    lock: OutboxLock
    recovery: Recovery | None = None
    rescues: Sequence[Rescue] = ()
    put_back: str = ""  # what kind of copy the file was, in words; "" for none

    def copied(self, outbox: Outbox) -> Awaitable[tuple[int, AsyncIterator[bytes]]]:
        """The size of a consistent copy, in bytes, and its parts; raises DiskShort."""
        return copying.copied(outbox, self.engine)

    def jobs(self, outbox: Outbox) -> list[UpkeepJob]:
        """The upkeep of the file while an agent runs."""
        return FileUpkeep(outbox, self.engine).jobs()

    async def salvage(self, outbox: Outbox) -> tuple[int, int]:
        """Bring the rest of `rescues` into the outbox; how many were salvaged and lost."""
        return await recovery.in_background(outbox, self.engine, self.rescues)

    @property
    def has_rescues(self) -> bool:
        """Whether there is something to `salvage`."""
        return bool(self.rescues)

    async def start(self) -> Outbox:
        """The outbox, with its writer running."""
        return await Outbox.start(self.engine)

    def release(self) -> None:
        """Let the lock go, once the outbox has stopped."""
        self.lock.release()

    def close(self) -> None:
        """Close the file, then let the lock go."""
        self.engine.close()
        self.lock.release()


def open_outbox(
    path: str,
    clock: Clock | None = None,
    key_window_s: float = 7 * 86400,
    repeat_window_s: float = 0,
) -> Opened:
    """Open for the agent, making directory and file as needed, and recovering
    from damage.

    Raises:
        OutboxLocked: another process has it.
        OutboxUnusable: what stands at `path` cannot be an outbox.
    """
    # SQLite keeps its log beside the file itself, not beside a link to it.
    path = os.path.realpath(path)
    make_directory(os.path.dirname(path))
    _check_kind(path)
    lock = _lock(path)
    try:
        clock = clock or Clock()
        engine = partial(SqliteEngine, path, clock, key_window_s, repeat_window_s)
        opened = _open(path, lock, engine, clock)
        try:
            refuse_moved(opened.engine)
        except BaseException:
            opened.engine.close()
            raise
        return opened
    except OSError as error:
        lock.release()
        raise unusable(error, path) from error
    except BaseException:
        lock.release()
        raise


def _open(
    path: str, lock: OutboxLock, make_engine: Callable[[], SqliteEngine], clock: Clock
) -> Opened:
    began_s = perf_counter()
    had_log = os.path.exists(path + "-wal")
    asides = recovery.resume_moving(path)
    fault = recovery.suspicion(path)
    fault = fault or diagnosis.before_opening(path, diagnosis.was_outbox(path))
    engine = None
    if not fault:
        _begin_again(path)
        engine, fault = _checked(path, make_engine)
    if fault:
        # Renamed while open: SQLite's own tidying at the close then finds no
        # log to throw away.
        asides = recovery.set_aside(path, fault, clock.wall_ms())
        if engine is not None:
            engine.connection.close()
        engine = None
    engine = engine or make_engine()
    try:
        put_back = copying.what_was_put_back(engine, had_log)
        _empty_log(engine)
        copying.take_over(engine, bool(put_back))
        _empty_log(engine)  # whoever copies the file alone copies the mark, too
        if not asides:
            return Opened(engine, lock, put_back=put_back)
        report, left = recovery.start(engine, asides, began_s)
    except BaseException:
        engine.connection.close()
        raise
    return Opened(engine, lock, report, left)


def _begin_again(path: str) -> None:
    """A power cut while the file was made can leave a part of its first page, or zeros.
    There is nothing in it to lose, and SQLite would not take it."""
    if os.path.isfile(path) and diagnosis.is_cut_short(path):
        os.truncate(path, 0)


def _empty_log(engine: SqliteEngine) -> None:
    """What a crash left behind the last commit must not stand between what is
    written from now on: it would look like damage at the next start."""
    with suppress(DiskShort):
        engine.checkpoint()


def _checked(path: str, make_engine: Callable[[], SqliteEngine]) -> tuple[SqliteEngine | None, str]:
    """Open, and look whether what came up is whole."""
    try:
        engine = make_engine()
    except OutboxDamaged as error:
        return None, error.message
    except OutboxdError as error:
        if type(error) is not OutboxdError or not isinstance(error.__cause__, sqlite3.Error):
            raise
        # SQLite complains of our own statements: a bug, or a table's definition
        # that is no longer what it was.
        fault = diagnosis.of_file(path)
        if not fault:
            raise
        return None, fault
    try:
        return engine, diagnosis.after_opening(engine.connection, engine.sizes().stored)
    except sqlite3.Error as error:
        engine.connection.close()
        raise translate(error, path) from error


def _check_kind(path: str) -> None:
    """Before anything is made beside it: a FIFO would be waited for without end, and beside
    a device is no place for a lock. Raises OutboxUnusable."""
    try:
        check_replaceable(path)
    except OSError as error:
        raise unusable(error, path) from error


def _lock(path: str) -> OutboxLock:
    """The lock. A command has it for a moment only, so that is waited for.

    Raises:
        OutboxLocked, OutboxUnusable, DiskShort
    """
    retrying = Retrying(
        retry=retry_if_exception_type(OutboxLocked),
        stop=stop_after_delay(BUSY_WAIT_S),
        wait=wait_random(0.01, 0.05),
        reraise=True,
    )
    return retrying(OutboxLock, path)


@contextmanager
def open_offline(path: str) -> Iterator[SqliteEngine]:
    """Open an existing outbox for one command, while no agent runs.

    What is damaged is left as it is: to set aside and salvage is the agent's. While
    it is open root is the owner of its directory.

    Raises:
        NotPermitted: somebody has put a link in its place.
        OutboxLocked: an agent has it; ask that one over its socket.
        Unavailable: there is no outbox at `path`.
        OutboxUnusable: what stands there cannot be opened.
        OutboxDamaged: the agent must salvage it first.
    """
    with as_owner(path), _offline(os.path.realpath(path)) as engine:
        refuse_moved(engine)
        yield engine


@contextmanager
def open_to_leave(path: str) -> Iterator[SqliteEngine]:
    """Open for a move to another outbox; as `open_offline`, but for one that has a
    part in a move. What may have been delivered since it was copied is doubtful."""
    with as_owner(path), _offline(os.path.realpath(path)) as engine:
        if engine.put_back:
            with engine.transaction():
                engine.doubt_pending()
        yield engine


@contextmanager
def open_to_fill(path: str) -> Iterator[SqliteEngine]:
    """Open for a move into this one, making it as needed; raises as `open_offline`."""
    make_directory(os.path.dirname(os.path.realpath(path)))
    with as_owner(path):
        path = os.path.realpath(path)
        if not os.path.exists(path):
            lock = _lock(path)
            try:
                SqliteEngine(path).close()
            finally:
                lock.release()
        with _offline(path) as engine:
            yield engine


@contextmanager
def _offline(path: str) -> Iterator[SqliteEngine]:
    if not os.path.exists(path) and not os.path.exists(path + ".recovery"):
        raise Unavailable(
            f"there is no outbox at {path}, and no agent answers",
            "start the agent, or name its configuration with -c FILE",
        )
    _check_kind(path)
    lock = _lock(path)
    try:
        fault = "a recovery is not finished" if recovery.read_note(path) else ""
        fault = fault or recovery.suspicion(path)
        fault = fault or diagnosis.before_opening(path, diagnosis.was_outbox(path))
        if fault:
            raise OutboxDamaged(
                f"{path} is damaged: {fault}",
                "start the agent: it sets the file aside and salvages what can be read",
            )
        had_log = os.path.exists(path + "-wal")
        engine = SqliteEngine(path)
        engine.put_back = copying.what_was_put_back(engine, had_log)
        try:
            yield engine
        finally:
            engine.close()
    except OSError as error:
        raise unusable(error, path) from error
    finally:
        lock.release()


def make_directory(path: str) -> None:
    """Make a directory and its parents, and sync each one's parent, so that it
    is still there after a power cut.

    Raises:
        OutboxUnusable: it cannot be made.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o750)
        sync_directory(parent)
    except OSError as error:
        raise unusable(error, path) from error
