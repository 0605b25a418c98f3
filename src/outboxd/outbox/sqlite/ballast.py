"""Room kept back for the moment when the disk is full.

On a full disk DELETE, UPDATE and checkpoint fail too, so that outcomes of
requests could not be written and every one of them might be sent again. A
preallocated file is given up then; what it occupied is enough to settle what
is in flight and to prune. It is laid out again when there is room.
"""

from __future__ import annotations

import os
from contextlib import suppress

from outboxd.disk import free_bytes

BALLAST_BYTES = 4 * 1024 * 1024


class Ballast:
    """The file `<outbox>.ballast`."""

    def __init__(self, outbox_path: str, size_bytes: int = BALLAST_BYTES) -> None:
        self.path = outbox_path + ".ballast"
        self.size_bytes = size_bytes
        self._directory = os.path.dirname(os.path.abspath(outbox_path))

    def present(self) -> bool:
        """Whether it is there in its full size."""
        try:
            return os.stat(self.path).st_blocks * 512 >= self.size_bytes
        except OSError:
            return False

    def lay(self, spare_bytes: int) -> bool:
        """Lay it out unless that would leave less than `spare_bytes`; whether it is there."""
        if self.present():
            return True
        if free_bytes(self._directory) < self.size_bytes + spare_bytes:
            return False
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, self.size_bytes)
        except OSError:
            self.release()
            return False
        finally:
            os.close(fd)
        return True

    def release(self) -> bool:
        """Give the room back; whether there was any."""
        had = self.present()
        with suppress(OSError):
            os.unlink(self.path)
        return had
