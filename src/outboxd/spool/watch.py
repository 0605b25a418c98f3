"""Wakes the spool reader when something happens in `new/`, and knows who still writes there.

inotify, through asyncinotify. That something arrived is only a hint: what it
misses (a network file system, an overflow) the reader's rescan finds. What it
saw of writing is a second opinion, for files of other users, of which the
system does not tell whether they are still open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, time_ns

from asyncinotify import Inotify, Mask

NAMES_MAX = 4096  # more at once are found by a scan
WRITTEN_MAX = 16_384  # names that are remembered as being written
EVENTS_AT_ONCE = 500  # 5 microseconds each, between which the loop serves others
# The first write may follow the creation at some distance; a file that has bytes and
# was created, not renamed, and never written to, has come by link().
CREATED_S = 0.1
EMPTY_S = 3600.0  # an empty one may be a program's output that begins late

_LOST = Mask.Q_OVERFLOW | Mask.IGNORED | Mask.DELETE_SELF | Mask.MOVE_SELF
_WATCHED = (
    Mask.CREATE
    | Mask.MODIFY
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
        self._directory = ""
        self._created: dict[str, float] = {}  # and not closed since; when, monotonic
        self._modified: dict[str, None] = {}  # and not closed since
        self.names: dict[str, None] = {}
        self.scan_due = True
        self.complete_since_ms: float = float("inf")  # wall clock: from then on, nothing was missed

    def start(self, directory: str) -> None:
        """Raises OSError where the system has no watch to give."""
        self.stop()
        inotify = Inotify(sync_timeout=0)
        try:
            inotify.add_watch(directory, _WATCHED)
            asyncio.get_running_loop().add_reader(inotify.fd, self._read)
        except OSError:
            inotify.close()
            raise
        self._inotify = inotify
        self._begin_anew()

    def stop(self) -> None:
        """Let go of the watch."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
        self.complete_since_ms = float("inf")

    def take(self) -> list[str]:
        """The names since the last call, sorted."""
        names = sorted(self.names)
        self.names.clear()
        return names

    def is_written(self, name: str, size_bytes: int) -> bool:
        """Whether it was opened in `new/` and not closed since, as far as was seen until now."""
        self._read()
        if name in self._modified:
            return True
        created_s = self._created.get(name)
        if created_s is None:
            return False
        return monotonic() - created_s < (EMPTY_S if size_bytes == 0 else CREATED_S)

    def _begin_anew(self) -> None:
        self._created.clear()
        self._modified.clear()
        self.complete_since_ms = time_ns() / 1e6

    def _read(self) -> None:
        """Some of the events; the next ones when others had their turn."""
        if self._inotify is None:
            return
        for _ in range(EVENTS_AT_ONCE):
            event = self._inotify.sync_get()
            if event is None:
                break
            if event.mask & _LOST:
                self.scan_due = True
                self._begin_anew()
            elif event.name is not None:
                self._note(event.mask, str(event.name))
        else:
            # What the library has read from the system wakes no loop any more.
            asyncio.get_running_loop().call_soon(self._read)
        if len(self.names) > NAMES_MAX:
            self.names.clear()
            self.scan_due = True
        if self.names or self.scan_due:
            self._wake()

    def _note(self, mask: Mask, name: str) -> None:
        if mask & Mask.MODIFY:
            self._modified[name] = None
        elif mask & Mask.CREATE and not mask & Mask.ISDIR:
            self._created[name] = monotonic()
        elif mask & (Mask.CLOSE_WRITE | Mask.MOVED_TO):
            self._modified.pop(name, None)
            self._created.pop(name, None)
        for known in (self._modified, self._created):
            if len(known) > WRITTEN_MAX:
                del known[next(iter(known))]
        if not mask & Mask.MODIFY and not name.startswith("."):
            self.names[name] = None
