"""Keeps a tally of the outbox up to date without ever making its writer wait long.

The one connection belongs to the writer: so every look is a slice of a few
milliseconds, with a pause after it, and what was seen is kept. Everything is
read once, newest first; after that only the blocks that changed. Which those
are is found from the small indexes of what is pending, held and dead, so
nothing that writes has to tell.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol, TypeVar

import msgspec

from outboxd.clock import Clock
from outboxd.outbox.model import Counts
from outboxd.web.tally import BLOCK_ROWS, Row, Tally
from outboxd.web.text_scan import TextScan

T = TypeVar("T")

PAUSE_S = 0.002  # after each slice
REFRESH_MIN_S = 0.5  # between two looks for changes
CHECK_SHARE = 4  # checking old entries takes at most one part in so many of the time
SWEEP_MIN_S = 30.0  # between two counts of every block
TEXTS_KEPT = 3
SLICE_ROWS = 6000  # of an index
_SWEEP_BLOCKS = 8
_SETTLED_AFTER = 32  # blocks in a row without a gap

_ROWS = (
    "SELECT json_group_array(json_array(seq, received_at, event_type, severity, state, held,"
    " scope)) FROM entries WHERE seq >= ? AND seq < ?"
)
# What a small index holds, in its own order, from a place in it on.
_PENDING = (
    "SELECT due_at AS place, seq FROM entries INDEXED BY entries_due"
    " WHERE state = 'pending' AND held = 0 AND (due_at, seq) > (?1, ?2)"
    " ORDER BY due_at, seq LIMIT ?3"
)
_HELD = (
    "SELECT ?1 AS place, seq FROM entries INDEXED BY entries_held"
    " WHERE held = 1 AND seq > ?2 ORDER BY seq LIMIT ?3"
)
_DEAD = (
    "SELECT ?1 AS place, seq FROM entries INDEXED BY entries_dead"
    " WHERE state = 'dead' AND seq > ?2 ORDER BY seq LIMIT ?3"
)
_COUNTS = "SELECT seq / ?, count(*) FROM entries WHERE seq >= ? AND seq < ? GROUP BY 1"

_decode_rows = msgspec.json.Decoder(list[Row]).decode
_decode_pairs = msgspec.json.Decoder(list[tuple[int, int]]).decode

# Sums of the seqs that are pending, held and dead: they change when a state does.
_Signature = tuple[int, int, int]
_SETTLED: _Signature = (0, 0, 0)


class ReadableOutbox(Protocol):
    """What is read of the outbox."""

    counts: Counts

    async def read(self, look: Callable[[sqlite3.Connection], T]) -> T: ...


class OutboxIndex:
    """A tally, and what it takes to bring it up to date."""

    def __init__(self, outbox: ReadableOutbox, clock: Clock) -> None:
        self.tally = Tally()
        self._outbox = outbox
        self._clock = clock
        self._rows: dict[int, int] = {}  # by block
        self._signatures: dict[int, _Signature] = {}  # by block, where not settled
        self._catching_up: asyncio.Task[None] | None = None
        self._next_look_s = float("-inf")
        self._next_check_s = float("-inf")
        self._next_sweep_s = float("-inf")
        self._texts: dict[str, TextScan] = {}

    async def catch_up(self, budget_s: float) -> bool:
        """Follow the outbox for at most so long; whether everything has been seen.

        What is left goes on behind the caller's back.
        """
        task = self._catching_up
        if task is None or task.done():
            if task is not None:
                task.result()  # a fault must not stay hidden
            if self._clock.monotonic_s() < self._next_look_s:
                return True
            task = self._catching_up = asyncio.ensure_future(self._catch_up())
        await asyncio.wait({task}, timeout=budget_s)
        if task.done():
            task.result()
        return task.done()

    async def find_text(self, text: str, budget_s: float) -> tuple[dict[int, set[int]], bool]:
        """Where the text stands, as far as it was found within the time; and whether
        everything was looked at. Ask again to go on."""
        scan = self._texts.pop(text, None) or TextScan(text)
        self._texts[text] = scan  # now the latest
        while len(self._texts) > TEXTS_KEPT:
            del self._texts[next(iter(self._texts))]
        end_s = time.perf_counter() + budget_s
        while not (done := await self._outbox.read(scan.step)):
            if time.perf_counter() > end_s:
                break
            await asyncio.sleep(PAUSE_S)
        return scan.places, done

    async def close(self) -> None:
        """Stop what goes on in the background."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)

    # --- following ---

    async def _catch_up(self) -> None:
        low, high = await self._outbox.read(_bounds)
        present = range(low // BLOCK_ROWS, high // BLOCK_ROWS + 1) if high else range(0)
        for number in [number for number in self._rows if number not in present]:
            self._forget(number)
        if self.tally.forget_unused():
            self._rows.clear()
            self._signatures.clear()
        newest = max(self._rows, default=-1)
        # What is new comes first: it is what one waits for.
        new = {number for number in present if number not in self._rows or number == newest}
        await self._read_blocks(new)
        start_s = self._clock.monotonic_s()
        if start_s >= self._next_check_s:
            await self._read_blocks(await self._changed() & self._rows.keys())
            if self._some_are_gone():
                await self._sweep()
            # With very many pending this takes a while: then it is done less often.
            took_s = self._clock.monotonic_s() - start_s
            self._next_check_s = start_s + took_s * CHECK_SHARE
        self._next_look_s = self._clock.monotonic_s() + REFRESH_MIN_S

    async def _read_blocks(self, numbers: Iterable[int]) -> None:
        for number in sorted(numbers, reverse=True):
            start = number * BLOCK_ROWS
            text = await self._text(_ROWS, (start, start + BLOCK_ROWS))
            rows = _decode_rows(text)
            self.tally.put(number, rows)
            self._rows[number] = len(rows)  # one without rows is known too
            signature = _signature(rows)
            if signature == _SETTLED:
                self._signatures.pop(number, None)
            else:
                self._signatures[number] = signature
            await asyncio.sleep(PAUSE_S)

    async def _changed(self) -> set[int]:
        """Blocks whose entries are no longer in the states that they were read in."""
        sums: list[dict[int, int]] = []
        for query in (_PENDING, _HELD, _DEAD):
            sums.append(await self._sums(query))
        found = {
            number: (sums[0].get(number, 0), sums[1].get(number, 0), sums[2].get(number, 0))
            for number in set().union(*sums)
        }
        known = self._signatures
        return {
            number
            for number in found.keys() | known.keys()
            if found.get(number, _SETTLED) != known.get(number, _SETTLED)
        }

    async def _sums(self, query: str) -> dict[int, int]:
        """By block, the sum of the seqs that an index holds."""
        sums: dict[int, int] = {}
        after = (0, 0)
        while True:
            text = await self._text(
                f"SELECT json_group_array(json_array(place, seq)) FROM ({query})",
                (*after, SLICE_ROWS),
            )
            pairs = _decode_pairs(text)
            for _, seq in pairs:
                number = seq // BLOCK_ROWS
                sums[number] = sums.get(number, 0) + seq
            if len(pairs) < SLICE_ROWS:
                return sums
            after = pairs[-1]
            await asyncio.sleep(PAUSE_S)

    async def _text(self, query: str, values: tuple[int, ...]) -> str:
        """The answer of a query that makes one text of many rows."""
        text: str = await self._outbox.read(
            lambda connection: connection.execute(query, values).fetchone()[0]
        )
        return text

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
        bounds = (BLOCK_ROWS, min(numbers) * BLOCK_ROWS, (max(numbers) + 1) * BLOCK_ROWS)
        counted = dict(
            await self._outbox.read(
                lambda connection: connection.execute(_COUNTS, bounds).fetchall()
            )
        )
        await asyncio.sleep(PAUSE_S)
        return [number for number in numbers if counted.get(number, 0) != self._rows[number]]

    def _forget(self, number: int) -> None:
        self.tally.put(number, ())
        self._rows.pop(number, None)
        self._signatures.pop(number, None)


def _signature(rows: Iterable[Row]) -> _Signature:
    pending = held = dead = 0
    for row in rows:
        if row[4] == "dead":
            dead += row[0]
        elif row[5]:
            held += row[0]
        elif row[4] == "pending":
            pending += row[0]
    return pending, held, dead


def _bounds(connection: sqlite3.Connection) -> tuple[int, int]:
    # Two queries: together in one, SQLite would look at every row.
    (low,) = connection.execute("SELECT min(seq) FROM entries").fetchone()
    (high,) = connection.execute("SELECT max(seq) FROM entries").fetchone()
    return low or 0, high or 0
