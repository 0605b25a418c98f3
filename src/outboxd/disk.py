"""What a disk keeps, and what to do where it has no room.

It may have run out of bytes, or of inodes: both come as the same error (ENOSPC), and
who looks for bytes finds plenty. A name in a directory stays only once that is synced.
Standard library alone, since producers say it too.
"""

from __future__ import annotations

import os


def has_inodes(path: str) -> bool:
    """Whether the disk of `path`, which need not be there itself, can take one more file."""
    while True:
        try:
            disk = os.statvfs(path or ".")
        except OSError:
            if path in ("", "/"):
                return True
            path = os.path.dirname(path)
            continue
        # File systems without a fixed number of inodes report none at all.
        return not disk.f_files or disk.f_favail > 0


def free_bytes(path: str) -> int:
    """What an unprivileged process may still write on the disk of `path`, which need not be
    there itself.

    Raises:
        OSError: the disk cannot be asked.
    """
    directory = os.path.abspath(path)
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def room_hint(path: str) -> str:
    """What makes room on the disk of `path`."""
    if has_inodes(path):
        return "make room on its disk (see `df -h`)"
    return "its disk has no inodes left: remove files from it (see `df -i`)"


def sync_directory(path: str) -> None:
    """Make a directory's entries durable: what was made, renamed or unlinked in it.

    Raises:
        OSError: there is no such directory, or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
