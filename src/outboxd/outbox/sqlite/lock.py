"""Only one process on an outbox: a lock file that names its holder.

The lock is the kernel's (flock), so it goes with the process however that
ends; the file stays and means nothing by itself. SQLite's own exclusive lock
stands behind it, for whoever opens the database by other means.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from outboxd.errors import OutboxLocked
from outboxd.outbox.sqlite.connection import unusable


class OutboxLock:
    """The lock on one outbox, held until `release` or the end of the process."""

    def __init__(self, outbox_path: str) -> None:
        """Take the lock.

        Raises:
            OutboxLocked: another process has it; `pid` says which.
            OutboxUnusable, DiskShort: the lock file cannot be opened.
        """
        path = outbox_path + ".lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unusable(error, path) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _pid(os.pread(self._fd, 32, 0))
            os.close(self._fd)
            who = f"process {holder}" if holder else "another process"
            raise OutboxLocked(
                f"the outbox {outbox_path} is in use by {who}",
                "one agent an outbox: stop that one, or set another [outbox] path",
                pid=holder,
            ) from None
        self._leave_to_owner(outbox_path)
        # A full disk must not keep the agent from starting: the name of the
        # holder is a courtesy, the lock is what counts.
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _leave_to_owner(self, outbox_path: str) -> None:
        """What root makes while no agent runs, the agent must be able to open
        later. (SQLite does the same with its log.)"""
        if os.geteuid() != 0:
            return
        with suppress(OSError):
            try:
                owner = os.stat(outbox_path)
            except FileNotFoundError:
                owner = os.stat(os.path.dirname(outbox_path) or ".")
            os.fchown(self._fd, owner.st_uid, owner.st_gid)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)


def _pid(content: bytes) -> int | None:
    text = content.strip()
    return int(text) if text.isdigit() else None
