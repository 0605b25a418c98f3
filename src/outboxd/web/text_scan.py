"""Finds a text in the bodies of very many entries, a few milliseconds at a time.

What was looked at is remembered, so that new entries cost only themselves. It
never holds more of the outbox than one body at once.
"""

from __future__ import annotations

import time

from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Text, mentions
from outboxd.web.tally import BLOCK_ROWS

SLICE_S = 0.004
_SEQ_MAX = 1 << 62


class TextScan:
    """Where one text stands, as far as has been looked: newest bodies first."""

    def __init__(self, text: str) -> None:
        # By block, the places in it.
        self.places: dict[int, set[int]] = {}
        self._needle = text.casefold()
        self._low: int | None = None  # everything from here ...
        self._high = 0  # ... to before here has been looked at

    def step(self, engine: Engine) -> bool:
        """Look for a few milliseconds; whether everything has been looked at."""
        if self._low is None:
            seqs = engine.seq_range()
            if not seqs:
                return True
            self._low = self._high = seqs.stop
        end_s = time.perf_counter() + SLICE_S
        for seq, text in engine.texts(range(self._high, _SEQ_MAX)):
            self._look(seq, text)
            self._high = seq + 1
            if time.perf_counter() > end_s:
                return False
        for seq, text in engine.texts(range(self._low - 1, -1, -1)):
            self._look(seq, text)
            self._low = seq
            if time.perf_counter() > end_s:
                return False
        return True

    def _look(self, seq: int, text: Text) -> None:
        if mentions(text, self._needle):
            self.places.setdefault(seq // BLOCK_ROWS, set()).add(seq % BLOCK_ROWS)
