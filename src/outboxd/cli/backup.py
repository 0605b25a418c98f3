"""`outboxd backup FILE`: a consistent copy of the outbox, which opens as an outbox.

The copy is written beside FILE, synced, looked through and then renamed: FILE is
at any time either what it was or a whole copy.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from outboxd.cli.queue import client_config, open_queue
from outboxd.disk import room_hint, sync_directory
from outboxd.errors import (
    EX_IOERR,
    EX_OK,
    EX_TEMPFAIL,
    NotPermitted,
    OutboxdError,
    Unavailable,
    UsageError,
)
from outboxd.files import check_replaceable, read_start
from outboxd.producer.command_line import Arguments

HEAD_BYTES = 100  # of a database's header


def run(arguments: Arguments) -> int:
    """0 once the copy is on its disk."""
    path = os.path.abspath(arguments.file)
    outbox = client_config(arguments).outbox
    if outbox.url:
        raise Unavailable(
            "the outbox is on PostgreSQL, and no file of this host's",
            "copy it with pg_dump, or as that server is copied",
        )
    _check(path, outbox.path)
    part = path + ".part"
    try:
        descriptor = _create(part)
        try:
            with open(descriptor, "wb") as file, open_queue(arguments) as queue:
                for chunk in queue.copy():
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            # It loads SQLite, which a command that asks an agent needs for nothing else.
            from outboxd.outbox.sqlite.copying import seal

            count = seal(part)
            os.rename(part, path)
            sync_directory(os.path.dirname(path))
        except BaseException:
            for leftover in (part, part + "-wal"):
                with suppress(OSError):
                    os.unlink(leftover)
            raise
    except OSError as error:
        raise _failure(path, error) from error
    print(f"{path}: a copy of {count} entries")
    return EX_OK


def _check(path: str, outbox_path: str) -> None:
    """Raises UsageError where a copy would do harm."""
    if os.path.realpath(path) == os.path.realpath(outbox_path):
        raise UsageError(f"{path} is the outbox itself", "name another file for the copy")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory", "name a file in it")
    try:
        check_replaceable(path)
    except OSError as error:
        told = f"{path} cannot be replaced by a copy: {error.strerror}"
        raise UsageError(told, "name a file; a copy on stdout is not to be had") from None
    if not _may_go(path):
        told = f"{path} is there, and no copy of an outbox: it is left as it is"
        raise UsageError(told, "name another file for the copy, or remove that one")
    for suffix in ("-wal", ".lock"):
        if os.path.lexists(path + suffix):
            raise UsageError(
                f"{path} is an outbox that is in use, or was: {path}{suffix} is there",
                "name another file for the copy",
            )


def _may_go(path: str) -> bool:
    """Whether a copy may take this file's place: an older copy, and what is empty, or a link."""
    if os.path.islink(path) or not os.path.exists(path):
        return True
    from outboxd.outbox.sqlite.rescue.diagnosis import is_of_outbox

    try:
        head = read_start(path, HEAD_BYTES)
    except OSError:
        return False
    return not head or is_of_outbox(head)


def _failure(path: str, error: OSError) -> OutboxdError:
    """Why the copy could not be written."""
    message = f"cannot write {path}: {error.strerror}"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return NotPermitted(message, "name a file where this user may write")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(message, "name a file in a directory that is there")
    failure = OutboxdError(message, room_hint(os.path.dirname(path)))
    failure.exit_code = EX_IOERR if error.errno == errno.EIO else EX_TEMPFAIL
    return failure


def _create(part: str) -> int:
    # What a copy that was killed has left is of no use to anyone.
    with suppress(FileNotFoundError):
        os.unlink(part)
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
