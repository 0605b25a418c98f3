"""The spool reader: takes files from `new/` into the outbox.

The order of steps makes it crash-safe: commit the events together with how far
the file was taken, unlink, sync the directory, forget the progress. A crash
between two of them leaves a file that is known, and is unlinked unread. It
must never lose a good event for a bad one, never follow what a stranger put
there, and never keep other producers waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import structlog

from outboxd.clock import Clock
from outboxd.errors import OutboxdError, Refused, SyncFailed
from outboxd.intake.intake import Intake, Portion
from outboxd.intake.lines import PORTION_LINES
from outboxd.intake.producer import user
from outboxd.outbox.outbox import Outbox
from outboxd.spool.content import Content, read_content
from outboxd.spool.ending import Endings, SpoolMetrics
from outboxd.spool.files import Identity, Look, SpoolFolder, Verdict, lock_spool
from outboxd.spool.largefile import take_large
from outboxd.spool.rejects import BadLines, Fault, clean_up, printable
from outboxd.spool.waiting import Pace, WaitingRoom
from outboxd.spool.watch import SpoolWatch

CHUNK_FILES = 256  # looked at and committed together
SORTED_NAMES = 16_384  # of a scan: files are taken in the order of their names within these
COUNTED_FILES = 10_000  # for the metrics: a few ms, and more says no more
PARSE_SLICE = 32  # files between which the loop serves others

T = TypeVar("T")
_log = structlog.get_logger()


class _Taking(NamedTuple):
    """A small file on its way through the outbox."""

    look: Look
    content: Content
    portion: Portion  # what of it was not taken before


class SpoolReader:
    """Reads one spool directory until it is stopped."""

    def __init__(
        self,
        path: str,
        door: Intake,
        outbox: Outbox,
        metrics: SpoolMetrics,
        clock: Clock,
        pace: Pace | None = None,
    ) -> None:
        self._path = path
        self._door = door
        self._metrics = metrics
        self._clock = clock
        self._pace = pace = pace or Pace()
        self._folder: SpoolFolder | None = None
        self._wake = asyncio.Event()
        self.watch = SpoolWatch(self._wake.set)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="spool")
        self.waiting = WaitingRoom(clock, pace)
        self._endings = Endings(outbox, metrics, clock, self.waiting, pace, self._thread)
        self._progress = self._endings.progress
        self._left_over = set(self._progress)  # of an earlier run, not seen again yet
        self._large: dict[str, Identity] = {}
        self._large_task: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._refused_until_s = 0.0
        self._refused_wait_s = 0.0
        self._scan_at_s = 0.0
        self._rescan_s = pace.rescan_s
        self._idle = False
        self._lock: int | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do but wait."""
        return self._idle and not self._large

    @property
    def refused(self) -> bool:
        """Whether files wait because the intake refuses."""
        return self._refused_wait_s > 0

    def files_waiting(self) -> int:
        """How many files lie in `new/` now, counted up to a limit."""
        with os.scandir(f"{self._path}/new") as found:
            names = (entry.name for entry in islice(found, COUNTED_FILES))
            return sum(not name.startswith(".") for name in names)

    async def start(self) -> None:
        """Make and open the directories; raises ConfigError."""
        await self._open()
        self._lock = lock_spool(self._path)
        self._task = asyncio.create_task(self._run(), name="spool")

    async def stop(self) -> None:
        """Finish the chunk in hand, and close."""
        task, self._task = self._task, None
        self._wake.set()
        if task is not None:
            await task
        if self._large_task is not None:
            self._large_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._large_task
        self.watch.stop()
        await asyncio.to_thread(self._threads.shutdown)
        if self._folder is not None:
            self._folder.close()
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- the loop ---

    async def _open(self) -> None:
        folder = await self._thread(SpoolFolder, self._path)
        if self._folder is not None:
            self._folder.close()
        self._folder = folder
        await self._thread(clean_up, folder)
        try:
            self.watch.start(f"{self._path}/new")
            self._rescan_s = self._pace.rescan_s
        except OSError as error:
            # No watch to be had: look often instead.
            self._rescan_s = min(1.0, self._pace.rescan_s)
            _log.warning("spool.unwatched", error=str(error), rescan_s=self._rescan_s)
        self.watch.scan_due = True

    async def _run(self) -> None:
        while self._task is not None:
            self._metrics.progress("spool")
            try:
                await self._turn()
            except SyncFailed:
                return  # the outbox has told the agent, which stops
            except (OSError, OutboxdError) as error:
                _log.warning("spool.failed", error=str(error), retry_s=self._pace.trouble_s)
                self._scan_at_s = self._clock.monotonic_s() + self._pace.trouble_s
                self.watch.scan_due = False
            await self._sleep()

    async def _sleep(self) -> None:
        if self._task is None:
            return
        self._idle = True
        wait_s = max(0.0, self._next_s() - self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        self._idle = False
        self._wake.clear()

    def _next_s(self) -> float:
        now_s = self._clock.monotonic_s()
        if now_s < self._refused_until_s:
            return self._refused_until_s
        if self.watch.names or self.watch.scan_due:
            return now_s
        return min(self.waiting.next_s(), self._scan_at_s)

    async def _turn(self) -> None:
        """Whatever is due now."""
        now_s = self._clock.monotonic_s()
        if now_s < self._refused_until_s:
            return
        if self.watch.scan_due or now_s >= self._scan_at_s:
            await self._scan()
        else:
            await self._take_due()

    async def _take_due(self) -> None:
        await self._take(sorted({*self.watch.take(), *self.waiting.due()}))

    async def _scan(self) -> None:
        """Everything in `new/`, in chunks, and what arrives meanwhile between them."""
        assert self._folder is not None
        if not await self._thread(self._folder.is_current):
            _log.warning("spool.reopened", path=self._path)
            await self._open()
        self.watch.scan_due = False
        self._scan_at_s = self._clock.monotonic_s() + self._rescan_s
        chunks = self._folder.names(SORTED_NAMES)
        while self._task is not None:
            names = await self._thread(_next_chunk, chunks)
            if names is None:
                self._refused_wait_s = 0.0
                await self._forget_left_over()
                return
            if not await self._take([name for name in names if self.waiting.may_look(name)]):
                return
            if self.watch.names:
                await self._take_due()

    async def _forget_left_over(self) -> None:
        """Progress of files that were unlinked just before a crash."""
        if self._left_over and not self.waiting and not self._large:
            assert self._folder is not None
            await self._thread(self._folder.sync)
            gone = list(self._left_over)
            self._left_over.clear()
            await self._endings.forget(gone)

    # --- small files ---

    async def _take(self, names: Sequence[str]) -> bool:
        """Take these files; False where the intake refused."""
        assert self._folder is not None
        names = [name for name in names if name not in self._large]
        position = 0
        while position < len(names) and self._task is not None:
            refusal = self._door.admission.refusal()
            if refusal is not None:
                self._refuse(refusal)
                return False
            chunk = names[position : position + CHUNK_FILES]
            looks = await self._thread(self._folder.look, chunk, self._door.event_bytes_max)
            position += len(looks)
            refusal = await self._take_looks(looks)
            self._metrics.progress("spool")
            if refusal is not None:
                self._refuse(refusal)
                return False
        return True

    async def _take_looks(self, looks: Sequence[Look]) -> Refused | None:
        ready: list[_Taking] = []
        events = 0
        for number, look in enumerate(looks, 1):
            if look.verdict is not Verdict.READ:
                await self._not_read(look)
                continue
            taking = self._read(look)
            if taking is not None:
                ready.append(taking)
                events += len(taking.portion.items)
            if events >= PORTION_LINES:
                refusal = await self._commit(ready)
                if refusal is not None:
                    return refusal
                ready, events = [], 0
            elif number % PARSE_SLICE == 0:
                await asyncio.sleep(0)
        return await self._commit(ready)

    def _read(self, look: Look) -> _Taking | None:
        """Its events; None where it must wait."""
        assert look.identity is not None, "what was read has been looked at"
        content = read_content(self._door, look.data, user(look.identity.owner))
        if content.faults and self.waiting.is_young(look):
            self.waiting.add(look, self._pace.grow_s, "it does not parse and may still be growing")
            return None
        if len(content.items) > PORTION_LINES:
            # One commit for so many would keep the receipts of others waiting.
            self._start_large(look)
            return None
        self._left_over.discard(look.key)
        items, numbers = content.items, content.line_numbers
        done = self._progress.get(look.key, 0)
        if done:
            start = bisect_right(numbers, done)
            items, numbers = items[start:], numbers[start:]
        return _Taking(look, content, Portion(look.key, items, numbers, content.lines))

    async def _commit(self, ready: Sequence[_Taking]) -> Refused | None:
        """Commit, then unlink and reject, then forget."""
        answers = await self._door.keep_portions([taking.portion for taking in ready])
        refusal: Refused | None = None
        clean: list[Look] = []
        for taking, kept in zip(ready, answers, strict=True):
            look = taking.look
            if kept.lines_done and taking.portion.items:
                self._progress[look.key] = kept.lines_done
            if kept.refusal is not None:
                refusal = kept.refusal
                continue
            self.waiting.remove(look.name)
            if not taking.content.faults:
                clean.append(look)
        await self._remove(clean)
        for taking, kept in zip(ready, answers, strict=True):
            if taking.content.faults and kept.refusal is None:
                await self._reject(taking)
        return refusal

    async def _remove(self, looks: Sequence[Look]) -> None:
        assert self._folder is not None
        for name in await self._endings.remove(self._folder, looks):
            self.watch.names[name] = None

    async def _reject(self, taking: _Taking) -> None:
        assert self._folder is not None
        look, content = taking.look, taking.content
        if not content.items:
            faults = [fault for fault, _ in content.faults]
            await self._endings.reject(self._folder, look, faults, len(faults))
            return
        bad = BadLines(self._folder)
        for fault, line in content.faults:
            bad.add(fault, line)
        await self._endings.reject_lines(self._folder, look, bad, len(content.items))

    # --- what is not read ---

    async def _not_read(self, look: Look) -> None:
        assert self._folder is not None
        name = look.name
        match look.verdict:
            case Verdict.GONE:
                self.waiting.remove(name)
            case Verdict.LARGE:
                self._start_large(look)
            case Verdict.CHANGING:
                self.waiting.add(look, self._pace.look_again_s, "it changes while it is read")
            case Verdict.TROUBLE:
                _log.warning("spool.file_unread", file=printable(name), error=look.reason)
                self.waiting.add(look, self._pace.trouble_s, look.reason)
            case Verdict.LINKED:
                if self.waiting.waits_since_s(look) < self._pace.link_s:
                    self.waiting.add(look, self.waiting.look_again_s(look), "it has a second name")
                else:
                    reason = "it has more than one name (hard links); not read"
                    hint = "rename it into new/, or unlink the other name"
                    await self._endings.reject(self._folder, look, [Fault(0, None, reason, hint)])
            case Verdict.UNREADABLE:
                if self.waiting.waits_since_s(look) < self._pace.grow_s:
                    self.waiting.add(look, self.waiting.look_again_s(look), look.reason)
                else:
                    reason = f"the agent may not read it: {look.reason}"
                    hint = "give the agent's group the right to read, before the rename"
                    await self._endings.reject(self._folder, look, [Fault(0, None, reason, hint)])
            case _:
                hint = "a spool file is a regular file with one event, or JSON Lines"
                fault = Fault(0, None, f"{look.reason}; not read", hint)
                await self._endings.reject(self._folder, look, [fault])

    def _refuse(self, refusal: Refused) -> None:
        """The outbox takes nothing: files stay where they are."""
        pace = self._pace
        if not self._refused_wait_s:
            _log.warning("spool.waiting", reason=refusal.message)
            self._door.refused(refusal, 1)
        self._refused_wait_s = min(
            pace.refused_max_s, max(pace.refused_min_s, self._refused_wait_s * 2)
        )
        self._refused_until_s = self._clock.monotonic_s() + self._refused_wait_s
        self.watch.scan_due = True

    # --- large files ---

    def _start_large(self, look: Look) -> None:
        assert look.identity is not None
        self._large[look.name] = look.identity
        if self._large_task is None or self._large_task.done():
            self._large_task = asyncio.create_task(self._take_larges(), name="spool-large")

    async def _take_larges(self) -> None:
        """One large file after the other, beside the small ones."""
        while self._large and self._folder is not None:
            name, identity = next(iter(self._large.items()))
            look = Look(name, Verdict.LARGE, identity)
            try:
                await self._take_one_large(self._folder, look)
            except FileNotFoundError:
                self.waiting.remove(name)
                self.watch.names[name] = None
            except Refused as refusal:
                self._refuse(refusal)
                self.waiting.add(look, self._refused_wait_s, refusal.message)
            except SyncFailed:
                return
            except (OSError, OutboxdError) as error:
                _log.warning("spool.file_unread", file=printable(name), error=str(error))
                self.waiting.add(look, self._pace.trouble_s, str(error))
            finally:
                self._large.pop(name, None)
                self._wake.set()

    async def _take_one_large(self, folder: SpoolFolder, look: Look) -> None:
        outcome = await take_large(
            folder, look, self._door, self._progress, self.waiting.is_young, self._thread
        )
        self._left_over.discard(outcome.key)
        look = look._replace(key=outcome.key)
        bad = outcome.bad
        if outcome.must_wait:
            reason = "its end does not parse; it may still be growing"
            self.waiting.add(look, self._pace.grow_s, reason)
        elif not bad.count:
            self.waiting.remove(look.name)
            await self._remove([look])
        elif outcome.good:
            await self._endings.reject_lines(folder, look, bad, outcome.good)
        else:
            await self._thread(bad.discard)
            size = 0 if look.identity is None else look.identity.size_bytes
            reason = f"its {size} bytes are more than one event may have, so it is JSON Lines"
            faults = [Fault(0, None, reason), *bad.faults]
            await self._endings.reject(folder, look, faults, bad.count + 1)

    # --- small helpers ---

    def _thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _next_chunk(chunks: Iterator[list[str]]) -> list[str] | None:
    return next(chunks, None)
