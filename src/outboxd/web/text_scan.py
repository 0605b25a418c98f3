"""Finds a text in the bodies of very many entries, a few milliseconds at a time.

What was looked at is remembered, so that new entries cost only themselves. It
never holds more of the outbox than one body at once.
"""

from __future__ import annotations

import sqlite3
import time

from outboxd.outbox.query import mentions
from outboxd.web.tally import BLOCK_ROWS

SLICE_S = 0.004


class TextScan:
    """Where one text stands, as far as has been looked: newest bodies first."""

    def __init__(self, text: str) -> None:
        # By block, the places in it.
        self.places: dict[int, set[int]] = {}
        self._needle = text.casefold()
        self._low: int | None = None  # everything from here ...
        self._high = 0  # ... to before here has been looked at

    def step(self, connection: sqlite3.Connection) -> bool:
        """Look for a few milliseconds; whether everything has been looked at."""
        if self._low is None:
            (last,) = connection.execute("SELECT max(seq) FROM bodies").fetchone()
            if last is None:
                return True
            self._low = self._high = last + 1
        end_s = time.perf_counter() + SLICE_S
        newer = "SELECT seq, body FROM bodies WHERE seq >= ? ORDER BY seq"
        for seq, body in connection.execute(newer, (self._high,)):
            self._look(seq, body)
            self._high = seq + 1
            if time.perf_counter() > end_s:
                return False
        older = "SELECT seq, body FROM bodies WHERE seq < ? ORDER BY seq DESC"
        for seq, body in connection.execute(older, (self._low,)):
            self._look(seq, body)
            self._low = seq
            if time.perf_counter() > end_s:
                return False
        return True

    def _look(self, seq: int, body: str) -> None:
        if mentions(body, self._needle):
            self.places.setdefault(seq // BLOCK_ROWS, set()).add(seq % BLOCK_ROWS)
