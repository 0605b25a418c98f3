"""The thread that owns the outbox, and group commit.

All who wait while one commit is under way share the next: no fixed delay when
idle, one sync for many when busy. Reads run between commits, one at a time, so
that neither waits long for the other. Nothing else may touch the engine while
the thread runs.

What happens when the disk is full is decided here: intake is refused, outcomes
of requests that were made are written with the room that the engine kept back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import groupby, islice
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Generic, TypeVar, cast

from outboxd.errors import (
    CommitUnknown,
    DiskShort,
    LeaseLost,
    OutboxDamaged,
    OutboxdError,
    OutboxLocked,
    OutboxUnreachable,
    SyncFailed,
)
from outboxd.outbox.engine import Engine
from outboxd.outbox.model import Fetched, Incoming, Receipt, Settlement, SpoolMark

T = TypeVar("T")

# One transaction takes at most so many operations, which bounds how long the
# first of them waits for the last.
OPERATIONS_MAX = 256

# After these nothing is tried again: the agent stops and starts afresh.
_FATAL = (SyncFailed, OutboxDamaged)
# These are no one operation's own fault: all of the transaction have failed, and none is
# run again by itself. What became of a commit whose end was not seen nobody knows.
_OF_ALL = (*_FATAL, OutboxLocked, OutboxUnreachable, CommitUnknown, LeaseLost)


class Operation(Generic[T]):
    """Something to do in a transaction, and who waits for it."""

    # Whether it may be refused on a full disk; what is not intake may use the
    # room that is kept back.
    is_intake = False
    rows = 1
    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[T]) -> None:
        self.future = future

    def apply(self, engine: Engine) -> T:
        raise NotImplementedError


class Accept(Operation[list[Receipt]]):
    """Keep events."""

    is_intake = True
    __slots__ = ("items", "marks")

    def __init__(
        self,
        future: asyncio.Future[list[Receipt]],
        items: Sequence[Incoming],
        marks: Sequence[SpoolMark],
    ) -> None:
        super().__init__(future)
        self.items = items
        self.marks = marks

    def apply(self, engine: Engine) -> list[Receipt]:
        return self.apply_all(engine, [self])[0]

    @staticmethod
    def apply_all(engine: Engine, accepts: Sequence[Accept]) -> list[list[Receipt]]:
        """Several at once: one statement for all their rows, and not one for each.

        Each statement gives the interpreter away and has to wait for it again.
        """
        receipts = iter(engine.accept([item for accept in accepts for item in accept.items]))
        for accept in accepts:
            for mark in accept.marks:
                engine.mark_spool(mark)
        return [list(islice(receipts, len(accept.items))) for accept in accepts]


class Exchange(Operation[None]):
    """Settle outcomes and record what is in flight."""

    __slots__ = ("sending", "settlements")

    def __init__(
        self,
        future: asyncio.Future[None],
        settlements: Sequence[Settlement],
        sending: Collection[int],
    ) -> None:
        super().__init__(future)
        self.settlements = settlements
        self.sending = sending

    def apply(self, engine: Engine) -> None:
        if self.settlements:
            engine.settle(self.settlements)
        engine.set_sending(self.sending)


class Claim(Operation[Fetched]):
    """Take entries for sending: from this commit on they are in flight too."""

    is_intake = True  # new requests are not what room is kept back for
    __slots__ = ("look", "sending")

    def __init__(
        self,
        future: asyncio.Future[Fetched],
        look: Callable[[Engine], Fetched],
        sending: Sequence[int],
    ) -> None:
        super().__init__(future)
        self.look = look
        self.sending = sending

    def apply(self, engine: Engine) -> Fetched:
        found = self.look(engine)
        if found.entries:
            engine.set_sending([*self.sending, *(entry.seq for entry in found.entries)])
        return found


class ChangeOperation(Operation[T]):
    """Any other verb."""

    __slots__ = ("verb",)

    def __init__(self, future: asyncio.Future[T], verb: Callable[[Engine], T]) -> None:
        super().__init__(future)
        self.verb = verb

    def apply(self, engine: Engine) -> T:
        return self.verb(engine)


class Read(Generic[T]):
    """A short read between commits."""

    __slots__ = ("future", "verb")

    def __init__(self, future: asyncio.Future[T], verb: Callable[[Engine], T]) -> None:
        self.future = future
        self.verb = verb


class Writer:
    """Runs operations against the engine, in the order in which they came."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[list[Operation[Any]], float], None],
        on_fatal: Callable[[OutboxdError], None],
    ) -> None:
        """`on_commit(operations, duration_s)` and `on_fatal(error)` run on the loop."""
        self._engine = engine
        self._loop = loop
        self._on_commit = on_commit
        self._on_fatal = on_fatal
        self._handed_in: list[Operation[Any] | Read[Any]] = []
        self._queue: SimpleQueue[list[Operation[Any] | Read[Any]] | None] = SimpleQueue()
        # At most one. Both threads take from it: a deque's pop happens or does not.
        self._standing: deque[Claim] = deque()
        self._fatal: OutboxdError | None = None
        self.progress_at = perf_counter()
        self.busy = False
        self._thread = threading.Thread(target=self._run, name="outbox-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Operation[Any] | Read[Any]) -> None:
        """Hand work in, on the loop; its future gets the result or an OutboxdError.

        What one round of the loop hands in goes to the thread together, so that
        the thread is not woken, and does not ask for the interpreter, for each.
        """
        self._handed_in.append(work)
        if len(self._handed_in) == 1:
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self._handed_in:
            self._queue.put(self._handed_in)
            self._handed_in = []

    def stand_by(self, claim: Claim) -> None:
        """Do this in the transaction of the next intake: one trip for both."""
        self._standing.append(claim)

    def recall(self) -> bool:
        """Whether what stood by was not begun; then it never will be."""
        try:
            self._standing.pop()
        except IndexError:
            return False
        return True

    async def stop(self, within_s: float | None = None) -> bool:
        """Finish what was handed in, and end the thread; whether it has ended."""
        self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, within_s)
        return not self._thread.is_alive()

    # --- on the thread ---

    def _run(self) -> None:
        todo: deque[Operation[Any] | Read[Any]] = deque()
        while True:
            self.busy = bool(todo)
            more = self._queue.get() if not todo else []
            self.busy, self.progress_at = True, perf_counter()
            while more is not None:
                todo.extend(more)
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
            self._work_off(todo)
            if more is None:
                while todo:
                    self._work_off(todo)
                return

    def _work_off(self, todo: deque[Operation[Any] | Read[Any]]) -> None:
        """One transaction of what comes first, or one read."""
        operations: list[Operation[Any]] = []
        while todo and len(operations) < OPERATIONS_MAX:
            work = todo.popleft()
            if isinstance(work, Read):
                # Commits that came after it do not wait for it, and it waits
                # for one commit at the most.
                later = [w for w in todo if not isinstance(w, Read)]
                reads = [w for w in todo if isinstance(w, Read)]
                todo.clear()
                todo.extend(reads)
                operations += later
                self._write_all(operations)
                self._read(work)
                return
            operations.append(work)
        self._write_all(operations)

    def _write_all(self, operations: list[Operation[Any]]) -> None:
        for start in range(0, len(operations), OPERATIONS_MAX):
            self._write(operations[start : start + OPERATIONS_MAX])

    def _read(self, read: Read[Any]) -> None:
        try:
            with self._engine.reading():
                result = read.verb(self._engine)
        except Exception as error:
            self._post(_fail, [read.future], self._judged(error))
        else:
            self._post(_succeed, [read.future], [result])

    def _write(self, operations: list[Operation[Any]]) -> None:
        if self._fatal is not None:
            self._post(_fail, [op.future for op in operations], self._fatal)
            return
        # Nobody waits any more for what was given up while it stood in the queue.
        operations = [operation for operation in operations if not operation.future.done()]
        if not operations:
            return
        if self._standing and any(operation.is_intake for operation in operations):
            with suppress(IndexError):  # recalled at this moment
                operations = [*operations, self._standing.pop()]
        started = perf_counter()
        try:
            results = self._transact(operations)
        except DiskShort as error:
            self._write_on_full_disk(operations, error)
        except _OF_ALL as error:
            self._post(_fail, [op.future for op in operations], self._judged(error))
        except Exception as error:
            self._write_singly(operations, error)
        else:
            self._post(self._finish, operations, results, perf_counter() - started)
            self._tidy()

    def _transact(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        with self._engine.transaction():
            return _apply(operations, self._engine)

    def _write_on_full_disk(self, operations: list[Operation[Any]], refusal: DiskShort) -> None:
        intake = [op for op in operations if op.is_intake]
        others = [op for op in operations if not op.is_intake]
        if intake:
            self._post(_fail, [op.future for op in intake], refusal)
            if others:
                self._write(others)
            return
        if self._engine.make_room():
            self._write(others)
            return
        self._post(_fail, [op.future for op in others], refusal)

    def _write_singly(self, operations: list[Operation[Any]], error: Exception) -> None:
        """One of them failed by itself: it must not take the others with it."""
        if len(operations) == 1:
            self._post(_fail, [operations[0].future], error)
            return
        for operation in operations:
            self._write([operation])

    def _judged(self, error: Exception) -> Exception:
        """The same error; if it is fatal, the loop is told, once."""
        if isinstance(error, _FATAL):
            self._engine.note_fatal(error)
            if self._fatal is None:
                self._fatal = error
                self._post(self._on_fatal, error)
        return error

    def _tidy(self) -> None:
        try:
            self._engine.tidy()
        except OutboxdError as error:
            self._judged(error)

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    # --- on the loop ---

    def _finish(
        self, operations: list[Operation[Any]], results: list[Any], duration_s: float
    ) -> None:
        # Who waits for a receipt goes on before whoever is told of the commit.
        _succeed([op.future for op in operations], results)
        self._on_commit(operations, duration_s)


def _apply(operations: Sequence[Operation[Any]], engine: Engine) -> list[Any]:
    results: list[Any] = []
    for kind, some in groupby(operations, type):
        if kind is Accept:
            results += Accept.apply_all(engine, list(cast(Iterable[Accept], some)))
        else:
            results += [operation.apply(engine) for operation in some]
    return results


def _succeed(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    for future, result in zip(futures, results, strict=True):
        if not future.done():
            future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
