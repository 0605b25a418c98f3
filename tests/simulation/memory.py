"""The real outbox on SQLite in memory, its writer on the loop instead of a thread.

Every operation goes through the same transaction code as in the agent. A
commit takes virtual time, so that all else happens in between, and it may be
the moment of a crash or find the disk full.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

from outboxd.clock import Clock, WindowClock
from outboxd.errors import DiskShort
from outboxd.outbox.model import Counts
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite import query
from outboxd.outbox.sqlite.ballast import Ballast
from outboxd.outbox.sqlite.connection import migrate
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.writer import ChangeOperation, Claim, Exchange, Operation, Read, Writer


def _made() -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, ":memory:")
        return connection.serialize()


class MemoryEngine(SqliteEngine):
    """The engine without a file, made from a copy, since thousands are wanted."""

    _template: bytes | None = None

    def __init__(
        self, clock: Clock, key_window_s: float = 7 * 86400, repeat_window_s: float = 0
    ) -> None:
        if MemoryEngine._template is None:
            MemoryEngine._template = _made()
        self.path = ":memory:"
        self.clock = clock
        self.ballast = Ballast(self.path)
        self._key_clock = WindowClock(clock, round(key_window_s * 1000))
        self.set_windows(key_window_s, repeat_window_s)
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.deserialize(MemoryEngine._template)
        self.reopen()

    def tidy(self) -> None:
        """There is no log to empty."""

    def reopen(self) -> None:
        """What a new process does after a crash: only what was committed is there."""
        self.rollback()
        self._load()


class Row(NamedTuple):
    """Of an entry, what the checks look at."""

    seq: int
    state: str
    received_at: int
    dead_reason: str | None
    spent: int
    expires_at: int | None
    attempts: str


class Store(Protocol):
    """Where the outbox of a history is, whatever engine keeps it: what a new process has
    of it, and what the checks see."""

    engine: Any  # the one for what comes in

    def reopen(self) -> None:
        """What a new process does after a crash: only what was committed is there."""

    def beside(self) -> dict[str, Any]:
        """The engines that it has beside the first, as `Outbox.start` takes them."""

    def election(self, outbox: Outbox) -> Any:
        """Who delivers; None where that is no question."""

    def row(self, id: str) -> Row | None: ...

    def id_of(self, seq: int) -> str | None: ...

    def sending(self) -> list[int]:
        """What it names as in flight."""

    def waiting_before(self, seq: int) -> list[str]:
        """Ids of what is pending, not held, and older."""

    def due(self, now: int) -> int: ...

    def held(self) -> list[str]: ...

    def pending(self) -> list[tuple[str, str]]:
        """Ids and summaries."""

    def ended(self) -> list[tuple[str, str | None]]:
        """States and reasons, in order."""

    def counted(self) -> Counts: ...

    def close(self) -> None: ...


class MemoryStore:
    """SQLite in memory."""

    def __init__(self, clock: Clock, repeat_window_s: float) -> None:
        self.engine = MemoryEngine(clock, repeat_window_s=repeat_window_s)
        self.reopen = self.engine.reopen
        self.close = self.engine.connection.close
        self._execute = self.engine.connection.execute

    def beside(self) -> dict[str, Any]:
        return {}

    def election(self, outbox: Outbox) -> None:
        return None

    def row(self, id: str) -> Row | None:
        found = self._execute(f"SELECT {', '.join(Row._fields)} FROM entries WHERE id = ?", (id,))
        row = found.fetchone()
        return None if row is None else Row(*row)

    def id_of(self, seq: int) -> str | None:
        row = self._execute("SELECT id FROM entries WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else row[0]

    def sending(self) -> list[int]:
        row = self._execute("SELECT value FROM meta WHERE key = 'sending'").fetchone()
        return [] if row is None else json.loads(row[0])

    def waiting_before(self, seq: int) -> list[str]:
        where = "state = 'pending' AND held = 0 AND seq < ?"
        return [id for (id,) in self._execute(f"SELECT id FROM entries WHERE {where}", (seq,))]

    def due(self, now: int) -> int:
        where = "state = 'pending' AND held = 0 AND due_at <= ?"
        return self._execute(f"SELECT count(*) FROM entries WHERE {where}", (now,)).fetchone()[0]

    def held(self) -> list[str]:
        return [id for (id,) in self._execute("SELECT id FROM entries WHERE held = 1 ORDER BY seq")]

    def pending(self) -> list[tuple[str, str]]:
        return self._execute(
            "SELECT e.id, json_extract(b.body, '$.summary') FROM entries e JOIN bodies b"
            " ON b.seq = e.seq WHERE e.state = 'pending'"
        ).fetchall()

    def ended(self) -> list[tuple[str, str | None]]:
        return self._execute("SELECT state, dead_reason FROM entries ORDER BY seq").fetchall()

    def counted(self) -> Counts:
        return query.counts(self.engine.connection)


class InlineWriter(Writer):
    """Runs operations on the loop, one commit after the other."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.commit_s: Callable[[], float] = lambda: 0.0
        self.on_exchange: Callable[[Exchange], None] = lambda operation: None
        # Called with the number of the commit, before (False) and after it (True);
        # whether this is where the process dies.
        self.dies: Callable[[bool], bool] = lambda committed: False
        self.disk_full = False
        self.commits = 0
        self._dead = False
        self._waiting: deque[Operation[Any] | Read[Any]] = deque()
        self._running = False

    def start(self) -> None:
        pass

    def submit(self, work: Operation[Any] | Read[Any]) -> None:
        if self._dead:
            return
        self._waiting.append(work)
        if not self._running:
            self._running = True
            self._later()

    def kill(self) -> None:
        """The process is gone: nothing is applied, nobody gets an answer."""
        self._dead = True
        self._waiting.clear()

    async def stop(self) -> None:
        if self._running:
            last: asyncio.Future[None] = self._loop.create_future()
            self.submit(ChangeOperation(last, lambda engine: None))
            await last
        self._dead = True

    def _later(self) -> None:
        if self._standing and any(
            isinstance(work, Operation) and work.is_intake for work in self._waiting
        ):
            self._waiting.append(self._standing.pop())  # too late to recall it from here on
        delay_s = 0.0 if isinstance(self._waiting[0], Read) else self.commit_s()
        if delay_s:
            self._loop.call_later(delay_s, self._step)
        else:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        operations: list[Operation[Any]] = []
        while self._waiting:
            work = self._waiting[0]
            if isinstance(work, Read):
                if not operations:
                    self._waiting.popleft()
                    self._read(work)
                break
            operations.append(work)
            self._waiting.popleft()
        # What stood by comes last, as on the thread: it is to see all that comes in.
        operations.sort(key=lambda operation: isinstance(operation, Claim))
        if operations:
            if self.dies(False):
                return
            self._write(operations)
        if self._dead:
            return
        if self._waiting:
            self._later()
        else:
            self._running = False

    def _transact(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        if self.disk_full and not all(map(_is_empty, operations)):
            raise DiskShort("no room on the disk")
        results = super()._transact(operations)
        self.commits += 1
        for operation in operations:
            if isinstance(operation, Exchange):
                self.on_exchange(operation)
        return results

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        if call == self._finish and self.dies(True):
            return
        if not self._dead:
            call(*args)


def _is_empty(operation: Operation[Any]) -> bool:
    """Whether SQLite has nothing to write for it: that succeeds on a full disk."""
    return isinstance(operation, Exchange) and not operation.settlements and not operation.sending
