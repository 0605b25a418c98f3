"""What several rooms need to know of files. Reads; changes nothing."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Tells one content of a path from the next, as far as `stat` can."""

    device: int
    inode: int
    changed_ns: int
    size_bytes: int

    def is_same_file(self, other: FileVersion) -> bool:
        """Whether one was written over the other, and not put in its place."""
        return (self.device, self.inode) == (other.device, other.inode)


def file_version(path: str) -> FileVersion | None:
    """The version that lies there now, symlinks followed; None where nothing can be seen.

    The time is that of the inode's change, which a copy that keeps times cannot keep.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileVersion(found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)


def read_start(path: str, bytes_max: int) -> bytes:
    """The file's first `bytes_max` bytes, without ever waiting for them.

    Raises:
        OSError: it cannot be read, or is no regular file: a FIFO in its place would
            stop the agent for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        _check_regular(os.fstat(descriptor))
        return file.read(bytes_max)


def check_replaceable(path: str) -> None:
    """For a path onto which a file will be renamed: a device, FIFO or socket that stands
    there would be gone, for everybody (/dev/null, say). Raises OSError; a link may be
    replaced, and is not followed."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISLNK(found.st_mode):
        _check_regular(found)


def check_readable(path: str) -> None:
    """For a file that others will open, and wait for where it is a FIFO: raises OSError
    as `read_start` does."""
    _check_regular(os.stat(path))


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
