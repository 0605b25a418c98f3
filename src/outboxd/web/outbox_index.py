"""Keeps a tally of the outbox up to date without ever making its writer wait long.

The one connection belongs to the writer: so every look is a slice of a few
milliseconds, in its turn, and what was seen is kept. Everything is
read once, newest first; after that only the blocks that changed. Which those
are is found from the small indexes of what is pending, held and dead, so
nothing that writes has to tell.

On PostgreSQL, too, where other gateways write: the server adds up what those indexes
hold, and compares what is searched for, but the counts stay here. Counting there takes
as long each time that a page asks as reading everything once: with 100,000 entries
0.7 s for the filters' counts, with 1,000,000 8 s, of a whole core that receipts share,
against 0.2 and 0.3 s from here (two shared cores at a load of 10; the histogram is no
argument, 5 s at 1,000,000 either way). The first count is the price: 8 and 106 s in the
background, beside receipts as quick as before, and shown as far as it has come. What
another gateway takes is here within a second, and a change within a few.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from time import perf_counter
from typing import TypeVar

from outboxd.clock import Clock
from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Texts
from outboxd.outbox.model import IndexRow, Place, State, Unsettled, UnsettledSums
from outboxd.web.pace import Pace, ReadableOutbox
from outboxd.web.searches import Searches
from outboxd.web.tally import BLOCK_ROWS, Tally
from outboxd.web.text_scan import TextScan

T = TypeVar("T")

REFRESH_MIN_S = 0.5  # between two looks for changes
CHECK_SHARE = 4  # checking old entries takes at most one part in so many of the time
SWEEP_MIN_S = 30.0  # between two counts of every block
# Gateways that share an outbox take numbers before they commit: for so long entries may
# come in among those that were read. A commit that takes longer waits for a standby.
FILLS_UP_S = 30.0
_LAST_BLOCKS = 8  # of those read first, may fill up
_SWEEP_BLOCKS = 32
_SETTLED_AFTER = 128  # blocks in a row without a gap

# Sums of the seqs that are pending, held and dead: they change when a state does.
_Signature = tuple[int, int, int]
_SETTLED: _Signature = (0, 0, 0)


class OutboxIndex:
    """A tally, and what it takes to bring it up to date."""

    def __init__(
        self,
        outbox: ReadableOutbox,
        clock: Clock,
        limit_met: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self._pace = Pace(limit_met=limit_met, counts=lambda: outbox.counts)
        self.tally = Tally(self._pace)
        self._outbox = outbox
        self._clock = clock
        self._rows: dict[int, int] = {}  # by block
        self._signatures: dict[int, _Signature] = {}  # by block, where not settled
        self._unfilled: dict[int, float] = {}  # blocks with gaps, until when they may fill up
        self._catching_up: asyncio.Task[None] | None = None
        self._dead_seen = 0  # dead letters when the last look began
        self._next_look_s = float("-inf")
        self._next_check_s = float("-inf")
        self._next_sweep_s = float("-inf")
        self._searches = Searches(outbox, self._pace, clock.monotonic_s)

    async def catch_up(self, budget_s: float) -> bool:
        """Follow the outbox for at most so long; whether everything has been seen.

        What is left goes on behind the caller's back.
        """
        task = self._catching_up
        if task is None or task.done():
            if task is not None:
                task.result()  # a fault must not stay hidden
            if self._clock.monotonic_s() < self._next_look_s and not self._operator_acted():
                return True
            task = self._catching_up = asyncio.ensure_future(self._catch_up())
        await asyncio.wait({task}, timeout=budget_s)
        if not task.done():
            return False
        task.result()
        return not self._operator_acted()  # while this look was under way

    async def find_texts(self, texts: Texts, budget_s: float) -> TextScan:
        """Where the texts stand, as far as it was found within the time; see `Searches`."""
        return await self._searches.find(texts, budget_s)

    def let_go(self) -> None:
        """Nobody looks: forget everything, and read no further. The next look reads
        everything anew."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        self._searches.forget()
        self.tally = Tally(self._pace)
        self._rows = {}
        self._signatures = {}
        self._unfilled = {}
        self._next_look_s = self._next_check_s = float("-inf")

    async def close(self) -> None:
        """Stop what goes on in the background."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)
        await self._searches.close()

    # --- following ---

    def _operator_acted(self) -> bool:
        """Dead letters went: a person retried or dropped them, and what he is told next,
        such as how many another press of the button would send, must know it."""
        return self._outbox.counts.dead < self._dead_seen

    async def _catch_up(self) -> None:
        acted, self._dead_seen = self._operator_acted(), self._outbox.counts.dead
        seqs = await self._read(lambda engine: engine.seq_range())
        present = range(seqs.start // BLOCK_ROWS, -(-seqs.stop // BLOCK_ROWS))
        for number in [number for number in self._rows if number not in present]:
            self._forget(number)
        if self.tally.forget_unused():
            self._rows.clear()
            self._signatures.clear()
        newest = max(self._rows, default=-1)
        watched_from = newest if self._rows else present.stop - _LAST_BLOCKS
        # What is new comes first: it is what one waits for.
        new = {number for number in present if number not in self._rows or number == newest}
        await self._read_blocks(new)
        await self._read_blocks(await self._filled(new))
        self._watch(number for number in new if number >= watched_from)
        start_s = self._clock.monotonic_s()
        if start_s >= self._next_check_s or acted:
            await self._read_blocks(await self._changed() & self._rows.keys())
            if self._some_are_gone():
                await self._sweep()
            # With very many pending this takes a while: then it is done less often.
            took_s = self._clock.monotonic_s() - start_s
            self._next_check_s = start_s + took_s * CHECK_SHARE
        self._next_look_s = self._clock.monotonic_s() + REFRESH_MIN_S

    async def _read_blocks(self, numbers: Iterable[int]) -> None:
        for number in sorted(numbers, reverse=True):
            rows = await self._read_block(number)
            began_s = perf_counter()
            self.tally.put(number, rows)
            self._rows[number] = len(rows)  # one without rows is known too
            signature = _signature(rows)
            if signature != self._signatures.get(number, _SETTLED):
                self._searches.look_again(number)
            if signature == _SETTLED:
                self._signatures.pop(number, None)
            else:
                self._signatures[number] = signature
            self._pace.used(perf_counter() - began_s)

    async def _read(self, verb: Callable[[Engine], T]) -> T:
        return await self._pace.read(self._outbox, verb)

    async def _read_block(self, number: int) -> list[IndexRow]:
        at_once = round(BLOCK_ROWS * self._pace.part)
        stop = (number + 1) * BLOCK_ROWS
        rows: list[IndexRow] = []
        for start in range(number * BLOCK_ROWS, stop, at_once):
            part = range(start, min(start + at_once, stop))
            while part and (some := await self._index_rows(part)):
                rows += some
                part = range(some[-1].seq + 1, part.stop)
        return rows

    async def _index_rows(self, seqs: range) -> list[IndexRow]:
        return await self._read(lambda engine: engine.index_rows(seqs))

    async def _changed(self) -> set[int]:
        """Blocks whose entries are no longer in the states that they were read in."""
        pending = await self._sums(Unsettled.DUE)
        held = await self._sums(Unsettled.HELD)
        dead = await self._sums(Unsettled.DEAD)
        found = {
            number: (pending.get(number, 0), held.get(number, 0), dead.get(number, 0))
            for number in pending.keys() | held.keys() | dead.keys()
        }
        known = self._signatures
        return {
            number
            for number in found.keys() | known.keys()
            if found.get(number, _SETTLED) != known.get(number, _SETTLED)
        }

    async def _sums(self, kind: Unsettled) -> dict[int, int]:
        """By block, the sum of the seqs that an index holds."""
        sums: Counter[int] = Counter()
        after: Place | None = Place(0, 0)
        while after is not None:
            part = await self._unsettled_sums(kind, after)
            sums.update(part.by_block)
            after = part.last
        return sums

    async def _unsettled_sums(self, kind: Unsettled, after: Place) -> UnsettledSums:
        return await self._read(lambda engine: engine.unsettled_sums(kind, BLOCK_ROWS, after))

    # --- what came in late ---

    def _watch(self, numbers: Iterable[int]) -> None:
        """These blocks were read for the first time, or were the newest."""
        until_s = self._clock.monotonic_s() + FILLS_UP_S
        self._unfilled.update(dict.fromkeys(numbers, until_s))

    async def _filled(self, just_read: Collection[int]) -> list[int]:
        """Blocks that have more entries now than when they were read."""
        now_s = self._clock.monotonic_s()
        self._unfilled = {
            number: until_s
            for number, until_s in self._unfilled.items()
            if until_s > now_s and 0 <= self._rows.get(number, -1) < BLOCK_ROWS
        }
        numbers = self._unfilled.keys() - just_read
        return await self._with_gaps(numbers) if numbers else []

    # --- what is gone ---

    def _some_are_gone(self) -> bool:
        counts = self._outbox.counts
        return len(self.tally) > counts.pending + counts.delivered + counts.dead

    async def _sweep(self) -> None:
        """Delivered entries went. Pruning takes the oldest, so look from there on,
        and everywhere only now and then."""
        now_s = self._clock.monotonic_s()
        everywhere = now_s >= self._next_sweep_s
        if everywhere:
            self._next_sweep_s = now_s + SWEEP_MIN_S
        ordered, unchanged = sorted(self._rows), 0
        for start in range(0, len(ordered), _SWEEP_BLOCKS):
            gaps = await self._with_gaps(ordered[start : start + _SWEEP_BLOCKS])
            await self._read_blocks(gaps)
            unchanged = 0 if gaps else unchanged + _SWEEP_BLOCKS
            if not self._some_are_gone() or (unchanged >= _SETTLED_AFTER and not everywhere):
                return

    async def _with_gaps(self, numbers: Collection[int]) -> list[int]:
        seqs = range(min(numbers) * BLOCK_ROWS, (max(numbers) + 1) * BLOCK_ROWS)
        counted = await self._read(lambda engine: engine.rows_by_block(BLOCK_ROWS, seqs))
        return [number for number in numbers if counted.get(number, 0) != self._rows[number]]

    def _forget(self, number: int) -> None:
        self.tally.put(number, ())
        self._rows.pop(number, None)
        self._signatures.pop(number, None)


def _signature(rows: Iterable[IndexRow]) -> _Signature:
    pending = held = dead = 0
    for row in rows:
        if row.state == State.DEAD:
            dead += row.seq
        elif row.held:
            held += row.seq
        elif row.state == State.PENDING:
            pending += row.seq
    return pending, held, dead
