"""Taking a spool file that is larger than one event may be: JSON Lines, in portions.

Each portion is committed together with how far it goes, so that a crash in the
middle makes no second event. Memory stays bounded by the portion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from outboxd.errors import EventError
from outboxd.intake.intake import Intake, Portion
from outboxd.intake.lines import PORTION_LINES, LineCutter
from outboxd.intake.producer import Producer, user
from outboxd.outbox.model import Incoming
from outboxd.slices import Slices
from outboxd.spool.content import prepare_line
from outboxd.spool.files import LargeFile, Look, SpoolFolder
from outboxd.spool.rejects import FAULTS_TOLD_MAX, BadLines, LineFault, is_beyond_help

CHECK_SLICE = 64  # lines between which the loop serves others

Thread = Callable[..., asyncio.Future[Any]]


class LargeOutcome(NamedTuple):
    """How a large file ended."""

    key: str
    good: int
    bad: BadLines
    must_wait: bool = False


async def take_large(
    folder: SpoolFolder,
    look: Look,
    door: Intake,
    progress: MutableMapping[str, int],
    is_young: Callable[[Look], bool],
    thread: Thread,
    disk_free_min: int = 0,
) -> LargeOutcome:
    """Take all of its good lines.

    Raises:
        Refused: the outbox is full; what was taken is remembered.
        FileNotFoundError: it is gone, or changed.
        OSError: it could not be read.
    """
    assert look.identity is not None
    file: LargeFile = await thread(LargeFile, folder.new, look.name, look.identity)
    bad = BadLines(folder, disk_free_min)
    try:
        key: str = await thread(file.key)
        producer = user(look.identity.owner)
        if is_young(look) and not await _ends_well(file, door, thread, producer):
            return LargeOutcome(key, 0, bad, must_wait=True)
        good = await _Portions(file, key, door, progress, bad, thread, producer).take()
        if not file.is_unchanged():
            raise FileNotFoundError(f"{look.name!r} changed while it was read")
        return LargeOutcome(key, good, bad)
    except BaseException:
        bad.discard()
        raise
    finally:
        file.close()


async def _ends_well(file: LargeFile, door: Intake, thread: Thread, producer: Producer) -> bool:
    """A file that grows shows it at its end."""
    line = await thread(file.last_line, door.event_bytes_max)
    try:
        await prepare_line(door, line, producer, told=False)
    except EventError:
        return False
    return True


class _Portions:
    def __init__(
        self,
        file: LargeFile,
        key: str,
        door: Intake,
        progress: MutableMapping[str, int],
        bad: BadLines,
        thread: Thread,
        producer: Producer,
    ) -> None:
        self._file = file
        self._producer = producer
        self._key = key
        self._door = door
        self._progress = progress
        self._bad = bad
        self._thread = thread
        self._slices = Slices()
        self._number = 0  # of the line last looked at
        self._good = 0

    async def take(self) -> int:
        cutter = LineCutter(self._door.event_bytes_max, self._bad.keep)
        position = 0
        reading = self._thread(self._file.read, position)
        try:
            while data := await reading:
                position += len(data)
                # The disk reads ahead while the outbox commits.
                reading = self._thread(self._file.read, position)
                await self._take_lines(cutter.feed(data))
                if self._bad.must_spill:
                    await self._thread(self._bad.spill)
                if self._bad.unread_from and self._bad.is_cut:
                    break  # nothing of what follows is kept
        finally:
            await asyncio.wait([reading])  # before the file is closed under it
        await self._take_lines(cutter.end())
        if not self._good and not self._bad.count:
            self._bad.add(LineFault(1, None, "there is no event in it"), b"")
        return self._good

    async def _take_lines(self, lines: list[bytes | None]) -> None:
        for start in range(0, len(lines), PORTION_LINES):
            if self._bad.unread_from:
                self._keep(lines[start:])
                return
            portion = await self._check(lines[start : start + PORTION_LINES])
            if not portion.items:
                continue
            (kept,) = await self._door.keep_portions([portion])
            if kept.lines_done:
                self._progress[self._key] = kept.lines_done
            if kept.refusal is not None:
                raise kept.refusal

    async def _check(self, lines: list[bytes | None]) -> Portion:
        """The events of these lines that were not taken before."""
        done = self._progress.get(self._key, 0)
        items: list[Incoming] = []
        numbers: list[int] = []
        self._slices.begin()
        for count, line in enumerate(lines, 1):
            self._number += 1
            await self._slices.pause()
            if line is not None and (not line or line.isspace()):
                continue
            try:
                told = self._bad.count < FAULTS_TOLD_MAX
                incoming = await prepare_line(self._door, line, self._producer, told)
            except EventError as error:
                self._bad.add(LineFault.of(self._number, error), line)
                if is_beyond_help(self._bad.count, self._good, self._bad.kept_bytes):
                    self._bad.unread_from = self._number + 1
                    self._keep(lines[count:])
                    break
            else:
                self._good += 1
                if self._number > done:
                    items.append(incoming)
                    numbers.append(self._number)
        return Portion(self._key, items, numbers, self._number)

    def _keep(self, lines: list[bytes | None]) -> None:
        """Lines that are refused unread; those too long are kept already."""
        for line in lines:
            if line is not None:
                self._bad.keep(line + b"\n")
