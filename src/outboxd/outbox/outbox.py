"""The outbox as the agent's event loop sees it.

Every verb hands an operation to the writer's thread and waits; none blocks the
loop. Keeps the counts in memory. Must never promise what is not committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, TypeVar

from outboxd.errors import DiskShort, OutboxdError, SyncFailed
from outboxd.outbox.engine import Engine
from outboxd.outbox.listing import Listing, Page
from outboxd.outbox.model import (
    Claimed,
    Counts,
    Damage,
    DestinationHold,
    Entry,
    EntryFilter,
    Fetched,
    Incoming,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
)
from outboxd.outbox.writer import Accept, ChangeOperation, Claim, Exchange, Operation, Read, Writer

T = TypeVar("T")

# Between two slices of a scan: its share of the writer stays under a third.
SCAN_PAUSE_S = 0.008
# What a stop waits for the connections of a shared outbox, all of them together.
SERVER_PATIENCE_S = 1.0


class Outbox:
    """An open outbox with its writer running. Made by `Outbox.start`."""

    def __init__(
        self,
        engine: Engine,
        make_writer: Callable[..., Writer] = Writer,
        delivering: Engine | None = None,
        reading: Engine | None = None,
    ) -> None:
        """An engine that several may use at once has connections of its own for what
        concerns delivery, so that a lost lease never rolls back a receipt, and for what
        only reads; else all of it is the one `engine`'s."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.path = engine.path
        self.counts: Counts = engine.counts()
        self.waiting: Mapping[str, int] = engine.waiting()  # pending, by producer
        self.damage: Damage = engine.damage()
        self.destination_hold: DestinationHold | None = engine.destination_hold()
        self.oldest_pending_at: int | None = engine.oldest_pending_at()
        self.oldest_due_at: int | None = engine.oldest_pending_at(with_held=False)
        self.last_dead_at: int | None = engine.last_dead_at()
        self.spool_progress: dict[str, int] = engine.spool_progress()
        # Called on the loop: events came in (True: and the commit took what there was
        # for the standing offer, see `claim_next`); a commit took so long for so many
        # rows; the disk failed, or damage was found, and the agent must stop.
        self.on_arrival: Callable[[bool], None] = _nothing
        self.on_commit: Callable[[float, int], None] = _nothing
        self.on_fatal: Callable[[OutboxdError], None] = _nothing
        self.on_damage: Callable[[int, str], None] = _nothing
        self.fatal: OutboxdError | None = None
        self._writer = make_writer(engine, self._loop, self._committed, self._failed)
        self._delivery = self._reader = self._writer
        self._writers = {self._writer: engine}
        if delivering is not None:
            self._delivery = make_writer(delivering, self._loop, self._committed, self._failed)
            self._writers[self._delivery] = delivering
        if reading is not None:
            self._reader = make_writer(reading, self._loop, self._committed, self._failed)
            self._writers[self._reader] = reading
        # Of a shared outbox, whose server may never answer: who waits, and for what.
        self.is_shared = self._delivery is not self._writer
        self._unanswered: dict[asyncio.Future[Any], Operation[Any] | Read[Any]] = {}

    @classmethod
    async def start(
        cls,
        engine: Engine,
        make_writer: Callable[..., Writer] = Writer,
        delivering: Engine | None = None,
        reading: Engine | None = None,
    ) -> Outbox:
        """Start the writers on engines that nothing else touches from now on."""
        outbox = cls(engine, make_writer, delivering, reading)
        for writer in outbox._writers:
            writer.start()
        return outbox

    async def stop(self) -> None:
        """Finish what was handed in, and close the engine.

        Raises:
            SyncFailed: the last sync failed. After this, or if it failed before,
                the file is not closed, because that would sync it again: the
                process must end at once.
        """
        # A server's commit may wait for its standby as long as it likes: that is left
        # alone, as it is when the process dies.
        within_s = SERVER_PATIENCE_S if self.is_shared else None
        ended = await asyncio.gather(*(writer.stop(within_s) for writer in self._writers))
        if self.fatal is not None:
            return
        try:
            for engine, has_ended in zip(self._writers.values(), ended, strict=True):
                if has_ended:
                    await asyncio.to_thread(engine.close)
        except SyncFailed as error:
            self.fatal = error
            raise

    # --- what the loop hears ---

    def _committed(self, operations: list[Operation[Any]], duration_s: float) -> None:
        self.take_counts()
        rows, has_arrivals, has_claimed = 0, False, False
        for operation in operations:
            if isinstance(operation, Accept):
                rows += len(operation.items)
                has_arrivals = True
            elif isinstance(operation, Claim):
                has_claimed = True
            elif isinstance(operation, Exchange):
                rows += len(operation.settlements)
            else:
                rows += 1
        self.on_commit(duration_s, rows)
        if has_arrivals:
            self.on_arrival(has_claimed)

    def take_counts(self) -> None:
        """As the engine knows them now."""
        self.counts, self.waiting = self._engine.counts(), self._engine.waiting()

    def _failed(self, error: OutboxdError) -> None:
        self.fatal = error
        self.on_fatal(error)

    def stop_for(self, error: OutboxdError) -> None:
        """Something found what only a fresh start can put right: the agent must stop."""
        self._engine.note_fatal(error)
        self._failed(error)

    # --- any verb of the engine ---

    def change(self, verb: Callable[[Engine], T]) -> asyncio.Future[T]:
        """Run it in a transaction, with whatever else waits for the next commit.

        Raises:
            DiskShort: nothing was written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(self._writer, ChangeOperation(future, verb))
        return future

    def read(self, verb: Callable[[Engine], T]) -> asyncio.Future[T]:
        """Run it between commits: at most a few ms, a long scan is many of them."""
        return self._read(self._reader, verb)

    def change_delivery(self, verb: Callable[[Engine], T]) -> asyncio.Future[T]:
        """As `change`, in the order of what settles and claims."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(self._delivery, ChangeOperation(future, verb))
        return future

    def _read(self, reader: Writer, verb: Callable[[Engine], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(reader, Read(future, verb))
        return future

    def _submit(self, writer: Writer, work: Operation[Any] | Read[Any]) -> None:
        writer.submit(work)
        if self.is_shared:
            self._unanswered[work.future] = work
            work.future.add_done_callback(self._unanswered.pop)

    # --- the way of an event ---

    def accept(self, items: Sequence[Incoming], *marks: SpoolMark) -> asyncio.Future[list[Receipt]]:
        """Keep events; the receipts come after the commit. The marks, how far
        spool files were taken, are in the same commit.

        Raises:
            DiskShort: nothing was kept.
            SyncFailed: what became of them is unknown; the agent stops.
            OutboxUnreachable: nothing was kept.
            CommitUnknown: what became of them is unknown.
        """
        future: asyncio.Future[list[Receipt]] = self._loop.create_future()
        self._submit(self._writer, Accept(future, items, marks))
        return future

    def give_up_waiting(self, error: OutboxdError, *, for_all: bool = False) -> None:
        """Nobody who hands in (or nobody at all) waits any longer for a server that does
        not answer; what it may be committing is left alone."""
        for future, work in tuple(self._unanswered.items()):
            if not future.done() and (for_all or isinstance(work, Accept)):
                future.set_exception(error)

    async def exchange(self, settlements: Sequence[Settlement], sending: Collection[int]) -> None:
        """In one commit: settle, and record exactly which entries are in flight.

        Raises:
            DiskShort: nothing was written; hand the same in again later, and
                send nothing meanwhile.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._submit(self._delivery, Exchange(future, settlements, sending))
        await future

    async def fetch(
        self,
        count: int,
        *,
        exclude: Collection[int],
        order: str,
        fresh_share: float,
        due_horizon_s: float,
    ) -> Fetched:
        """Due entries that are not held, with undamaged bodies, to be sent next.

        No due time lies further ahead than `due_horizon_s`; one that does was
        written before the wall clock was set back, and counts as due.
        """
        taken = list(exclude)
        found = await self._read(
            self._delivery,
            lambda engine: engine.fetch(count, taken, order, fresh_share, due_horizon_s),
        )
        await self._set_aside(found.damaged)
        return found

    def claim_next(
        self,
        count: int,
        sending: Collection[int],
        *,
        exclude: Collection[int],
        order: str,
        due_horizon_s: float,
    ) -> Claim | None:
        """A standing offer, for a sender with nothing to send: take what is due when the
        next event comes in, at most `count` entries, in the commit that accepts it. From
        then on they and `sending` are in flight, and the event waits for one commit
        alone. There may be one offer at a time; `take_claimed` ends it. None where the
        outbox is shared, whose receipts and claims are not in one commit.
        """
        if self.is_shared:
            return None
        taken = list(exclude)
        claim = Claim(
            self._loop.create_future(),
            lambda engine: engine.fetch(count, taken, order, 0.0, due_horizon_s),
            list(sending),
        )
        self._writer.stand_by(claim)
        return claim

    async def take_claimed(self, claim: Claim) -> list[Claimed]:
        """What was taken by an offer; nothing is any more from now on.

        Raises:
            DiskShort: nothing was taken, and nothing accepted.
        """
        if self._writer.recall():
            return []
        found = await claim.future
        await self._set_aside(found.damaged)
        return found.entries

    async def _set_aside(self, damaged: Sequence[int]) -> None:
        if not damaged:
            return
        with suppress(DiskShort):  # it is found again
            for seq in damaged:
                await self.set_aside_damaged(seq, "the body failed its checksum")
        self.on_arrival(False)  # fewer than were wanted, and not because there are no more

    async def set_aside_damaged(self, seq: int, detail: str) -> None:
        """A row failed its checksum: count it, keep its remains apart, go on."""
        await self.change(lambda engine: engine.set_aside_damaged(seq, detail))
        self.damage = await self.read(lambda engine: engine.damage())
        self.on_damage(seq, detail)

    async def forget_spool(self, file_keys: Sequence[str]) -> None:
        """These files are gone from the spool for certain."""
        keys = list(file_keys)
        await self.change(lambda engine: engine.forget_spool(keys))
        for key in keys:
            self.spool_progress.pop(key, None)

    async def set_destination_hold(self, hold: DestinationHold | None) -> None:
        """Set or lift the operator's hold; it outlives a restart."""
        await self.change(lambda engine: engine.set_destination_hold(hold))
        self.destination_hold = hold

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        """New dedup windows, from the next commit on."""
        self._engine.set_windows(key_window_s, repeat_window_s)

    # --- reading ---

    async def get(self, id: str) -> Entry:
        """The entry with this id. Raises UnknownId."""
        return await self.read(lambda engine: engine.get(id))

    async def page(
        self,
        where: EntryFilter,
        cursor: str | None,
        limit: int,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Page:
        """A page of a listing, newest first, in slices between which others commit.

        `given_up` is asked after each: once nobody wants the page any more, what was
        found so far is returned.

        Raises:
            BadQuery: the cursor is none that a listing gave.
        """
        listing = Listing(where, cursor, limit)
        while True:
            if await self.read(listing.step) or given_up():
                return listing.page()
            await asyncio.sleep(SCAN_PAUSE_S)

    async def refresh(self) -> None:
        """Look again at what is kept in memory but cannot be counted along."""
        self.oldest_pending_at = await self.read(lambda engine: engine.oldest_pending_at())
        self.oldest_due_at = self.oldest_pending_at
        if self.counts.held:
            self.oldest_due_at = await self.read(
                lambda engine: engine.oldest_pending_at(with_held=False)
            )
        self.last_dead_at = await self.read(lambda engine: engine.last_dead_at())
        self.damage = await self.read(lambda engine: engine.damage())

    def sizes(self) -> Sizes:
        """What it takes of the disk, and what is free there, in bytes."""
        return self._engine.sizes()

    def stuck_s(self) -> float:
        """For how long the writer has been at one piece of work; 0 when idle, and where it
        waits for a server, which no fresh start of this process mends."""
        if self.is_shared:
            return 0.0
        return max(_stuck_s(writer) for writer in self._writers)

    def stuck_engines(self, seconds: float) -> list[Engine]:
        """Whose writer has been at one piece of work for so long."""
        return [engine for writer, engine in self._writers.items() if _stuck_s(writer) >= seconds]

    def intake_stuck_s(self) -> float:
        """The same of what receipts wait for."""
        return _stuck_s(self._writer)


def _stuck_s(writer: Writer) -> float:
    return perf_counter() - writer.progress_at if writer.busy else 0.0


def _nothing(*_: object) -> None:
    """No one listens."""
