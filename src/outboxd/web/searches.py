"""The texts that somebody looks for: one scan for each, shared, and bounded.

All scans together take one slice of the writer's time after the other, in their
turns, and only while somebody asks: a search that its browser gave up ends within
seconds. It never keeps more than a few.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Texts
from outboxd.web.pace import Pace, ReadableOutbox
from outboxd.web.text_scan import TextScan

WANTED_S = 3.0  # a page asks again sooner than this
TEXTS_KEPT = 8
_LOOK_S = 0.05


class Searches:
    """Scans by their texts."""

    def __init__(
        self, outbox: ReadableOutbox, pace: Pace, monotonic_s: Callable[[], float]
    ) -> None:
        self._outbox = outbox
        self._pace = pace
        self._monotonic_s = monotonic_s
        self._scans: dict[Texts, TextScan] = {}  # asked for last comes last
        self._asked_s: dict[Texts, float] = {}
        self._running: asyncio.Task[None] | None = None

    async def find(self, texts: Texts, budget_s: float) -> TextScan:
        """The scan, after some time at most; ask again to keep it going."""
        scan = self._scans.pop(texts, None) or TextScan(texts)
        self._scans[texts] = scan
        self._asked_s[texts] = self._monotonic_s()
        while len(self._scans) > TEXTS_KEPT:
            self._drop(next(iter(self._scans)))
        await self._outbox.read(self._step(scan))  # what came in since, at least
        end_s = time.monotonic() + budget_s
        while not scan.is_done and time.monotonic() < end_s:
            if self._running is None or self._running.done():
                if self._running is not None:
                    self._running.result()  # a fault must not stay hidden
                self._running = asyncio.ensure_future(self._run())
            await asyncio.wait({self._running}, timeout=_LOOK_S)
        return scan

    def look_again(self, block: int) -> None:
        """Entries of a block have changed: errors and statuses may stand there now."""
        for scan in self._scans.values():
            scan.look_again(block)

    def forget(self) -> None:
        """Let go of all: nobody looks any more."""
        for texts in list(self._scans):
            self._drop(texts)

    async def close(self) -> None:
        """Stop what goes on in the background."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        while wanted := self._wanted():
            for scan in wanted:
                await self._pace.read(self._outbox, self._step(scan))

    def _step(self, scan: TextScan) -> Callable[[Engine], bool]:
        part = self._pace.part
        return lambda engine: scan.step(engine, part)

    def _wanted(self) -> list[TextScan]:
        since_s = self._monotonic_s() - WANTED_S
        return [
            scan
            for texts, scan in self._scans.items()
            if not scan.is_done and self._asked_s[texts] >= since_s
        ]

    def _drop(self, texts: Texts) -> None:
        del self._scans[texts]
        del self._asked_s[texts]
