"""What to do where a disk has no room: it may have run out of bytes, or of inodes.

Both come as the same error (ENOSPC), and who looks for bytes finds plenty.
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


def room_hint(path: str) -> str:
    """What makes room on the disk of `path`."""
    if has_inodes(path):
        return "make room on its disk (see `df -h`)"
    return "its disk has no inodes left: remove files from it (see `df -i`)"
