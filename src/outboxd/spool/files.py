"""The spool's directories and files: every system call on them is here.

Whoever may write into the spool is a stranger: nothing is opened but relative
to the directory, following no link and waiting for nothing, and nothing but a
regular file with one name is read. Blocking; called on the spool's own threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import stat
from collections.abc import Container, Sequence
from enum import StrEnum
from typing import NamedTuple

from outboxd.disk import room_hint
from outboxd.errors import EX_IOERR, ConfigError, DiskShort, OutboxdError
from outboxd.spool.turns import find, share

FILE_BYTES_MAX = 1 << 30
# Read ahead of the outbox, at most; then whoever has handed in meanwhile has a turn.
CHUNK_BYTES_MAX = 1024 * 1024
READ_BYTES = 256 * 1024

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LookResult(StrEnum):
    """What a look at a name found."""

    READ = "read"  # a small file, read whole
    LARGE = "large"  # a file to be read in portions
    OPEN = "open"  # someone still writes to it
    LINKED = "linked"  # more than one name: may be a delivery by link() in progress
    CHANGING = "changing"  # it changed while it was read
    UNREADABLE = "unreadable"  # no permission
    REFUSED = "refused"  # never to be read
    TROUBLE = "trouble"  # the system could not, at the moment
    GONE = "gone"


class FileIdentity(NamedTuple):
    """Which file stood under a name, and in what state."""

    device: int
    inode: int
    size_bytes: int
    changed_ns: int  # mtime
    owner: int


class Look(NamedTuple):
    """A name of `new/`, looked at."""

    name: str
    verdict: LookResult
    identity: FileIdentity | None = None
    data: bytes = b""
    key: str = ""  # of the spool's progress; only with READ
    reason: str = ""
    # Whether the system told that nobody writes to it; of another user's file it may not.
    settled: bool = False


def lock_spool(path: str) -> int | None:
    """A lock on the directory that goes with the process: two agents would each
    make an event of the same file. None where the file system has no locks.

    Raises:
        ConfigError: another agent reads it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"[intake] spool = {path!r}: another agent reads it",
            "stop that one, or give this agent a spool of its own",
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class SpoolFolder:
    """`tmp/`, `new/` and `rejected/`, held open."""

    def __init__(self, path: str) -> None:
        """Make what is missing. Raises ConfigError."""
        self.path = path
        try:
            _make(path, 0o755)
            # Open to the agent's group: producers of other users join it, or
            # the administrator makes the directories beforehand.
            _make(os.path.join(path, "tmp"), 0o770)
            _make(os.path.join(path, "new"), 0o770)
            _make(os.path.join(path, "rejected"), 0o750)
            self.new = os.open(os.path.join(path, "new"), _DIRECTORY)
            try:
                self.rejected = os.open(os.path.join(path, "rejected"), _DIRECTORY)
            except OSError:
                os.close(self.new)
                raise
        except OSError as error:
            raise _unusable(path, error) from error
        if os.fstat(self.new).st_dev != os.fstat(self.rejected).st_dev:
            self.close()
            raise ConfigError(
                f"[intake] spool = {path!r}: new/ and rejected/ are on different file systems",
                "keep tmp/, new/ and rejected/ on one",
            )

    def close(self) -> None:
        """Let go of the directories."""
        for descriptor in (self.new, self.rejected):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def is_current(self) -> bool:
        """Whether the directories by these names are still the ones held open."""
        try:
            for name, descriptor in (("new", self.new), ("rejected", self.rejected)):
                there, held = os.stat(os.path.join(self.path, name)), os.fstat(descriptor)
                if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
                    return False
        except OSError:
            return False
        return True

    def owned(self, skipped: Container[str]) -> tuple[dict[int, list[str]], bool]:
        """What is in `new/`, by the owners' uids, sorted; and whether that is all there is."""
        found: dict[int, list[str]] = {}
        count = 0
        with os.scandir(self.new) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in skipped:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    owner = entry.stat(follow_symlinks=False).st_uid
                    find(found, owner, entry.name)
                    count += 1
        shared = share(found)
        return shared, sum(map(len, shared.values())) == count

    def owners(self, names: Sequence[str]) -> dict[int, list[str]]:
        """These names by their owners' uids."""
        found: dict[int, list[str]] = {}
        for name in names:
            try:
                owner = os.stat(name, dir_fd=self.new, follow_symlinks=False).st_uid
            except OSError:
                owner = -1  # gone, or in trouble: the look will tell
            found.setdefault(owner, []).append(name)
        return found

    def look(self, names: Sequence[str], small_max: int) -> list[Look]:
        """Look at names in order until `CHUNK_BYTES_MAX` are read; maybe not at all of them."""
        looks = []
        size = 0
        for name in names:
            found = look_at(self.new, name, small_max)
            looks.append(found)
            size += len(found.data)
            if size >= CHUNK_BYTES_MAX:
                break
        return looks

    def remove(self, taken: Sequence[tuple[str, FileIdentity]]) -> list[tuple[str, OSError | None]]:
        """Unlink what was committed and sync. Returns the names that stay: None
        beside those that another file has by now, else why it could not go."""
        staying: list[tuple[str, OSError | None]] = []
        for name, identity in taken:
            try:
                there = os.stat(name, dir_fd=self.new, follow_symlinks=False)
                if identity_of(there) == identity:
                    os.unlink(name, dir_fd=self.new)
                else:
                    staying.append((name, None))
            except FileNotFoundError:
                continue
            except OSError as error:
                staying.append((name, error))
        self.sync()
        return staying

    def sync(self) -> None:
        """What was unlinked stays so after a power cut."""
        os.fsync(self.new)


def look_at(directory: int, name: str, small_max: int) -> Look:
    """Look at one name; reads it if it is a small regular file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        # Asked before opening, because opening some devices does something.
        if (unfit := _unfit(name, found)) is not None:
            return unfit
        descriptor = os.open(name, _OPEN, dir_fd=directory)
    except OSError as error:
        return _failed(name, error)
    try:
        found = os.fstat(descriptor)
        if (unfit := _unfit(name, found)) is not None:
            return unfit
        identity = identity_of(found)
        if has_writer(descriptor):
            return Look(name, LookResult.OPEN, identity)
        if found.st_size > small_max:
            return Look(name, LookResult.LARGE, identity, settled=has_writer(descriptor) is False)
        data = os.read(descriptor, found.st_size + 1)
        # In this order: who has closed it by now has not changed it since.
        writer = has_writer(descriptor)
        if writer:
            return Look(name, LookResult.OPEN, identity)
        if identity_of(os.fstat(descriptor)) != identity or len(data) != found.st_size:
            return Look(name, LookResult.CHANGING, identity)
        key = _digest(name, identity)
        key.update(data)
        settled = writer is False
        return Look(name, LookResult.READ, identity, data, key.hexdigest(), settled=settled)
    except OSError as error:
        return _failed(name, error)
    finally:
        os.close(descriptor)


def has_writer(descriptor: int) -> bool | None:
    """Whether somebody has this file open for writing, through whatever descriptor.

    The kernel grants a lease for reading only where nobody has (fcntl(2)), and
    only to the file's owner and to CAP_LEASE. None where it does not tell:
    another user's file, a file system without leases.
    """
    try:
        # Who opens it for writing while the lease lasts waits that long, and the kernel
        # sends a signal: one that means nothing, since SIGIO would end the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


class LargeFile:
    """A file read in portions; holds its descriptor."""

    def __init__(self, directory: int, name: str, identity: FileIdentity) -> None:
        """Raises OSError; FileNotFoundError where another file has the name by now."""
        self.name = name
        self.identity = identity
        self._descriptor = os.open(name, _OPEN, dir_fd=directory)
        if not self.is_unchanged():
            self.close()
            raise FileNotFoundError(errno.ENOENT, "another file has this name", name)

    def close(self) -> None:
        os.close(self._descriptor)

    def is_unchanged(self) -> bool:
        """Whether it is still as it was when it was looked at."""
        return identity_of(os.fstat(self._descriptor)) == self.identity

    def key(self) -> str:
        """Its identity for the spool's progress; reads all of it."""
        digest = _digest(self.name, self.identity)
        position = 0
        while data := os.pread(self._descriptor, READ_BYTES, position):
            digest.update(data)
            position += len(data)
            if position > self.identity.size_bytes:
                break  # it grows: `is_unchanged` will tell
        return digest.hexdigest()

    def read(self, position: int) -> bytes:
        """The bytes from `position` on, never more than the file had at first."""
        left = self.identity.size_bytes - position
        return os.pread(self._descriptor, min(READ_BYTES, left), position) if left > 0 else b""

    def last_line(self, bytes_max: int) -> bytes:
        """The last line, as far as it lies within the last `bytes_max` bytes."""
        start = max(0, self.identity.size_bytes - bytes_max - 1)
        return os.pread(self._descriptor, bytes_max + 1, start).rstrip().rpartition(b"\n")[2]


def identity_of(found: os.stat_result) -> FileIdentity:
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_uid)


def _digest(name: str, identity: FileIdentity) -> hashlib.blake2b:
    """A file's identity is its name with its content and time of change."""
    encoded = os.fsencode(name)
    head = b"%d %d " % (identity.changed_ns, len(encoded))
    return hashlib.blake2b(head + encoded, digest_size=16)


def _unfit(name: str, found: os.stat_result) -> Look | None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        return Look(name, LookResult.REFUSED, identity_of(found), reason=f"it is {kind}")
    if found.st_nlink > 1:
        return Look(name, LookResult.LINKED, identity_of(found))
    if found.st_size > FILE_BYTES_MAX:
        reason = f"it has {found.st_size} bytes, a spool file may have {FILE_BYTES_MAX}"
        return Look(name, LookResult.REFUSED, identity_of(found), reason=reason)
    return None


def _failed(name: str, error: OSError) -> Look:
    if error.errno == errno.ENOENT:
        return Look(name, LookResult.GONE)
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
        return Look(name, LookResult.REFUSED, reason="it is no regular file")
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Look(name, LookResult.UNREADABLE, reason=reason)
    return Look(name, LookResult.TROUBLE, reason=reason)


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _unusable(path: str, error: OSError) -> OutboxdError:
    """Why the directories cannot be made or opened."""
    what = f"[intake] spool = {path!r}: {error.strerror} ({error.filename})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskShort(what, room_hint(path))
    failure = ConfigError(
        what, "the directory and its tmp/, new/ and rejected/ must be writable for the agent's user"
    )
    if error.errno == errno.EIO:
        failure.exit_code = EX_IOERR
    return failure


def _make(path: str, mode: int) -> None:
    """Make a directory that is missing, and its place in its parent last."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        _make(parent, 0o755)
    os.mkdir(path, mode)
    os.chmod(path, mode)  # whatever the umask
    descriptor = os.open(parent, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
