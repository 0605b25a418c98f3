"""How an outbox is opened: directory, lock, recovery, migration, in that order.

The agent opens with `open_outbox`, commands with `open_offline` while no agent
runs. Nothing is deleted here; what is damaged is set aside (see recovery).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.errors import OutboxUnusable, Unavailable
from outboxd.outbox.engine import Engine
from outboxd.outbox.lock import OutboxLock


class Opened(NamedTuple):
    """An open outbox and the lock that goes with it."""

    engine: Engine
    lock: OutboxLock

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
    """Open for the agent, making directory and file as needed.

    Raises:
        OutboxLocked: another process has it.
        OutboxUnusable: what stands at `path` cannot be an outbox.
    """
    make_directory(os.path.dirname(os.path.abspath(path)))
    lock = OutboxLock(path)
    try:
        engine = Engine(path, clock, key_window_s, repeat_window_s)
    except BaseException:
        lock.release()
        raise
    return Opened(engine, lock)


@contextmanager
def open_offline(path: str) -> Iterator[Engine]:
    """Open an existing outbox for one command, while no agent runs.

    Raises:
        OutboxLocked: an agent has it; ask that one over its socket.
        Unavailable: there is no outbox at `path`.
        OutboxUnusable: what stands there cannot be opened.
    """
    if not os.path.exists(path):
        raise Unavailable(
            f"there is no outbox at {path}, and no agent answers",
            "start the agent, or name its configuration with -c FILE",
        )
    opened = open_outbox(path)
    try:
        yield opened.engine
    finally:
        opened.close()


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
        raise OutboxUnusable(
            f"cannot make the directory {path}: {error.strerror}",
            "make it, writable for the agent's user, or set [outbox] path",
        ) from error


def sync_directory(path: str) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
