"""The end of a log line's way: a file descriptor, usually stderr.

It must never fail its caller nor hold it up for long: a pipe whose reader has
gone or does not read, a full disk, a closed terminal cost lines and nothing
else. Lines lost are counted and told as soon as one can be written again.
"""

from __future__ import annotations

import os
import select
import threading

# What can be written to a pipe that poll calls writable without waiting.
_CHUNK_BYTES = 4096
_PATIENCE_MS = 100


class Sink:
    """Writes whole lines to a file descriptor, which it does not own."""

    def __init__(self, descriptor: int = 2) -> None:
        self.descriptor = descriptor
        self.lost = 0  # lines that could not be written, and nobody was told so far
        self._broken_off = False  # a line was cut short: begin the next on a new one
        self._lock = threading.Lock()  # the writer's thread logs too

    def is_terminal(self) -> bool:
        try:
            return os.isatty(self.descriptor)
        except OSError:
            return False

    def is_journal(self) -> bool:
        """Whether the other end is systemd's journal, as $JOURNAL_STREAM tells."""
        try:
            status = os.fstat(self.descriptor)
        except OSError:
            return False
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

    def write(self, line: str, counted: bool = True) -> bool:
        """Write a line, its end included; False if it was lost, which is counted."""
        data = line.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._broken_off:
                data = b"\n" + data
            written = self._write_all(data)
            self._broken_off = 0 < written < len(data) or (self._broken_off and not written)
            if written == len(data):
                return True
            self.lost += counted
            return False

    def told(self, count: int) -> None:
        """So many of the lost lines have been told of."""
        with self._lock:
            self.lost -= count

    def _write_all(self, data: bytes) -> int:
        written = 0
        # Waiting once is kindness to a slow reader; waiting at each line
        # would let a stopped one stop the agent.
        patience_ms = 0 if self.lost else _PATIENCE_MS
        try:
            poll = select.poll()
            poll.register(self.descriptor, select.POLLOUT)
            while written < len(data):
                if not poll.poll(patience_ms):
                    break
                written += os.write(self.descriptor, data[written : written + _CHUNK_BYTES])
        except (OSError, ValueError):
            pass  # gone, full or closed: there is nobody left to tell
        return written
