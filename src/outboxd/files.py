"""What several rooms need to know of files. Reads; changes nothing."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Tells one content of a path from the next, as far as `stat` can."""

    device: int
    inode: int
    changed_ns: int
    size_bytes: int


def file_version(path: str) -> FileVersion | None:
    """The version that lies there now, symlinks followed; None where nothing can be seen.

    The time is that of the inode's change, which a copy that keeps times cannot keep.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileVersion(found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)
