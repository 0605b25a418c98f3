"""What the spool refuses: moved to `rejected/`, beside a text that says why.

Where nothing of a file was taken, the file itself is moved. Where some of its
lines were taken, `rejected/` gets only those that were not: so whoever corrects
them can move the file back to `new/` without making a second event of the
others. It is called after the good lines were committed; if the disk has no
room, the file stays in `new/` and is tried again. Blocking, as `spoolfiles`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from outboxd.errors import EventError
from outboxd.spool.files import Identity, SpoolFolder, identity_of
from outboxd.text import harmless
from outboxd.times import rfc3339

FAULTS_TOLD_MAX = 1000
SUFFIX = ".error"
_PARTIAL = ".outboxd-partial-"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class Fault(NamedTuple):
    """A line that was not taken; 0: the file as a whole."""

    line: int
    field: str | None
    reason: str
    hint: str | None = None

    @classmethod
    def of(cls, line: int, error: EventError) -> Fault:
        return cls(line, error.field, error.message, error.hint)

    def text(self) -> str:
        where = f"line {self.line}, field {self.field or '-'}: " if self.line else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.reason}{hint}"


class BadLines:
    """Collects the lines of one file that were not taken; of many lines the
    text goes straight to the disk, and the faults told are limited."""

    MEMORY_BYTES_MAX = 1024 * 1024

    def __init__(self, folder: SpoolFolder) -> None:
        self._folder = folder
        self.faults: list[Fault] = []
        self.count = 0
        self.buffer = bytearray()
        self.partial: str | None = None
        self.error: OSError | None = None  # the disk would not take them

    def add(self, fault: Fault, line: bytes | None) -> None:
        """A line of None is in the buffer already (it was too long)."""
        self.count += 1
        if len(self.faults) < FAULTS_TOLD_MAX:
            self.faults.append(fault)
        if line is not None:
            self.buffer += line + b"\n"

    def too_long(self, part: bytes) -> None:
        """A part of a line that is longer than an event may be."""
        self.buffer += part

    @property
    def must_spill(self) -> bool:
        return len(self.buffer) >= self.MEMORY_BYTES_MAX

    def spill(self) -> None:
        """Bring what is buffered to the disk; on failure remember why and go on,
        because the good lines behind must not wait for the bad ones."""
        if self.error is None:
            try:
                self._write()
            except OSError as error:
                self.error = error
        self.buffer.clear()

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
    folder: SpoolFolder,
    name: str,
    identity: Identity | None,
    faults: Sequence[Fault],
    count: int,
    now_ms: int,
) -> str | None:
    """Move the file itself; returns its name there, None if it is gone.

    Raises:
        OSError: it stays in `new/`.
    """
    if not _is_still(folder, name, identity):
        return None
    target = _free_name(folder, name)
    text = _head(name, identity, now_ms) + "nothing of it was taken\n" + _tell(faults, count)
    _write_error(folder, target, text)
    # The text first: a crash between the two leaves a text without its file,
    # and not a file without its reason.
    try:
        os.rename(name, target, src_dir_fd=folder.new, dst_dir_fd=folder.rejected)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(target + SUFFIX, dir_fd=folder.rejected)
        if isinstance(error, FileNotFoundError):
            return None
        raise
    os.fsync(folder.rejected)
    os.fsync(folder.new)
    return target


def reject_lines(
    folder: SpoolFolder,
    name: str,
    identity: Identity,
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
    assert bad.partial is not None
    target = _free_name(folder, name)
    text = (
        _head(name, identity, now_ms)
        + f"{taken} of its lines were taken; the file beside this text holds the {bad.count} that\n"
        "were not, and only those: correct them and move it to new/ again\n"
        + _tell(bad.faults, bad.count)
    )
    _write_error(folder, target, text)
    os.rename(bad.partial, target, src_dir_fd=folder.rejected, dst_dir_fd=folder.rejected)
    bad.partial = None
    os.fsync(folder.rejected)
    folder.remove([(name, identity)])
    return target


def clean_up(folder: SpoolFolder) -> None:
    """Remove what a crash left half written."""
    with os.scandir(folder.rejected) as entries:
        left = [entry.name for entry in entries if entry.name.startswith(_PARTIAL)]
    for name in left:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder.rejected)


def printable(name: str) -> str:
    """A file's name that may hold any bytes, for a text or a log line."""
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return harmless(shown)


def _head(name: str, identity: Identity | None, now_ms: int) -> str:
    owner = f"owner: uid {identity.owner}\n" if identity else ""
    return (
        f"outboxd did not take this file from the spool\nfile: {printable(name)}\n"
        f"{owner}refused: {rfc3339(now_ms)}\n"
    )


def _tell(faults: Sequence[Fault], count: int) -> str:
    text = "".join(fault.text() + "\n" for fault in faults[:FAULTS_TOLD_MAX])
    more = count - min(len(faults), FAULTS_TOLD_MAX)
    return text + (f"and {more} lines more\n" if more > 0 else "")


def _is_still(folder: SpoolFolder, name: str, identity: Identity | None) -> bool:
    if identity is None:
        return True
    try:
        there = os.stat(name, dir_fd=folder.new, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == identity[:2] and identity_of(there)[2:4] == identity[2:4]


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
