"""Directories of test servers, which a killed test run does not leave behind for good.

Whoever makes one first removes those whose maker is gone, with the server that may still
run there. A maker holds a lock on a file of its directory: the kernel lets go of it
however the maker ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "outboxd-pg-"
_OWNER = "owner"  # the locked file
_GONE_S = 10.0


def memory() -> Path:
    """Where files are in memory: a sync need not last, but it must be asked for."""
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())


@contextmanager
def server_home(within: Path | None = None) -> Iterator[Path]:
    """A directory for servers, removed in the end; `within` another than memory's."""
    within = within or memory()
    sweep(within)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=within) as name:
        directory = Path(name)
        with open(directory / ".new", "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            # Under its name only once it is locked: nobody takes it for one that was left.
            os.rename(directory / ".new", directory / _OWNER)
            yield directory


def sweep(within: Path) -> None:
    """Remove what killed runs have left there, and end the servers in it."""
    for directory in within.glob(f"{PREFIX}*"):
        # Passed over: one that is just being made, and one whose owner lives.
        with suppress(OSError), open(directory / _OWNER) as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for pid_file in directory.rglob("postmaster.pid"):
                _end_server(pid_file)
            shutil.rmtree(directory, ignore_errors=True)


def _end_server(pid_file: Path) -> None:
    """That server and no other process that has its number by now: a server's working
    directory is its data."""
    with suppress(OSError, ValueError, IndexError):
        pid = int(pid_file.read_text().split()[0])
        ends_s = time.monotonic() + _GONE_S
        while Path(f"/proc/{pid}/cwd").resolve() == pid_file.parent.resolve():
            os.kill(pid, signal.SIGQUIT if time.monotonic() < ends_s else signal.SIGKILL)
            time.sleep(0.05)
