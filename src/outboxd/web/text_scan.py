"""Finds texts in very many entries, a few milliseconds at a time.

What was looked at is remembered as one bit an entry, so that new entries cost
only themselves. It never holds more of the outbox than a few entries at once.
"""

from __future__ import annotations

from time import perf_counter

from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Texts
from outboxd.web.tally import BLOCK_ROWS

# Entries at once: an event may have 256 KiB, so a few at first, and more while that is quick.
ROWS_FIRST = 4


class TextScan:
    """Where some texts stand, as far as has been looked: newest entries first."""

    def __init__(self, texts: Texts) -> None:
        # By block, a bit for each place in it that matches.
        self.places: dict[int, int] = {}
        self.is_done = False
        self._texts = texts
        self._low: int | None = None  # everything from here ...
        self._high = 0  # ... to before here has been looked at
        # Blocks that have changed since, and from where on they are to be looked at.
        self._again: dict[int, int] = {}
        self._rows = ROWS_FIRST  # entries of the next look

    @property
    def looked(self) -> int:
        """How many entries were looked at, gaps among them."""
        return 0 if self._low is None else self._high - self._low

    @property
    def low(self) -> int:
        """From here on all is known."""
        return self._low or 0

    def look_again(self, block: int) -> None:
        """Entries of this block have changed."""
        self._again[block] = block * BLOCK_ROWS
        self.is_done = False

    def step(self, engine: Engine, part: float = 1.0) -> bool:
        """Look for as long as the engine allows, or a part of it; whether everything has
        been looked at."""
        self.is_done = self._step(engine, perf_counter() + engine.search_limits.look_s * part)
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

    def _step(self, engine: Engine, end_s: float) -> bool:
        present = engine.seq_range()
        if not present:
            return True
        if self._low is None:
            self._low = self._high = present.stop
        while self._high < present.stop:
            seqs = range(self._high, min(self._high + self._rows, present.stop))
            if self._look(engine, seqs):
                self._high = seqs.stop
            if perf_counter() > end_s:
                return False
        while self._low > present.start:
            seqs = range(max(self._low - self._rows, present.start), self._low)
            if self._look(engine, seqs):
                self._low = seqs.start
            if perf_counter() > end_s:
                return False
        while self._again:
            block, start = self._again.popitem()
            start, stop = max(start, self._low), min((block + 1) * BLOCK_ROWS, self._high)
            seqs = range(start, min(start + self._rows, stop))
            looked = seqs.stop if self._look(engine, seqs) else start
            if looked < stop:
                self._again[block] = looked
            if perf_counter() > end_s:
                return False
        return True

    def _look(self, engine: Engine, seqs: range) -> bool:
        """Look at some neighbours, if they are not too much; with large ones the next look
        is at fewer."""
        began_s = perf_counter()
        found = engine.texts(seqs, self._texts)
        if found is None:
            self._rows = len(seqs) // 2
            return False
        self._forget(seqs)
        for seq, text in found:
            if self._texts.match(text):
                block, bit = seq // BLOCK_ROWS, 1 << seq % BLOCK_ROWS
                self.places[block] = self.places.get(block, 0) | bit
        limits = engine.search_limits
        is_slow = perf_counter() - began_s > limits.look_s
        self._rows = max(self._rows // 2, 1) if is_slow else min(self._rows * 2, limits.rows_max)
        return True

    def _forget(self, seqs: range) -> None:
        """What was known of these entries."""
        for block in range(seqs.start // BLOCK_ROWS, -(-seqs.stop // BLOCK_ROWS)):
            if block in self.places:
                first = max(seqs.start - block * BLOCK_ROWS, 0)
                last = min(seqs.stop - block * BLOCK_ROWS, BLOCK_ROWS)
                self.places[block] &= ~((1 << last) - (1 << first))
                if not self.places[block]:
                    del self.places[block]
