"""What the spool refuses: moved to `rejected/`, beside a text that says why.

Where nothing of a file was taken, the file itself is moved. Where some of its
lines were taken, `rejected/` gets only those that were not: so whoever corrects
them can move the file back to `new/` without making a second event of the
others. It is called after the good lines were committed; if the disk has no
room, the file stays in `new/` and is tried again.

What lies there must do no harm: of a file no more is kept than
`FILE_KEPT_BYTES_MAX`, and what is no regular file becomes an empty one, beside
a text that says what it was, so that no command of an administrator ever
follows a link or waits on a FIFO. Blocking, as `files`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from outboxd.errors import EventError
from outboxd.spool.files import FileIdentity, SpoolFolder, identity_of
from outboxd.text import harmless
from outboxd.times import rfc3339

FAULTS_TOLD_MAX = 100  # of one file; finding out what is wrong with a line takes time
# More bad lines than good ones, by number or, with a hundred more, by their bytes: a
# second of work at the most, and the rest of the file is refused unread.
FAULTS_MAX = 10_000
FAULTS_BYTES_MAX = 1 << 20
FILE_KEPT_BYTES_MAX = 16 << 20  # of what was not taken of one file
SUFFIX = ".error"
_OWNER = "owner: uid "
_HEAD_BYTES_MAX = 2048  # a name of 255 bytes may be told in four times as many
_PARTIAL = ".outboxd-partial-"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class LineFault(NamedTuple):
    """A line that was not taken; 0: the file as a whole."""

    line: int
    field: str | None
    reason: str
    hint: str | None = None

    @classmethod
    def of(cls, line: int, error: EventError) -> LineFault:
        return cls(line, error.field, error.message, error.hint)

    def text(self) -> str:
        where = f"line {self.line}, field {self.field or '-'}: " if self.line else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.reason}{hint}"


def is_beyond_help(bad: int, good: int, bad_bytes: int) -> bool:
    """Whether the rest of a file is refused unread: a file of bad lines must not cost
    a look at each of them, and of one that is good for the most part, or that only
    begins with something else, every good line is taken."""
    more = bad - good
    return more >= FAULTS_MAX or (more >= FAULTS_TOLD_MAX and bad_bytes >= FAULTS_BYTES_MAX)


class BadLines:
    """Collects the lines of one file that were not taken; of many lines the
    text goes straight to the disk. Faults told and bytes kept are limited."""

    MEMORY_BYTES_MAX = 1024 * 1024

    def __init__(self, folder: SpoolFolder, disk_free_min: int = 0) -> None:
        self._folder = folder
        self._disk_free_min = disk_free_min
        self._kept_bytes = 0
        self.faults: list[LineFault] = []
        self.count = 0
        self.unread_from = 0  # the line from which on none was read; 0: all were
        self.is_cut = False  # there was more than is kept
        self.buffer = bytearray()
        self.partial: str | None = None
        self.error: OSError | None = None  # the disk would not take them

    def add(self, fault: LineFault, line: bytes | None) -> None:
        """A line of None was kept already (it was too long)."""
        self.count += 1
        if len(self.faults) < FAULTS_TOLD_MAX:
            self.faults.append(fault)
        if line is not None:
            self.keep(line + b"\n")

    def keep(self, part: bytes) -> None:
        """Bytes of what was not taken: of a line that is too long, or that was not read."""
        room = FILE_KEPT_BYTES_MAX - self._kept_bytes
        self.is_cut = self.is_cut or len(part) > room
        part = part[:room]
        self._kept_bytes += len(part)
        self.buffer += part

    @property
    def kept_bytes(self) -> int:
        """How much of the file was not taken, as far as it is kept."""
        return self._kept_bytes

    @property
    def must_spill(self) -> bool:
        return len(self.buffer) >= self.MEMORY_BYTES_MAX

    def spill(self) -> None:
        """Bring what is buffered to the disk; on failure remember why and go on,
        because the good lines behind must not wait for the bad ones."""
        if self._is_disk_short():
            self.is_cut = True  # the room that is left is for events
        elif self.error is None:
            try:
                self._write()
            except OSError as error:
                self.error = error
        self.buffer.clear()

    def text(self) -> str:
        """What was wrong, a line each."""
        text = tell(self.faults, self.count)
        if self.unread_from:
            text += (
                f"from line {self.unread_from} on none was read:"
                " so many bad lines are no file of events\n"
            )
        return text

    def _is_disk_short(self) -> bool:
        try:
            disk = os.fstatvfs(self._folder.rejected)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < self._disk_free_min

    def _write(self) -> None:
        if self.partial is None:
            self.partial = _PARTIAL + os.urandom(8).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.partial, flags, 0o640, dir_fd=self._folder.rejected)
        try:
            _write_all(descriptor, self.buffer)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Give up what was collected."""
        if self.partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.partial, dir_fd=self._folder.rejected)
        self.partial = None
        self.buffer.clear()


def reject_whole(
    folder: SpoolFolder, name: str, identity: FileIdentity | None, why: str, now_ms: int
) -> str | None:
    """Move the file itself; returns its name there, None if it is gone.

    Raises:
        OSError: it stays in `new/`.
    """
    found = _still(folder, name, identity)
    if found is None:
        return None
    target = _free_name(folder, name)
    text = _head(name, identity, now_ms) + "nothing of it was taken\n" + why
    is_regular = stat.S_ISREG(found.st_mode)
    if is_regular and found.st_size > FILE_KEPT_BYTES_MAX:
        text += f"its first {FILE_KEPT_BYTES_MAX} bytes are kept\n"
    if stat.S_ISLNK(found.st_mode):
        with contextlib.suppress(OSError):
            text += f"it led to {printable(os.readlink(name, dir_fd=folder.new))}\n"
    if stat.S_ISDIR(found.st_mode) and not _may_move(folder, name):
        raise PermissionError(errno.EACCES, "a directory of another user cannot be moved")
    if not is_regular and not stat.S_ISDIR(found.st_mode):
        text += "the file beside this text is an empty one in its place\n"
    _write_error(folder, target, text)
    # The text first: a crash between the two leaves a text without its file,
    # and not a file without its reason.
    try:
        if is_regular or stat.S_ISDIR(found.st_mode):
            os.rename(name, target, src_dir_fd=folder.new, dst_dir_fd=folder.rejected)
        else:
            os.close(os.open(target, _WRITE | os.O_EXCL, 0o640, dir_fd=folder.rejected))
            os.unlink(name, dir_fd=folder.new)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(target + SUFFIX, dir_fd=folder.rejected)
        if isinstance(error, FileNotFoundError):
            return None
        raise
    if is_regular and found.st_size > FILE_KEPT_BYTES_MAX:
        _cut_file(folder, target)
    os.fsync(folder.rejected)
    os.fsync(folder.new)
    return target


def reject_lines(
    folder: SpoolFolder,
    name: str,
    identity: FileIdentity,
    bad: BadLines,
    taken: int,
    now_ms: int,
) -> str:
    """Keep the lines that were not taken and unlink the file; returns the name.

    Raises:
        OSError: the file stays in `new/`; read again it makes no second event.
    """
    bad.spill()
    if bad.error is not None:
        raise bad.error
    target = _free_name(folder, name)
    unread = " and those that were not read" if bad.unread_from else ""
    cut = "; as much of them as there is room for" if bad.is_cut else ""
    text = (
        _head(name, identity, now_ms)
        + f"{taken} of its lines were taken; the file beside this text holds the {bad.count} that\n"
        f"were not{unread}, and only those{cut}: correct them and move it to new/ again\n"
        + bad.text()
    )
    _write_error(folder, target, text)
    if bad.partial is not None:  # else the disk was too short for any
        os.rename(bad.partial, target, src_dir_fd=folder.rejected, dst_dir_fd=folder.rejected)
    bad.partial = None
    os.fsync(folder.rejected)
    folder.remove([(name, identity)])
    return target


def tell_immovable(
    folder: SpoolFolder, name: str, identity: FileIdentity | None, why: str, now_ms: int
) -> None:
    """A text alone, for what must stay in `new/`."""
    with contextlib.suppress(OSError):
        text = _head(name, identity, now_ms) + f"it stays in new/: remove it there\n{why}"
        _write_error(folder, _free_name(folder, name), text)


def clean_up(folder: SpoolFolder) -> None:
    """Remove what a crash left half written."""
    with os.scandir(folder.rejected) as entries:
        left = [entry.name for entry in entries if entry.name.startswith(_PARTIAL)]
    for name in left:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder.rejected)


def owner_told(folder: SpoolFolder, name: str, otherwise: int) -> int:
    """The uid that the text beside a refused file (or the text itself) names."""
    text = name if name.endswith(SUFFIX) else name + SUFFIX
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(text, flags, dir_fd=folder.rejected)
        try:
            head = os.read(descriptor, _HEAD_BYTES_MAX)
        finally:
            os.close(descriptor)
        for line in head.split(b"\n"):
            if line.startswith(_OWNER.encode()):
                return int(line.removeprefix(_OWNER.encode()))
    return otherwise


def printable(name: str) -> str:
    """A file's name that may hold any bytes, for a text or a log line."""
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return harmless(shown)


def _head(name: str, identity: FileIdentity | None, now_ms: int) -> str:
    owner = f"{_OWNER}{identity.owner}\n" if identity else ""
    return (
        f"outboxd did not take this file from the spool\nfile: {printable(name)}\n"
        f"{owner}refused: {rfc3339(now_ms)}\n"
    )


def tell(faults: Sequence[LineFault], count: int) -> str:
    """The faults, a line each; `count` of them there were."""
    text = "".join(fault.text() + "\n" for fault in faults[:FAULTS_TOLD_MAX])
    more = count - min(len(faults), FAULTS_TOLD_MAX)
    return text + (f"and {more} lines more\n" if more > 0 else "")


def _still(folder: SpoolFolder, name: str, identity: FileIdentity | None) -> os.stat_result | None:
    """What stands under the name, if it is what was looked at."""
    try:
        there = os.stat(name, dir_fd=folder.new, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if identity is None or identity_of(there)[:4] == identity[:4]:
        return there
    return None


def _may_move(folder: SpoolFolder, directory: str) -> bool:
    """Moving a directory changes its entry `..`, so it takes the right to write in it."""
    return os.access(directory, os.W_OK, dir_fd=folder.new, effective_ids=True)


def _cut_file(folder: SpoolFolder, target: str) -> None:
    """A hole of a terabyte is no more than its first part. What may not be cut stays as it
    is, and counts for the room that `rejected/` has."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(target, flags, dir_fd=folder.rejected)
        try:
            os.ftruncate(descriptor, FILE_KEPT_BYTES_MAX)
        finally:
            os.close(descriptor)


def _free_name(folder: SpoolFolder, name: str) -> str:
    """A name under which neither file nor text stands in `rejected/`."""
    longest = os.fpathconf(folder.rejected, "PC_NAME_MAX") - len(SUFFIX)
    encoded = os.fsencode(name)
    if len(encoded) > longest:
        mark = "~" + hashlib.blake2b(encoded, digest_size=4).hexdigest()
        encoded = _cut(encoded, longest - len(mark)) + mark.encode()
    candidate = os.fsdecode(encoded)
    number = 1
    while _exists(folder, candidate) or _exists(folder, candidate + SUFFIX):
        number += 1
        mark = f"~{number}" if number < 100 else "~" + os.urandom(8).hex()
        candidate = os.fsdecode(_cut(encoded, longest - len(mark)) + mark.encode())
    return candidate


def _cut(encoded: bytes, length: int) -> bytes:
    """At most `length` bytes, not cutting through a character of UTF-8."""
    if len(encoded) <= length:
        return encoded
    try:
        encoded.decode()
    except UnicodeDecodeError:
        return encoded[:length]
    return encoded[:length].decode("utf-8", "ignore").encode()


def _exists(folder: SpoolFolder, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder.rejected, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_error(folder: SpoolFolder, target: str, text: str) -> None:
    partial = _PARTIAL + os.urandom(8).hex()
    try:
        descriptor = os.open(partial, _WRITE, 0o640, dir_fd=folder.rejected)
        try:
            _write_all(descriptor, text.encode("utf-8", "backslashreplace"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(partial, target + SUFFIX, src_dir_fd=folder.rejected, dst_dir_fd=folder.rejected)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder.rejected)
        raise


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    rest = bytes(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
