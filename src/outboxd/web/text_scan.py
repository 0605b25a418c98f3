"""Finds texts in very many entries, a few milliseconds at a time.

What was looked at is remembered as one bit an entry, so that new entries cost
only themselves. It never holds more of the outbox than one body at once.
"""

from __future__ import annotations

from time import perf_counter

from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Text, Texts
from outboxd.web.tally import BLOCK_ROWS

SLICE_S = 0.004
_SEQ_MAX = 1 << 62


class TextScan:
    """Where some texts stand, as far as has been looked: newest entries first."""

    def __init__(self, texts: Texts) -> None:
        # By block, a bit for each place in it that matches.
        self.places: dict[int, int] = {}
        self.is_done = False
        self.looked = 0  # entries
        self._texts = texts
        self._low: int | None = None  # everything from here ...
        self._high = 0  # ... to before here has been looked at
        self._again: set[int] = set()  # blocks that have changed since

    def look_again(self, block: int) -> None:
        """Entries of this block have changed."""
        self._again.add(block)
        self.is_done = False

    def step(self, engine: Engine) -> bool:
        """Look for a few milliseconds; whether everything has been looked at."""
        self.is_done = self._step(engine, perf_counter() + SLICE_S)
        return self.is_done

    def below(self, seq: int, count: int) -> list[int]:
        """The newest matches before a seq, newest first, of all that was looked at."""
        found: list[int] = []
        for block in sorted((b for b in self.places if b * BLOCK_ROWS < seq), reverse=True):
            mask = self.places[block]
            for place in range(BLOCK_ROWS - 1, -1, -1):
                if mask >> place & 1 and (own := block * BLOCK_ROWS + place) < seq:
                    found.append(own)
                    if len(found) == count:
                        return found
        return found

    @property
    def low(self) -> int:
        """From here on all is known."""
        return self._low or 0

    def _step(self, engine: Engine, end_s: float) -> bool:
        if self._low is None:
            seqs = engine.seq_range()
            if not seqs:
                return True
            self._low = self._high = seqs.stop
        for seq, text in engine.texts(range(self._high, _SEQ_MAX)):
            self._look(seq, text)
            self._high = seq + 1
            if perf_counter() > end_s:
                return False
        while self._again:
            if not self._look_again(engine, self._again.pop(), end_s):
                return False
        for seq, text in engine.texts(range(self._low - 1, -1, -1)):
            self._look(seq, text)
            self._low = seq
            if perf_counter() > end_s:
                return False
        self._low = 0
        return True

    def _look_again(self, engine: Engine, block: int, end_s: float) -> bool:
        assert self._low is not None
        start = max(block * BLOCK_ROWS, self._low)
        stop = min((block + 1) * BLOCK_ROWS, self._high)
        if start == block * BLOCK_ROWS:
            self.places.pop(block, None)
        for seq, text in engine.texts(range(start, stop)):
            self._look(seq, text)
        return perf_counter() <= end_s

    def _look(self, seq: int, text: Text) -> None:
        self.looked += 1
        block, bit = seq // BLOCK_ROWS, 1 << seq % BLOCK_ROWS
        if self._texts.match(text):
            self.places[block] = self.places.get(block, 0) | bit
        elif block in self.places:
            self.places[block] &= ~bit
