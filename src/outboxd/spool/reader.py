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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

from outboxd.clock import Clock
from outboxd.errors import OutboxdError, Refused, SyncFailed
from outboxd.intake.intake import Intake, Portion
from outboxd.intake.lines import PORTION_LINES
from outboxd.intake.producer import user
from outboxd.logger import get_logger
from outboxd.outbox.outbox import Outbox
from outboxd.slices import Slices
from outboxd.spool.content import Content, read_content
from outboxd.spool.ending import Endings, SpoolMetrics
from outboxd.spool.files import FileIdentity, Look, LookResult, SpoolFolder, lock_spool
from outboxd.spool.largefile import take_large
from outboxd.spool.rejects import BadLines, LineFault, clean_up, printable
from outboxd.spool.turns import OwnerTurns
from outboxd.spool.waiting import SpoolWaits, WaitingRoom
from outboxd.spool.watch import SpoolWatch

CHUNK_FILES = 256  # looked at and committed together
COUNTED_FILES = 10_000  # for the metrics: a few ms, and more says no more
LARGE_AT_ONCE = 4  # large files that are read beside each other, each of another owner
OPEN_TOLD_S = 60.0  # for so long a file is still being written, then a line says so

T = TypeVar("T")
_log = get_logger()


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
        pace: SpoolWaits | None = None,
    ) -> None:
        self.disk_free_min = 0  # bytes that the lines of refused files leave free on the disk
        self._path = path
        self._door = door
        self._metrics = metrics
        self._clock = clock
        self._pace = pace = pace or SpoolWaits()
        self._folder: SpoolFolder | None = None
        self._wake = asyncio.Event()
        self.watch = SpoolWatch(self._wake.set)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="spool")
        self.waiting = WaitingRoom(clock, pace)
        self._endings = Endings(
            self._count_refused, outbox, metrics, clock, self.waiting, pace, self._thread
        )
        self._progress = self._endings.progress
        self._left_over = set(self._progress)  # of an earlier run, not seen again yet
        self._turns = OwnerTurns()
        self._slices = Slices()
        self._large: dict[str, FileIdentity] = {}
        self._large_tasks: dict[int, asyncio.Task[None]] = {}  # by the files' owners
        self._task: asyncio.Task[None] | None = None
        self._resting: dict[int, float] = {}  # owners who have their share, and until when
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
        for large in list(self._large_tasks.values()):
            large.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await large
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
        await self._endings.open(folder)
        self._turns.clear()
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
                self._rest_from_trouble()
            except Exception as error:  # a defect of ours must not end the reader in silence
                told = f"internal error: {error!r}"
                retry_s = self._pace.trouble_s
                _log.error("spool.failed", error=told, retry_s=retry_s, exc_info=error)
                self._rest_from_trouble()
            await self._sleep()

    def _rest_from_trouble(self) -> None:
        self._scan_at_s = self._clock.monotonic_s() + self._pace.trouble_s
        self.watch.scan_due = False

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
        if self.watch.names or self.watch.scan_due or self._turns:
            return now_s
        return min(self.waiting.next_s(), self._scan_at_s, *self._resting.values())

    async def _turn(self) -> None:
        """Whatever is due now: what arrived, then some files of each owner."""
        assert self._folder is not None
        now_s = self._clock.monotonic_s()
        if now_s < self._refused_until_s:
            return
        for owner in [owner for owner, until_s in self._resting.items() if until_s <= now_s]:
            del self._resting[owner]
            self.watch.scan_due = True
        if self.watch.scan_due or now_s >= self._scan_at_s:
            await self._scan()
        names = {*self.watch.take(), *self.waiting.due()}
        if names:
            self._turns.add(await self._thread(self._folder.owners, sorted(names)))
        if await self._take() and not self._turns:
            self._refused_wait_s = 0.0
            if self._turns.overflowed:
                self._turns.clear()
                self.watch.scan_due = True
            else:
                await self._forget_left_over()

    async def _scan(self) -> None:
        """Everything in `new/`."""
        assert self._folder is not None
        if not await self._thread(self._folder.is_current):
            _log.warning("spool.reopened", path=self._path)
            await self._open()
        self.watch.scan_due = False
        self._scan_at_s = self._clock.monotonic_s() + self._rescan_s
        found, whole = await self._thread(self._folder.owned, self.waiting.resting())
        self._turns.add(found)
        self._turns.overflowed = self._turns.overflowed or not whole

    async def _forget_left_over(self) -> None:
        """Progress of files that were unlinked just before a crash."""
        if self._left_over and not self.waiting and not self._large:
            assert self._folder is not None
            await self._thread(self._folder.sync)
            gone = list(self._left_over)
            self._left_over.clear()
            await self._endings.forget(gone)

    # --- small files ---

    async def _take(self) -> bool:
        """Some files of each owner; False where the intake refused."""
        assert self._folder is not None
        chunk = [
            (owner, name)
            for owner, name in self._turns.take(CHUNK_FILES)
            if name not in self._large and owner not in self._resting
        ]
        if not chunk:
            return True
        refusal = self._door.admission.refusal()
        if refusal is None:
            names = [name for _, name in chunk]
            looks = await self._thread(self._folder.look, names, self._door.event_bytes_max)
            self._turns.put_back(chunk[len(looks) :])
            refusal = await self._take_looks(looks)
        if refusal is not None:
            self._refuse(refusal)
        return refusal is None

    async def _take_looks(self, looks: Sequence[Look]) -> Refused | None:
        ready: list[_Taking] = []
        events = 0
        self._slices.begin()
        for look in looks:
            self._metrics.progress("spool")
            taking = await self._judge(look)
            if taking is not None:
                ready.append(taking)
                events += len(taking.portion.items)
            if events >= PORTION_LINES:
                refusal = await self._commit(ready)
                if refusal is not None:
                    return refusal
                ready, events = [], 0
                self._slices.begin()
            await self._slices.pause()
        return await self._commit(ready)

    async def _judge(self, look: Look) -> _Taking | None:
        """What of it is to be committed; None where it waits, or is done with."""
        if look.verdict in (LookResult.READ, LookResult.LARGE) and self._may_be_open(look):
            look = look._replace(verdict=LookResult.OPEN)
        if look.verdict is not LookResult.READ:
            await self._not_read(look)
            return None
        taking = await self._read(look)
        if taking is not None and taking.content.faults and not taking.content.items:
            # At once, so that no crash makes it be read again.
            await self._reject(taking)
            return None
        return taking

    def _may_be_open(self, look: Look) -> bool:
        """Whether somebody may still write to it, where the system does not tell."""
        assert look.identity is not None
        if look.settled:
            return False
        if self.watch.is_written(look.name, look.identity.size_bytes):
            return True
        # What was there before the watch: as long as it was changed just now.
        changed_ms = look.identity.changed_ns / 1e6
        return changed_ms < self.watch.complete_since_ms and self.waiting.is_young(look)

    async def _read(self, look: Look) -> _Taking | None:
        """Its events; None where it must wait."""
        assert look.identity is not None, "what was read has been looked at"
        producer = user(look.identity.owner)
        content = await read_content(self._door, look.data, producer, self._slices)
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
                if not self._only_its_owner_rests(look, kept.refusal):
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
        bad = BadLines(self._folder, self.disk_free_min)
        for fault, line in content.faults:
            bad.add(fault, line)
        if content.unread:
            bad.unread_from = content.lines + 1
            bad.keep(content.unread)
        if content.items:
            await self._endings.reject_lines(self._folder, look, bad, len(content.items))
        else:
            await self._endings.reject(self._folder, look, bad.faults[0], bad.text(), bad.count)

    # --- what is not read ---

    async def _not_read(self, look: Look) -> None:
        assert self._folder is not None
        name = look.name
        match look.verdict:
            case LookResult.GONE:
                self.waiting.remove(name)
            case LookResult.LARGE:
                self._start_large(look)
            case LookResult.OPEN:
                reason = "someone still writes to it"
                if self.waiting.named_since_s(name) >= OPEN_TOLD_S:
                    reason += f", for more than {OPEN_TOLD_S:.0f} s"
                # That it is closed wakes us; where there is no watch, this does.
                if self.waiting.add(look, self._pace.grow_s, reason) and "more" in reason:
                    _log.warning("spool.file_open", file=printable(name), reason=reason)
            case LookResult.CHANGING:
                self.waiting.add(look, self._pace.look_again_s, "it changes while it is read")
            case LookResult.TROUBLE:
                _log.warning("spool.file_unread", file=printable(name), error=look.reason)
                self.waiting.add(look, self._pace.trouble_s, look.reason)
            case LookResult.LINKED:
                if self.waiting.waits_since_s(look) < self._pace.link_s:
                    self.waiting.add(look, self.waiting.look_again_s(look), "it has a second name")
                else:
                    reason = "it has more than one name (hard links); not read"
                    hint = "rename it into new/, or unlink the other name"
                    await self._endings.reject(self._folder, look, LineFault(0, None, reason, hint))
            case LookResult.UNREADABLE:
                if self.waiting.waits_since_s(look) < self._pace.grow_s:
                    self.waiting.add(look, self.waiting.look_again_s(look), look.reason)
                else:
                    reason = f"the agent may not read it: {look.reason}"
                    hint = "give the agent's group the right to read, before the rename"
                    await self._endings.reject(self._folder, look, LineFault(0, None, reason, hint))
            case _:
                hint = "a spool file is a regular file with one event, or JSON Lines"
                fault = LineFault(0, None, f"{look.reason}; not read", hint)
                await self._endings.reject(self._folder, look, fault)

    def _only_its_owner_rests(self, look: Look, refusal: Refused) -> bool:
        """Where the outbox has room for others, nobody else's files wait."""
        if self._door.admission.refusal() is not None:
            return False
        assert look.identity is not None
        self._door.refused(refusal, 1, user(look.identity.owner))
        self._resting[look.identity.owner] = self._clock.monotonic_s() + self._pace.share_s
        return True

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
        self._turns.clear()
        self.watch.scan_due = True

    def _count_refused(self, identity: FileIdentity | None, count: int, why: str) -> None:
        """So many events of a file were not kept: its owner is who handed them in."""
        if identity is None:
            self._metrics.refused("invalid", count)
        else:
            self._door.count_refused(user(identity.owner), "invalid", count, why)

    # --- large files ---

    def _start_large(self, look: Look) -> None:
        assert look.identity is not None
        self._large[look.name] = look.identity
        self._start_larges()

    def _start_larges(self) -> None:
        """One large file of each owner at a time, beside the small ones."""
        for name, identity in self._large.items():
            if len(self._large_tasks) >= LARGE_AT_ONCE:
                return
            if identity.owner not in self._large_tasks and self._folder is not None:
                take = self._take_large(self._folder, Look(name, LookResult.LARGE, identity))
                self._large_tasks[identity.owner] = asyncio.create_task(take, name="spool-large")

    async def _take_large(self, folder: SpoolFolder, look: Look) -> None:
        assert look.identity is not None
        try:
            await self._take_one_large(folder, look)
        except FileNotFoundError:
            self.waiting.remove(look.name)
            self.watch.names[look.name] = None
        except Refused as refusal:
            if self._only_its_owner_rests(look, refusal):
                self.waiting.add(look, self._pace.share_s, refusal.message)
            else:
                self._refuse(refusal)
                self.waiting.add(look, self._refused_wait_s, refusal.message)
        except SyncFailed:
            return  # the outbox has told the agent, which stops
        except (OSError, OutboxdError) as error:
            _log.warning("spool.file_unread", file=printable(look.name), error=str(error))
            self.waiting.add(look, self._pace.trouble_s, str(error))
        finally:
            del self._large_tasks[look.identity.owner]
            self._large.pop(look.name, None)
            self._wake.set()
        # To the end of the round: whoever has waited longest is the first in `_large`.
        self._start_larges()

    async def _take_one_large(self, folder: SpoolFolder, look: Look) -> None:
        outcome = await take_large(
            folder,
            look,
            self._door,
            self._progress,
            self.waiting.is_young,
            self._thread,
            self.disk_free_min,
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
            first = LineFault(0, None, reason)
            why = f"{first.text()}\n{bad.text()}"
            await self._endings.reject(folder, look, first, why, bad.count)

    # --- small helpers ---

    def _thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
