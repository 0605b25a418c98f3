"""Wakes the spool reader when something happens in `new/`.

inotify through asyncinotify, read in bulk: a name costs a microsecond, and a
hundred thousand of them one scan. It is only a hint: what it misses (a network
file system, an overflow) the reader's rescan finds.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable

from asyncinotify import Inotify, Mask

NAMES_MAX = 4096  # more at once are found by a scan

_EVENT = struct.Struct("iIII")
_LOST = int(Mask.Q_OVERFLOW | Mask.IGNORED | Mask.DELETE_SELF | Mask.MOVE_SELF)
_WATCHED = (
    Mask.CREATE
    | Mask.MOVED_TO
    | Mask.CLOSE_WRITE
    | Mask.ATTRIB
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
    | Mask.ONLYDIR
)


class SpoolWatch:
    """Names that something happened to, and whether a scan is due."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._inotify: Inotify | None = None
        self.names: dict[str, None] = {}
        self.scan_due = True

    def start(self, directory: str) -> None:
        """Raises OSError where the system has no watch to give."""
        self.stop()
        inotify = Inotify()
        try:
            inotify.add_watch(directory, _WATCHED)
            asyncio.get_running_loop().add_reader(inotify.fd, self._read)
        except OSError:
            inotify.close()
            raise
        self._inotify = inotify

    def stop(self) -> None:
        """Let go of the watch."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None

    def take(self) -> list[str]:
        """The names since the last call, sorted."""
        names = sorted(self.names)
        self.names.clear()
        return names

    def _read(self) -> None:
        assert self._inotify is not None
        try:
            data = os.read(self._inotify.fd, 64 * 1024)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            name = data[position : position + length].rstrip(b"\0")
            position += length
            if mask & _LOST:
                self.scan_due = True
            elif name and not name.startswith(b"."):
                self.names[os.fsdecode(name)] = None
        if len(self.names) > NAMES_MAX:
            self.names.clear()
            self.scan_due = True
        self._wake()
