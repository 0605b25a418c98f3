"""How a spool file ends once the outbox has answered: unlinked, or rejected.

The order is the promise: what was committed is unlinked, the directory synced,
and only then the progress forgotten. What cannot be moved or unlinked stays,
is known, and is tried again.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from outboxd.clock import Clock
from outboxd.logger import get_logger
from outboxd.outbox.outbox import Outbox
from outboxd.spool.files import FileIdentity, Look, LookResult, SpoolFolder
from outboxd.spool.prune import Held, measure, prune, size_of
from outboxd.spool.rejects import (
    BadLines,
    LineFault,
    printable,
    reject_lines,
    reject_whole,
    tell,
    tell_immovable,
)
from outboxd.spool.waiting import SpoolWaits, WaitingRoom

Thread = Callable[..., asyncio.Future[Any]]

STUCK_MAX_S = 3600.0
_LASTING = (errno.EACCES, errno.EPERM, errno.EBUSY)

_log = get_logger()


class SpoolMetrics(Protocol):
    """What the spool counts beside the door."""

    def refused(self, reason: str, count: int) -> None: ...

    def spool_file(self, result: str, count: int = 1) -> None: ...

    def progress(self, part: str) -> None: ...


class Endings:
    """Ends files of one folder."""

    def __init__(
        self,
        count_refused: Callable[[FileIdentity | None, int, str], None],
        outbox: Outbox,
        metrics: SpoolMetrics,
        clock: Clock,
        waiting: WaitingRoom,
        pace: SpoolWaits,
        thread: Thread,
    ) -> None:
        """`count_refused`: of whose file so many events were not kept, and why."""
        self._count_refused = count_refused
        self._outbox = outbox
        self._metrics = metrics
        self._clock = clock
        self._waiting = waiting
        self._pace = pace
        self._thread = thread
        # Of each file that is not known to be gone: how many of its lines were taken.
        self.progress = dict(outbox.spool_progress)
        self._held = Held(0, 0)

    async def open(self, folder: SpoolFolder) -> None:
        """Another folder from now on."""
        self._held = await self._thread(measure, folder)

    async def remove(self, folder: SpoolFolder, looks: Sequence[Look]) -> list[str]:
        """Unlink what was taken whole; returns names that another file has by now."""
        if not looks:
            return []
        identities = {look.name: look.identity for look in looks if look.identity is not None}
        replaced = []
        stuck = set()
        for name, error in await self._thread(folder.remove, list(identities.items())):
            if error is None:
                replaced.append(name)
            else:
                stuck.add(name)
                self._stuck(name, identities[name], error)
        await self.forget([look.key for look in looks if look.name not in stuck])
        self._metrics.spool_file("taken", len(looks) - len(stuck))
        return replaced

    async def reject(
        self,
        folder: SpoolFolder,
        look: Look,
        first: LineFault,
        why: str | None = None,
        count: int = 1,
    ) -> None:
        """Move a file of which nothing was taken; `why`: all that is wrong with it."""
        now_ms = self._clock.wall_ms()
        why = tell([first], count) if why is None else why
        what = (folder, look.name, look.identity, why, now_ms)
        try:
            target = await self._thread(reject_whole, *what)
        except OSError as error:
            if self._stuck(look.name, look.identity, error) and isinstance(error, PermissionError):
                await self._thread(tell_immovable, *what)
            return
        self._waiting.remove(look.name)
        if target is not None:
            await self._rejected(folder, look, target, first, count)

    async def reject_lines(
        self, folder: SpoolFolder, look: Look, bad: BadLines, taken: int
    ) -> None:
        """Keep the lines that were not taken, and unlink the file."""
        assert look.identity is not None
        now_ms = self._clock.wall_ms()
        try:
            target = await self._thread(
                reject_lines, folder, look.name, look.identity, bad, taken, now_ms
            )
        except OSError as error:
            await self._thread(bad.discard)
            self._stuck(look.name, look.identity, error)
            return
        self._waiting.remove(look.name)
        await self._rejected(folder, look, target, bad.faults[0], bad.count)
        await self.forget([look.key])

    async def forget(self, keys: Sequence[str]) -> None:
        """These files are gone for certain."""
        known = [key for key in keys if key in self.progress]
        if known:
            await self._outbox.forget_spool(known)
        for key in known:
            del self.progress[key]

    async def _rejected(
        self, folder: SpoolFolder, look: Look, target: str, fault: LineFault, count: int
    ) -> None:
        self._count_refused(look.identity, count, fault.text())
        self._metrics.spool_file("rejected")
        _log.warning(
            "spool.file_rejected",
            file=printable(look.name),
            moved_to=printable(target),
            faults=count,
            first=fault.text(),
        )
        size_bytes = await self._thread(size_of, folder, target)
        self._held = Held(self._held.bytes + size_bytes, self._held.files + 1)
        if self._held.is_too_much():
            self._held, gone = await self._thread(prune, folder)
            if gone:  # else an administrator has seen to it meanwhile
                self._metrics.spool_file("pruned", gone)
                _log.warning(
                    "spool.rejected_pruned",
                    removed=gone,
                    left=self._held.files,
                    hint="rejected/ held too much: the oldest of whoever had most went",
                )

    def _stuck(self, name: str, identity: FileIdentity | None, error: OSError) -> bool:
        """It cannot be moved: leave it, and try again later; whether that is news."""
        look = Look(name, LookResult.TROUBLE, identity)
        wait_s = self._pace.trouble_s
        if error.errno in _LASTING:
            # It will not go by itself: twice as long each time.
            wait_s = min(STUCK_MAX_S, max(wait_s, self._waiting.waits_since_s(look)))
        news = self._waiting.add(look, wait_s, str(error))
        if news:
            _log.warning("spool.file_stuck", file=printable(name), error=str(error))
        return news
